#include "model_contract.h"

#include <algorithm>
#include <string>

#include "error.h"

namespace detector {
namespace {

constexpr int kDefaultWidth = 1280;
constexpr int kDefaultHeight = 768;

std::string AsString(const Shape& shape) {
  std::string result = "(";
  for (const int64_t size : shape) result += (result.size() > 1 ? ", " : "") + std::to_string(size);
  return result + ")";
}

void CheckInputs(const std::vector<Shape>& shapes) {
  const bool fits = shapes.size() == 2 && shapes[0].size() == 4 && shapes[0][0] == 1 && shapes[0][1] == 3 &&
                    shapes[0][2] != 0 && shapes[0][3] != 0 && shapes[1] == Shape{1, 4};
  if (fits) return;
  std::string found;
  for (const Shape& shape : shapes) found += (found.empty() ? "" : ", ") + AsString(shape);
  throw UserError("has inputs " + found + "; expected image (1, 3, H, W) and metadata (1, 4). Export the model with "
                  "export.py and --test_batch_size=1");
}

}  // namespace

bool IsOpen(const Shape& shape) {
  return std::any_of(shape.begin(), shape.end(), [](int64_t size) { return size < 0; });
}

Canvas CanvasOfModel(const std::vector<Shape>& input_shapes, const Options& options) {
  CheckInputs(input_shapes);
  const int64_t height = input_shapes[0][2], width = input_shapes[0][3];
  const Canvas canvas{width < 0 ? options.image_width.value_or(kDefaultWidth) : static_cast<int>(width),
                      height < 0 ? options.image_height.value_or(kDefaultHeight) : static_cast<int>(height),
                      options.keep_ratio};
  if (options.image_width.value_or(canvas.width) != canvas.width ||
      options.image_height.value_or(canvas.height) != canvas.height) {
    throw UserError("takes images of width " + std::to_string(canvas.width) + " and height " +
                    std::to_string(canvas.height) +
                    "; the IMAGE_WIDTH and IMAGE_HEIGHT given contradict it. Leave them out");
  }
  return canvas;
}

}  // namespace detector
