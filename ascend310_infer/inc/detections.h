// What the network says about one image, and the three files that postprocess.py reads.
#ifndef ASCEND310_INFER_DETECTIONS_H_
#define ASCEND310_INFER_DETECTIONS_H_

#include <filesystem>
#include <string>

#include "files.h"

namespace detector {

// Raw bytes of the three outputs, D rows each.
struct Detections {
  Bytes boxes;   // (D, 5) float32 or float16: x1 y1 x2 y2 in pixels of the image, score
  Bytes labels;  // (D, 1) int32, 0 is the first foreground class
  Bytes mask;    // (D, 1) bool, false on padding
};

// Throws UserError when the three do not have the same number of rows; the message speaks of the model.
void CheckRows(const Detections& detections);

// Writes FOLDER/NAME_0.bin, NAME_1.bin and NAME_2.bin, the mask last: where it is, the others are.
void WriteDetections(const std::filesystem::path& folder, const std::string& name, const Detections& detections);

}  // namespace detector

#endif  // ASCEND310_INFER_DETECTIONS_H_
