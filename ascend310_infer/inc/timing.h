// How long the network took, image by image.
#ifndef ASCEND310_INFER_TIMING_H_
#define ASCEND310_INFER_TIMING_H_

#include <chrono>
#include <filesystem>
#include <string>

namespace detector {

class Timing {
 public:
  using Clock = std::chrono::steady_clock;

  // Adds the time of one image.
  void Add(Clock::duration elapsed);

  // The published line: average milliseconds and number of images. At least one must have been added.
  std::string Summary() const;

  // Writes the line to FOLDER/test_perform_static.txt.
  void Write(const std::filesystem::path& folder) const;

 private:
  Clock::duration total_{};
  int num_images_ = 0;
};

}  // namespace detector

#endif  // ASCEND310_INFER_TIMING_H_
