#include "model_runner.h"

#include <cstring>
#include <string>

#include "error.h"
#include "include/api/context.h"
#include "model_contract.h"

namespace detector {
namespace {

using mindspore::DataType;
using mindspore::MSTensor;

constexpr uintmax_t kMaxModelBytes = uintmax_t{4} << 30;

std::shared_ptr<mindspore::DeviceInfoContext> DeviceInfo(Device device, int device_id) {
  if (device == Device::kCpu) return std::make_shared<mindspore::CPUDeviceInfo>();
  if (device == Device::kGpu) {
    const auto gpu = std::make_shared<mindspore::GPUDeviceInfo>();
    gpu->SetDeviceID(device_id);
    return gpu;
  }
  // Both Ascend names are one device to MindSpore Lite: it asks the driver which chip it is.
  const auto ascend = std::make_shared<mindspore::AscendDeviceInfo>();
  ascend->SetDeviceID(device_id);
  return ascend;
}

std::string WhatToInstall(Device device) {
  switch (device) {
    case Device::kCpu:
      return "";
    case Device::kGpu:
      return " GPU needs a MindSpore Lite built with TensorRT, and the CUDA and TensorRT versions it names.";
    default:
      return " Ascend needs the driver, firmware and CANN toolkit that your MindSpore Lite names, with its "
             "set_env.sh sourced; is the device number right?";
  }
}

void CheckType(const std::string& path, const MSTensor& tensor, DataType expected, const char* what) {
  if (tensor.DataType() != expected) {
    const auto number = [](DataType type) { return std::to_string(static_cast<int>(type)); };
    throw UserError(path + ": " + what + " has data type number " + number(tensor.DataType()) + "; expected " +
                    number(expected) + " (numbers of mindspore::DataType). Export the model with export.py");
  }
}

Bytes Content(const MSTensor& tensor) {
  const std::shared_ptr<const void> data = tensor.Data();
  const auto* first = static_cast<const uint8_t*>(data.get());
  if (first == nullptr) return {};
  return Bytes(first, first + tensor.DataSize());
}

void Fill(MSTensor* tensor, const float* values, size_t num_values) {
  const size_t num_bytes = num_values * sizeof(float);
  void* data = tensor->MutableData();
  if (data == nullptr || tensor->DataSize() != num_bytes) {
    throw UserError("the model's input " + tensor->Name() + " takes " + std::to_string(tensor->DataSize()) +
                    " bytes; expected " + std::to_string(num_bytes));
  }
  std::memcpy(data, values, num_bytes);
}

}  // namespace

ModelRunner::ModelRunner(const Options& options) : path_(options.mindir_path) {
  Build(options);
  ReadCanvas(options);
}

void ModelRunner::Build(const Options& options) {
  // Read here and not by the runtime, whose messages do not say that a file is missing, empty or a folder.
  const Bytes content = ReadFile(path_, kMaxModelBytes);
  const auto context = std::make_shared<mindspore::Context>();
  context->MutableDeviceInfo().push_back(DeviceInfo(options.device, options.device_id));
  const mindspore::Status status = model_.Build(content.data(), content.size(), mindspore::kMindIR, context);
  if (status.IsError()) {
    throw UserError(path_ + ": MindSpore Lite cannot build it for " + DeviceName(options.device) + " " +
                    std::to_string(options.device_id) + " (" + status.ToString() +
                    "). Is it a MINDIR file of export.py, and does this runtime read the MindIR version of the "
                    "MindSpore that wrote it?" +
                    WhatToInstall(options.device));
  }
}

void ModelRunner::ReadCanvas(const Options& options) {
  const std::vector<MSTensor> inputs = model_.GetInputs();
  std::vector<Shape> shapes;
  for (const MSTensor& input : inputs) shapes.push_back(input.Shape());
  try {
    canvas_ = CanvasOfModel(shapes, options);
  } catch (const UserError& error) {
    throw UserError(path_ + ": " + error.what());
  }
  CheckType(path_, inputs[0], DataType::kNumberTypeFloat32, "the image input");
  CheckType(path_, inputs[1], DataType::kNumberTypeFloat32, "the metadata input");
  if (IsOpen(shapes[0]) && model_.Resize(inputs, {{1, 3, canvas_.height, canvas_.width}, {1, 4}}).IsError()) {
    throw UserError(path_ + ": leaves its input size open but does not take width " + std::to_string(canvas_.width) +
                    " and height " + std::to_string(canvas_.height) + ". Give IMAGE_WIDTH and IMAGE_HEIGHT");
  }
}

Detections ModelRunner::Run(const NetworkInput& input, Timing* timing) {
  std::vector<MSTensor> inputs = model_.GetInputs();
  Fill(&inputs[0], input.image.data(), input.image.size());
  Fill(&inputs[1], input.metadata.data(), input.metadata.size());
  std::vector<MSTensor> outputs;
  const Timing::Clock::time_point start = Timing::Clock::now();
  const mindspore::Status status = model_.Predict(inputs, &outputs);
  timing->Add(Timing::Clock::now() - start);
  if (status.IsError()) throw UserError(path_ + ": the network failed (" + status.ToString() + ")");
  if (outputs.size() != 3) {
    throw UserError(path_ + ": has " + std::to_string(outputs.size()) +
                    " outputs; expected boxes, labels and mask. Export the model with export.py");
  }
  CheckType(path_, outputs[1], DataType::kNumberTypeInt32, "the labels output");
  CheckType(path_, outputs[2], DataType::kNumberTypeBool, "the mask output");
  const Detections detections{Content(outputs[0]), Content(outputs[1]), Content(outputs[2])};
  CheckRows(detections);
  return detections;
}

}  // namespace detector
