#!/bin/bash
# Usage: run_eval_onnx.sh ANNO_PATH ONNX_MODEL BACKBONE COCO_ROOT [MINDRECORD_DIR] [--detach] [--key=value ...]
# Scores an exported ONNX file on the device of the installed ONNX Runtime (--device_target chooses). Results and
# eval_onnx.log land in eval/ beside scripts/; an older eval/ is kept under the next number. Further --key=value
# arguments go to eval_onnx.py.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[[ $# -ge 4 ]] || usage
annotations=$(require_file ANNO_PATH "$1")
model=$(require_file ONNX_MODEL "$2")
backbone=$(require_backbone "$3")
coco_root=$(require_dir COCO_ROOT "$4")
read_options "${@:5}"
launch eval eval_onnx.log eval_onnx.py --anno_path="$annotations" --file_name="$model" \
  --backbone="$backbone" --coco_root="$coco_root"
