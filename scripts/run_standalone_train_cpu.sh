#!/bin/bash
# Usage: run_standalone_train_cpu.sh PRETRAINED_MODEL BACKBONE COCO_ROOT [MINDRECORD_DIR] [--detach] [--key=value ...]
# Trains on this machine's CPU, in train/ beside scripts/; an older train/ is kept under the next number.
# PRETRAINED_MODEL "" starts from random weights. Further --key=value arguments go to train.py.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[[ $# -ge 3 ]] || usage
pretrained=$(require_weights PRETRAINED_MODEL "$1")
backbone=$(require_backbone "$2")
coco_root=$(require_dir COCO_ROOT "$3")
read_options "${@:4}"
launch train train.log train.py --device_target=CPU --backbone="$backbone" --coco_root="$coco_root" \
  --pre_trained="$pretrained"
