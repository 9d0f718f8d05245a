// One image on its way to the network: the same numbers as src/data/transforms.py.
#ifndef ASCEND310_INFER_PREPROCESS_H_
#define ASCEND310_INFER_PREPROCESS_H_

#include <array>
#include <filesystem>
#include <opencv2/core.hpp>
#include <vector>

namespace detector {

// The network's input size and how images are brought to it.
struct Canvas {
  int width;                // W, pixels
  int height;               // H, pixels
  bool keep_ratio = true;   // resize by one factor and pad, or stretch to the whole canvas
};

struct NetworkInput {
  std::vector<float> image;        // (3, H, W), RGB, normalised
  std::array<float, 4> metadata;   // height and width of the image, then the factors of its height and width
};

// Decodes an image file to (h, w) pixels of three bytes, RGB. Grey and palette images are converted, alpha is
// dropped, 16-bit values are divided by 257, EXIF orientation is ignored. Throws UserError naming the file when it is
// not a complete image or too large.
cv::Mat ReadRgb(const std::filesystem::path& path);

// Resizes by OpenCV's bilinear interpolation on bytes, pads with black at the right and bottom, normalises and brings
// channels first.
NetworkInput PrepareInput(const cv::Mat& rgb, const Canvas& canvas);

}  // namespace detector

#endif  // ASCEND310_INFER_PREPROCESS_H_
