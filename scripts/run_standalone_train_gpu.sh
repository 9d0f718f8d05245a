#!/bin/bash
# Usage: run_standalone_train_gpu.sh PRETRAINED_MODEL BACKBONE COCO_ROOT DEVICE_ID
#                                    [MINDRECORD_DIR] [--detach] [--key=value ...]
# Trains on a GPU, in train/ beside scripts/; an older train/ is kept under the next number. PRETRAINED_MODEL "" starts
# from random weights. Further --key=value arguments go to train.py.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[[ $# -ge 4 ]] || usage
pretrained=$(require_weights PRETRAINED_MODEL "$1")
backbone=$(require_backbone "$2")
coco_root=$(require_dir COCO_ROOT "$3")
device_id=$(require_number DEVICE_ID "$4")
# The process sees this GPU alone, as its number 0.
export CUDA_VISIBLE_DEVICES=$device_id DEVICE_ID=0
read_options "${@:5}"
launch train train.log train.py --device_target=GPU --backbone="$backbone" --coco_root="$coco_root" \
  --pre_trained="$pretrained"
