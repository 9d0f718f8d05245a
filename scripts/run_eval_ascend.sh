#!/bin/bash
# Usage: run_eval_ascend.sh VALIDATION_JSON_FILE CHECKPOINT_PATH BACKBONE COCO_ROOT DEVICE_ID
#                           [MINDRECORD_DIR] [--detach] [--key=value ...]
# Scores a checkpoint on an Ascend device. Results and eval.log land in eval/ beside scripts/; an older eval/ is kept
# under the next number. Further --key=value arguments go to eval.py.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[[ $# -ge 5 ]] || usage
annotations=$(require_file VALIDATION_JSON_FILE "$1")
checkpoint=$(require_file CHECKPOINT_PATH "$2")
backbone=$(require_backbone "$3")
coco_root=$(require_dir COCO_ROOT "$4")
DEVICE_ID=$(require_number DEVICE_ID "$5")
export DEVICE_ID
read_options "${@:6}"
launch eval eval.log eval.py --device_target=Ascend --anno_path="$annotations" --checkpoint_path="$checkpoint" \
  --backbone="$backbone" --coco_root="$coco_root"
