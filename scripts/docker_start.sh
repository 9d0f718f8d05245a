#!/bin/bash
# Usage: docker_start.sh IMAGE DATA_DIR MODEL_DIR [COMMAND ...]
# Starts a container of IMAGE (see Dockerfile) with DATA_DIR and MODEL_DIR under their own paths, as the caller's user.
# It works in MODEL_DIR, where launchers put their results too; the program is in /faster_rcnn. Without COMMAND it is a
# shell. Ascend devices and GPUs of this machine are passed on.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[[ $# -ge 3 ]] || usage
image=$1
[[ -n $image && $image != -* ]] ||
  die "IMAGE: '$image' is not the name of an image; docker build -t NAME $REPO_ROOT makes one"
data_dir=$(require_dir DATA_DIR "$2")
model_dir=$(require_dir MODEL_DIR "$3")
shift 3
command -v docker >/dev/null || die "no docker on the PATH. Install Docker, and add yourself to the group docker"
for folder in "$data_dir" "$model_dir"; do
  [[ $folder != *:* ]] || die "docker cannot pass on a folder with a colon in its name: '$folder'"
done

user=$(id -u)
group=$(id -g)
# Pipelines pass images between processes in shared memory, of which a container has little of its own.
options=(--rm --interactive --ipc=host --user="$user:$group" --env=HOME=/tmp --env=RUN_ROOT="$model_dir"
  --volume="$data_dir:$data_dir" --volume="$model_dir:$model_dir" --workdir="$model_dir")
[[ ! -t 0 ]] || options+=(--tty)
# Tests name another folder than /dev.
devices=${DEVICE_ROOT:-/dev}
ascend=("$devices"/davinci[0-9]*)
if [[ -e ${ascend[0]} ]]; then
  for device in "${ascend[@]}" "$devices"/davinci_manager "$devices"/devmm_svm "$devices"/hisi_hdc; do
    options+=(--device="$device")
  done
  # The devices belong to a group of the driver.
  options+=(--group-add="$(stat -c %g "${ascend[0]}")" --volume=/usr/local/Ascend/driver:/usr/local/Ascend/driver:ro
    --volume=/usr/local/bin/npu-smi:/usr/local/bin/npu-smi:ro)
elif [[ -e $devices/nvidiactl ]]; then
  options+=(--gpus=all)
fi
exec docker run "${options[@]}" "$image" "$@"
