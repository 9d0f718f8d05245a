#!/bin/bash
# Usage: run_infer_310.sh MINDIR_PATH DATA_PATH ANN_FILE_PATH [IMAGE_WIDTH IMAGE_HEIGHT] [KEEP_RATIO]
#                         [DEVICE_ID] [--key=value for postprocess.py ...]
# Detects in the images of DATA_PATH on an Ascend 310 with the C++ program and scores the detections. Everything lands
# in the current folder: build.log, infer.log, result_Files/, time_Result/, acc.log. MS_LITE_HOME names the MindSpore
# Lite to use, else the one of install_cpp_tools.sh is taken. Sizes come from the model: those given are checked.
# KEEP_RATIO false stretches images to the whole input instead of padding them.
source "$(dirname "${BASH_SOURCE[0]}")/infer_common.sh"

[[ $# -ge 3 ]] || usage
read_infer_options "${@:4}"
infer_and_score "$1" "$2" "$3" Ascend310
