#include "timing.h"

#include <sstream>
#include <stdexcept>

#include "files.h"

namespace detector {

void Timing::Add(Clock::duration elapsed) {
  total_ += elapsed;
  ++num_images_;
}

std::string Timing::Summary() const {
  if (num_images_ == 0) throw std::logic_error("an average of no images");
  const double total_ms = std::chrono::duration<double, std::milli>(total_).count();
  std::ostringstream line;
  line << "NN inference cost average time: " << total_ms / num_images_ << " ms of infer_count " << num_images_
       << '\n';
  return line.str();
}

void Timing::Write(const std::filesystem::path& folder) const {
  const std::string line = Summary();
  WriteFile(folder / "test_perform_static.txt", line.data(), line.size());
}

}  // namespace detector
