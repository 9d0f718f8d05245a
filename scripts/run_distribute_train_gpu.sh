#!/bin/bash
# Usage: run_distribute_train_gpu.sh DEVICE_NUM PRETRAINED_MODEL BACKBONE COCO_ROOT
#                                   [MINDRECORD_DIR] [--detach] [--key=value ...]
# Trains with several GPUs, in train_parallel0/, train_parallel1/, ... beside scripts/; older ones are kept under the
# next number. PRETRAINED_MODEL "" starts from random weights. Further --key=value arguments go to train.py. Several
# hosts: NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT in the environment; DEVICE_NUM counts the devices of one host.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[[ $# -ge 4 ]] || usage
device_num=$(require_positive DEVICE_NUM "$1")
pretrained=$(require_weights PRETRAINED_MODEL "$2")
backbone=$(require_backbone "$3")
coco_root=$(require_dir COCO_ROOT "$4")
read_options "${@:5}"
read_hosts "$device_num"
launch_ranks train_parallel train.log train.py --device_target=GPU --run_distribute=True \
  --backbone="$backbone" --coco_root="$coco_root" --pre_trained="$pretrained"
