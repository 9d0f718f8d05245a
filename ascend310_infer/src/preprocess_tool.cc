// Writes what the network would see of one image: for comparing with src/data/transforms.py, and for looking at.
#include <exception>
#include <iostream>

#include "error.h"
#include "files.h"
#include "options.h"
#include "preprocess.h"

namespace {

constexpr char kUsage[] = "Usage: preprocess_tool IMAGE OUT.bin WIDTH HEIGHT KEEP_RATIO\n"
                          "OUT.bin holds float32 numbers: the four of the metadata, then 3 x HEIGHT x WIDTH\n";

void Preprocess(char** argv) {
  const detector::Canvas canvas{detector::ParseInt("WIDTH", argv[3], 1), detector::ParseInt("HEIGHT", argv[4], 1),
                                detector::ParseBool("KEEP_RATIO", argv[5])};
  const auto input = detector::PrepareInput(detector::ReadRgb(argv[1]), canvas);
  std::vector<float> numbers(input.metadata.begin(), input.metadata.end());
  numbers.insert(numbers.end(), input.image.begin(), input.image.end());
  detector::WriteFile(argv[2], numbers.data(), numbers.size() * sizeof(float));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) {
    std::cerr << kUsage;
    return 2;
  }
  try {
    Preprocess(argv);
  } catch (const detector::UsageError& error) {
    std::cerr << "ERROR: " << error.what() << '\n' << kUsage;
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "ERROR: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
