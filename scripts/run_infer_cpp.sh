#!/bin/bash
# Usage: run_infer_cpp.sh MINDIR_PATH DATA_PATH ANNO_PATH DEVICE_TYPE [IMAGE_WIDTH IMAGE_HEIGHT] [KEEP_RATIO]
#                         [DEVICE_ID] [--key=value for postprocess.py ...]
# As run_infer_310.sh, on the device DEVICE_TYPE: Ascend310, Ascend, GPU or CPU.
source "$(dirname "${BASH_SOURCE[0]}")/infer_common.sh"

[[ $# -ge 4 ]] || usage
read_infer_options "${@:5}"
infer_and_score "$1" "$2" "$3" "$4"
