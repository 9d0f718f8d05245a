// What the program expects of a model, without the runtime that loads it.
#ifndef ASCEND310_INFER_MODEL_CONTRACT_H_
#define ASCEND310_INFER_MODEL_CONTRACT_H_

#include <cstdint>
#include <vector>

#include "options.h"
#include "preprocess.h"

namespace detector {

using Shape = std::vector<int64_t>;

// Sizes that a model leaves open are negative.
bool IsOpen(const Shape& shape);

// The canvas of a model with inputs image (1, 3, H, W) and metadata (1, 4). Sizes it leaves open are those of the
// options, else 1280 x 768. Throws UserError, without the file's name, when the inputs are others or the options
// contradict the model.
Canvas CanvasOfModel(const std::vector<Shape>& input_shapes, const Options& options);

}  // namespace detector

#endif  // ASCEND310_INFER_MODEL_CONTRACT_H_
