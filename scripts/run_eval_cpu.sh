#!/bin/bash
# Usage: run_eval_cpu.sh VALIDATION_JSON_FILE CHECKPOINT_PATH BACKBONE COCO_ROOT
#                        [MINDRECORD_DIR] [--detach] [--key=value ...]
# Scores a checkpoint on this machine's CPU. Results and eval.log land in eval/ beside scripts/; an older eval/ is kept
# under the next number. Further --key=value arguments go to eval.py.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[[ $# -ge 4 ]] || usage
annotations=$(require_file VALIDATION_JSON_FILE "$1")
checkpoint=$(require_file CHECKPOINT_PATH "$2")
backbone=$(require_backbone "$3")
coco_root=$(require_dir COCO_ROOT "$4")
read_options "${@:5}"
launch eval eval.log eval.py --device_target=CPU --anno_path="$annotations" --checkpoint_path="$checkpoint" \
  --backbone="$backbone" --coco_root="$coco_root"
