#!/bin/bash
# Usage: run_distribute_train_ascend.sh RANK_TABLE_FILE PRETRAINED_MODEL BACKBONE COCO_ROOT
#                                       [MINDRECORD_DIR] [--detach] [--key=value ...]
# Trains on the Ascend devices of a rank table (the JSON of hccl_tools), in train_parallel0/, train_parallel1/, ...
# beside scripts/; older ones are kept under the next number. PRETRAINED_MODEL "" starts from random weights. Further
# --key=value arguments go to train.py. Several hosts: call it on each. NODE_RANK, MASTER_ADDR and MASTER_PORT in the
# environment take precedence over the table.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[[ $# -ge 4 ]] || usage
rank_table=$(require_file RANK_TABLE_FILE "$1")
pretrained=$(require_weights PRETRAINED_MODEL "$2")
backbone=$(require_backbone "$3")
coco_root=$(require_dir COCO_ROOT "$4")
read_options "${@:5}"
read_rank_table "$rank_table"
launch_ranks train_parallel train.log train.py --device_target=Ascend --run_distribute=True \
  --backbone="$backbone" --coco_root="$coco_root" --pre_trained="$pretrained"
