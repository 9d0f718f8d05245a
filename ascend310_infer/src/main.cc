// Detects in every image of a folder and writes the files that postprocess.py scores.
#include <exception>
#include <iostream>
#include <string>
#include <vector>

#include "detections.h"
#include "error.h"
#include "files.h"
#include "image_list.h"
#include "model_runner.h"
#include "options.h"
#include "preprocess.h"
#include "timing.h"

namespace {

constexpr int kExitError = 1;
constexpr int kExitUsage = 2;
constexpr size_t kImagesPerLine = 100;

void DetectAll(const detector::Options& options) {
  // What can be wrong without the model is found before the model is built, which may take minutes.
  const auto [images, left_out] = detector::ListImages(options.dataset_path);
  if (!left_out.empty()) std::cout << detector::LeftOutLine(left_out) << std::endl;
  detector::MakeFolder(options.result_path);
  detector::MakeFolder(options.time_path);
  detector::ModelRunner runner(options);
  const detector::Canvas& canvas = runner.canvas();
  std::cout << images.size() << " images, input " << canvas.width << " x " << canvas.height << ", "
            << detector::DeviceName(options.device) << ' ' << options.device_id << std::endl;
  detector::Timing timing;
  for (size_t done = 0; done < images.size();) {
    const auto& path = images[done];
    const auto input = detector::PrepareInput(detector::ReadRgb(path), canvas);
    detector::WriteDetections(options.result_path, path.stem().string(), runner.Run(input, &timing));
    if (++done % kImagesPerLine == 0) std::cout << done << " of " << images.size() << std::endl;
  }
  timing.Write(options.time_path);
  std::cout << timing.Summary();
}

}  // namespace

int main(int argc, char** argv) {
  try {
    DetectAll(detector::ParseOptions(std::vector<std::string>(argv + 1, argv + argc)));
  } catch (const detector::UsageError& error) {
    std::cerr << "ERROR: " << error.what() << '\n' << detector::Usage();
    return kExitUsage;
  } catch (const std::exception& error) {
    std::cerr << "ERROR: " << error.what() << '\n';
    return kExitError;
  }
  return 0;
}
