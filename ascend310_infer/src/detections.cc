#include "detections.h"

#include "error.h"

namespace detector {
namespace {

constexpr size_t kBytesOfLabel = 4;
constexpr size_t kBytesOfFloat32Box = 5 * 4;
constexpr size_t kBytesOfFloat16Box = 5 * 2;

}  // namespace

void CheckRows(const Detections& detections) {
  const size_t num_rows = detections.mask.size();  // one byte a row
  const size_t box_bytes = detections.boxes.size();
  const bool boxes_fit = box_bytes == num_rows * kBytesOfFloat32Box || box_bytes == num_rows * kBytesOfFloat16Box;
  if (num_rows == 0 || !boxes_fit || detections.labels.size() != num_rows * kBytesOfLabel) {
    throw UserError("the model's outputs have " + std::to_string(box_bytes) + ", " +
                    std::to_string(detections.labels.size()) + " and " + std::to_string(num_rows) +
                    " bytes; expected 20 (float16: 10), 4 and 1 bytes a row: boxes with score, labels and mask of one "
                    "image. Export the model with export.py");
  }
}

void WriteDetections(const std::filesystem::path& folder, const std::string& name, const Detections& detections) {
  const Bytes* outputs[] = {&detections.boxes, &detections.labels, &detections.mask};
  for (int number = 0; number < 3; ++number) {
    const Bytes& output = *outputs[number];
    WriteFile(folder / (name + "_" + std::to_string(number) + ".bin"), output.data(), output.size());
  }
}

}  // namespace detector
