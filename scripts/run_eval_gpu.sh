#!/bin/bash
# Usage: run_eval_gpu.sh VALIDATION_JSON_FILE CHECKPOINT_PATH BACKBONE COCO_ROOT DEVICE_ID
#                        [MINDRECORD_DIR] [--detach] [--key=value ...]
# Scores a checkpoint on a GPU. Results and eval.log land in eval/ beside scripts/; an older eval/ is kept under the
# next number. Further --key=value arguments go to eval.py.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[[ $# -ge 5 ]] || usage
annotations=$(require_file VALIDATION_JSON_FILE "$1")
checkpoint=$(require_file CHECKPOINT_PATH "$2")
backbone=$(require_backbone "$3")
coco_root=$(require_dir COCO_ROOT "$4")
device_id=$(require_number DEVICE_ID "$5")
# The process sees this GPU alone, as its number 0.
export CUDA_VISIBLE_DEVICES=$device_id DEVICE_ID=0
read_options "${@:6}"
launch eval eval.log eval.py --device_target=GPU --anno_path="$annotations" --checkpoint_path="$checkpoint" \
  --backbone="$backbone" --coco_root="$coco_root"
