#include "options.h"

#include <charconv>
#include <functional>
#include <map>
#include <set>

#include "error.h"

namespace detector {
namespace {

const std::map<std::string, Device> kDevices = {
    {"Ascend310", Device::kAscend310}, {"Ascend", Device::kAscend}, {"GPU", Device::kGpu}, {"CPU", Device::kCpu}};

constexpr int kLargestInt = 1 << 20;  // far above any image or device number, far below overflow

using Setter = std::function<void(const std::string&)>;

std::map<std::string, Setter> Setters(Options* options) {
  return {
      {"mindir_path", [=](const std::string& value) { options->mindir_path = value; }},
      {"dataset_path", [=](const std::string& value) { options->dataset_path = value; }},
      {"device_type", [=](const std::string& value) { options->device = ParseDevice("device_type", value); }},
      {"device_id", [=](const std::string& value) { options->device_id = ParseInt("device_id", value, 0); }},
      {"image_width", [=](const std::string& value) { options->image_width = ParseInt("image_width", value, 1); }},
      {"image_height", [=](const std::string& value) { options->image_height = ParseInt("image_height", value, 1); }},
      {"keep_ratio", [=](const std::string& value) { options->keep_ratio = ParseBool("keep_ratio", value); }},
      {"result_path", [=](const std::string& value) { options->result_path = value; }},
      {"time_path", [=](const std::string& value) { options->time_path = value; }},
  };
}

}  // namespace

std::string Usage() {
  return "Usage: main --mindir_path=MODEL.mindir --dataset_path=IMAGES --device_type=Ascend310|Ascend|GPU|CPU\n"
         "            [--device_id=0] [--image_width=W --image_height=H] [--keep_ratio=true|false]\n"
         "            [--result_path=./result_Files] [--time_path=./time_Result]\n";
}

Options ParseOptions(const std::vector<std::string>& arguments) {
  Options options;
  const auto setters = Setters(&options);
  std::set<std::string> given;
  for (const std::string& argument : arguments) {
    const size_t equals = argument.find('=');
    if (argument.rfind("--", 0) != 0 || equals == std::string::npos) {
      throw UsageError("'" + argument + "': expected --key=value");
    }
    const std::string key = argument.substr(2, equals - 2), value = argument.substr(equals + 1);
    const auto setter = setters.find(key);
    if (setter == setters.end()) throw UsageError("'--" + key + "' is not a flag of this program");
    if (!given.insert(key).second) throw UsageError("'--" + key + "' is given twice");
    if (value.empty()) throw UsageError("'--" + key + "=' has no value");
    setter->second(value);
  }
  for (const char* required : {"mindir_path", "dataset_path", "device_type"}) {
    if (given.count(required) == 0) throw UsageError(std::string("'--") + required + "=' is missing");
  }
  return options;
}

Device ParseDevice(const std::string& key, const std::string& value) {
  const auto found = kDevices.find(value);
  if (found == kDevices.end()) {
    throw UsageError("'" + value + "' is not a value of " + key + "; expected Ascend310, Ascend, GPU or CPU");
  }
  return found->second;
}

bool ParseBool(const std::string& key, const std::string& value) {
  if (value == "true" || value == "True") return true;
  if (value == "false" || value == "False") return false;
  throw UsageError("'" + value + "' is not a value of " + key + "; expected true or false");
}

int ParseInt(const std::string& key, const std::string& value, int least) {
  int number = 0;
  const char* end = value.data() + value.size();
  const auto [stop, error] = std::from_chars(value.data(), end, number);
  if (error != std::errc() || stop != end || number < least || number > kLargestInt) {
    throw UsageError("'" + value + "' is not a value of " + key + "; expected an integer from " +
                     std::to_string(least) + " to " + std::to_string(kLargestInt));
  }
  return number;
}

std::string DeviceName(Device device) {
  for (const auto& [name, value] : kDevices) {
    if (value == device) return name;
  }
  throw std::logic_error("a device without a name");
}

}  // namespace detector
