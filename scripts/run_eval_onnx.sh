#!/bin/bash
# Usage: run_eval_onnx.sh ANNO_PATH ONNX_MODEL BACKBONE COCO_ROOT [MINDRECORD_DIR] [--key=value ...]
# Scores an exported ONNX file with ONNX Runtime. Results and eval_onnx.log land in eval/ beside scripts/; an older
# eval/ is kept under the next number. Further --key=value arguments go to eval_onnx.py.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[[ $# -ge 4 ]] || usage
anno_path=$(require_file ANNO_PATH "$1")
model=$(require_file ONNX_MODEL "$2")
coco_root=$(require_dir COCO_ROOT "$4")
options=(--device_target=CPU --anno_path="$anno_path" --file_name="$model" --backbone="$3" --coco_root="$coco_root")
shift 4
if [[ $# -gt 0 && $1 != --* ]]; then
  options+=(--mindrecord_dir="$(realpath -m -- "$1")")
  shift
fi
use_python
fresh_folder "$REPO_ROOT/eval"
cd "$REPO_ROOT/eval"
ln -s eval_onnx.log log
python "$REPO_ROOT/eval_onnx.py" "${options[@]}" "$@" 2>&1 | tee eval_onnx.log
