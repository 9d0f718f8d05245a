// The network on a device, by MindSpore Lite. The only unit that needs its headers and libraries.
#ifndef ASCEND310_INFER_MODEL_RUNNER_H_
#define ASCEND310_INFER_MODEL_RUNNER_H_

#include <memory>
#include <vector>

#include "detections.h"
#include "include/api/model.h"
#include "options.h"
#include "preprocess.h"
#include "timing.h"

namespace detector {

class ModelRunner {
 public:
  // Loads the model and builds it for the device. Throws UserError naming the file or the device: missing, not
  // readable by this runtime, other inputs than those of export.py, sizes that contradict the options.
  explicit ModelRunner(const Options& options);

  // The input size of the model.
  const Canvas& canvas() const { return canvas_; }

  // Detects in one image and adds the network's time, without preprocessing, to `timing`.
  Detections Run(const NetworkInput& input, Timing* timing);

 private:
  void Build(const Options& options);
  void ReadCanvas(const Options& options);

  std::string path_;
  mindspore::Model model_;
  Canvas canvas_{};
};

}  // namespace detector

#endif  // ASCEND310_INFER_MODEL_RUNNER_H_
