// The command line of the program. The defaults below are the only ones: the launchers pass on what the user gave.
#ifndef ASCEND310_INFER_OPTIONS_H_
#define ASCEND310_INFER_OPTIONS_H_

#include <optional>
#include <string>
#include <vector>

namespace detector {

enum class Device { kAscend310, kAscend, kGpu, kCpu };

struct Options {
  std::string mindir_path;
  std::string dataset_path;  // the folder of images
  Device device = Device::kAscend310;
  int device_id = 0;
  // A model of fixed size needs neither; a value that contradicts the model is an error.
  std::optional<int> image_width;
  std::optional<int> image_height;
  bool keep_ratio = true;
  std::string result_path = "./result_Files";
  std::string time_path = "./time_Result";
};

// One line per flag, for messages.
std::string Usage();

// Reads --key=value arguments (without the program's name). Throws UsageError naming the argument: unknown, given
// twice, without a value, or out of range; also when one of the required three is missing.
Options ParseOptions(const std::vector<std::string>& arguments);

// The values of single flags; `key` is for the message of the UsageError.
Device ParseDevice(const std::string& key, const std::string& value);
bool ParseBool(const std::string& key, const std::string& value);
int ParseInt(const std::string& key, const std::string& value, int least);

// The name a device has on the command line.
std::string DeviceName(Device device);

}  // namespace detector

#endif  // ASCEND310_INFER_OPTIONS_H_
