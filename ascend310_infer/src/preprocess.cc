#include "preprocess.h"

#include <algorithm>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>

#include "error.h"
#include "files.h"
#include "image_header.h"

namespace detector {
namespace {

constexpr uintmax_t kMaxImageBytes = 128 << 20;
// Twice Pillow's Image.MAX_IMAGE_PIXELS, where the Python programs refuse an image too.
constexpr int64_t kMaxPixels = 2 * (int64_t{1 << 30} / 4 / 3);

// RGB, of the ImageNet images the backbones were trained on
constexpr std::array<double, 3> kPixelMean = {123.675, 116.28, 103.53};
constexpr std::array<double, 3> kPixelStd = {58.395, 57.12, 57.375};

struct Resized {
  cv::Mat rgb;
  double scale_h;  // from old pixels to new ones
  double scale_w;
};

// (h, w) pixels of three 16-bit values to bytes. 257 is odd, so no quotient lies halfway between two integers and
// adding half the divisor rounds as numpy's rint does.
cv::Mat BytesOf16Bit(const cv::Mat& deep) {
  cv::Mat bytes(deep.size(), CV_8UC3);
  const int row_values = deep.cols * 3;
  for (int row = 0; row < deep.rows; ++row) {
    const auto* from = deep.ptr<uint16_t>(row);
    std::transform(from, from + row_values, bytes.ptr<uint8_t>(row),
                   [](uint16_t value) { return static_cast<uint8_t>((value + 128) / 257); });
  }
  return bytes;
}

cv::Mat DecodeRgb(const Bytes& content) {
  const ImageHeader header = ReadHeader(content);
  if (header.height > 0 && header.width > kMaxPixels / header.height) {  // the product may be too large to compute
    throw UserError("is too large (" + std::to_string(header.width) + " x " + std::to_string(header.height) +
                    " pixels; the limit is " + std::to_string(kMaxPixels) + ")");
  }
  cv::Mat image;
  try {
    image = cv::imdecode(content, cv::IMREAD_COLOR | cv::IMREAD_IGNORE_ORIENTATION | cv::IMREAD_ANYDEPTH);
  } catch (const cv::Exception& error) {
    throw UserError("cannot be decoded (" + error.err + ")");
  }
  if (image.empty()) throw UserError("is damaged or cut off");
  if (image.depth() == CV_16U) image = BytesOf16Bit(image);
  if (image.depth() != CV_8U) throw UserError("has neither 8 nor 16 bits a channel");
  cv::cvtColor(image, image, cv::COLOR_BGR2RGB);
  return image;
}

cv::Mat ResizeBy(const cv::Mat& rgb, double scale) {
  const cv::Size size(std::max(1, static_cast<int>(rgb.cols * scale + 0.5)),
                      std::max(1, static_cast<int>(rgb.rows * scale + 0.5)));
  cv::Mat resized;
  cv::resize(rgb, resized, size, 0, 0, cv::INTER_LINEAR);
  return resized;
}

// On a canvas at least as wide as high the image's long side is held to the canvas's long side and its short side to
// the short one, whatever its orientation; a portrait image that is then too high is resized once more, from the
// result, as the published system does. A canvas higher than wide takes the largest factor that fits at once.
Resized ResizeKeepingRatio(const cv::Mat& rgb, const Canvas& canvas) {
  const double width = rgb.cols, height = rgb.rows;
  if (canvas.width < canvas.height) {
    const double scale = std::min(canvas.width / width, canvas.height / height);
    return {ResizeBy(rgb, scale), scale, scale};
  }
  double scale = std::min(canvas.width / std::max(height, width), canvas.height / std::min(height, width));
  cv::Mat resized = ResizeBy(rgb, scale);
  if (resized.rows > canvas.height) {
    const double second_scale = canvas.height / static_cast<double>(std::max(resized.rows, resized.cols));
    resized = ResizeBy(resized, second_scale);
    scale *= second_scale;
  }
  return {resized, scale, scale};
}

Resized Resize(const cv::Mat& rgb, const Canvas& canvas) {
  if (canvas.keep_ratio) return ResizeKeepingRatio(rgb, canvas);
  cv::Mat resized;
  cv::resize(rgb, resized, cv::Size(canvas.width, canvas.height), 0, 0, cv::INTER_LINEAR);
  return {resized, canvas.height / static_cast<double>(rgb.rows), canvas.width / static_cast<double>(rgb.cols)};
}

// Every byte has one normalised value a channel, so padding is that of byte 0, as padding comes before normalisation.
std::array<float, 256> NormalizedBytes(int channel) {
  std::array<float, 256> table;
  for (int value = 0; value < 256; ++value) {
    table[value] = static_cast<float>((value - kPixelMean[channel]) / kPixelStd[channel]);
  }
  return table;
}

std::vector<float> NormalizeToCanvas(const cv::Mat& rgb, const Canvas& canvas) {
  const size_t plane_size = static_cast<size_t>(canvas.width) * canvas.height;
  std::vector<float> image(3 * plane_size);
  for (int channel = 0; channel < 3; ++channel) {
    const std::array<float, 256> table = NormalizedBytes(channel);
    float* plane = image.data() + channel * plane_size;
    std::fill(plane, plane + plane_size, table[0]);
    for (int row = 0; row < rgb.rows; ++row) {
      const uint8_t* from = rgb.ptr<uint8_t>(row) + channel;
      float* to = plane + static_cast<size_t>(row) * canvas.width;
      for (int column = 0; column < rgb.cols; ++column) to[column] = table[from[3 * column]];
    }
  }
  return image;
}

}  // namespace

cv::Mat ReadRgb(const std::filesystem::path& path) {
  const Bytes content = ReadFile(path, kMaxImageBytes);
  try {
    return DecodeRgb(content);
  } catch (const UserError& error) {
    throw UserError(path.string() + ": " + error.what());
  }
}

NetworkInput PrepareInput(const cv::Mat& rgb, const Canvas& canvas) {
  const Resized resized = Resize(rgb, canvas);
  const std::array<float, 4> metadata = {static_cast<float>(rgb.rows), static_cast<float>(rgb.cols),
                                         static_cast<float>(resized.scale_h), static_cast<float>(resized.scale_w)};
  return {NormalizeToCanvas(resized.rgb, canvas), metadata};
}

}  // namespace detector
