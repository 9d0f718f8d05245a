#!/bin/bash
# What the scripts of this folder share; sourced, not run.
set -euo pipefail

REPO_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly REPO_ROOT

say() { printf '\n== %s\n' "$*"; }

die() {
  printf 'ERROR: %s\n' "$*" >&2
  exit 1
}

# A Python 3.11: $PYTHON, else the first that answers. MindSpore 2.10 has no wheels for newer ones on every system.
find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  die "no Python 3.11 found. Install it, or name it: PYTHON=/path/to/python3.11 bash $0"
}

# ensure_venv REQUIREMENTS_FILE...: make .venv and install the files' packages, unless that has been done before.
ensure_venv() {
  local venv=$REPO_ROOT/.venv python version file stamp
  if [[ ! -x $venv/bin/python ]]; then
    python=$(find_python)
    version=$("$python" --version)
    say "Making $venv with $version"
    "$python" -m venv "$venv" || die "cannot make $venv. On Debian: apt-get install python3.11-venv"
  fi
  for file in "$@"; do
    stamp=$venv/installed-$(basename "$file")
    # The stamp is written last, so an installation that was interrupted is done again.
    if ! cmp --silent "$REPO_ROOT/$file" "$stamp"; then
      say "Installing $file (about 1 GB to download the first time)"
      "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$REPO_ROOT/$file" ||
        die "pip could not install $file; its message is above"
      cp "$REPO_ROOT/$file" "$stamp"
    fi
  done
  export PATH=$venv/bin:$PATH
}

# fresh_folder FOLDER: an empty folder; one that is there already is kept under the next free number.
fresh_folder() {
  local number=1
  if [[ -e $1 ]]; then
    while [[ -e $1.$number ]]; do number=$((number + 1)); done
    mv "$1" "$1.$number"
    printf 'kept the last run as %s\n' "$1.$number"
  fi
  mkdir -p "$1"
}

# Print the usage lines of the script that was called, its second line and those that go on indented; end with code 2.
usage() {
  sed -n -e '2s/^# //p' -e '3,9{/^#    /s/^# //p}' "$0" >&2
  exit 2
}

# require_file NAME PATH: print the file's absolute path; end when there is no such file. NAME is the argument's.
require_file() {
  [[ -f $2 && -r $2 ]] || die "$1: '$2' is not a file that can be read"
  realpath -- "$2"
}

# require_dir NAME PATH: the same for a folder.
require_dir() {
  [[ -d $2 && -r $2 && -x $2 ]] || die "$1: '$2' is not a folder that can be read"
  realpath -- "$2"
}

# run_logged LOG COMMAND [ARGUMENT...]: run with all output in LOG; when it fails, show the log's end and end too.
run_logged() {
  local log=$1
  shift
  "$@" >"$log" 2>&1 && return
  tail -n 20 "$log" >&2
  die "the command above failed; all of its output is in $log"
}

# Put the Python of .venv on the PATH, unless the user has activated an environment.
use_python() {
  if [[ -z ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} && -x $REPO_ROOT/.venv/bin/python ]]; then
    export PATH=$REPO_ROOT/.venv/bin:$PATH
  fi
  command -v python >/dev/null || die "no python on the PATH. Activate the environment that requirements.txt is in"
}

# require_number NAME VALUE: print the integer, at least 0; end when it is not one.
require_number() {
  [[ $2 =~ ^[0-9]+$ ]] || die "$1: '$2' is not an integer of at least 0"
  printf '%s\n' "$2"
}

# require_positive NAME VALUE: print the integer, at least 1; end when it is not one.
require_positive() {
  [[ $2 =~ ^[1-9][0-9]*$ ]] || die "$1: '$2' is not an integer of at least 1"
  printf '%s\n' "$2"
}

# require_weights NAME PATH: as require_file, but an empty PATH stands for random weights.
require_weights() {
  [[ -z $2 ]] || require_file "$1" "$2"
}

# require_backbone NAME: print the name; end when there is no such backbone.
require_backbone() {
  case $1 in
    resnet_v1.5_50 | resnet_v1_50 | resnet_v1_101 | resnet_v1_152 | resnet_caffe_101 | resnet_caffe_152)
      printf '%s\n' "$1"
      ;;
    *)
      die "BACKBONE: '$1' is not one of resnet_v1.5_50, resnet_v1_50, resnet_v1_101, resnet_v1_152, \
resnet_caffe_101, resnet_caffe_152"
      ;;
  esac
}

# read_options [ARGUMENT...]: split what follows the required arguments, [MINDRECORD_DIR] [--detach] [--key=value ...],
# into the array options, flags for the Python program, and the variable detach. Paths are the caller's.
read_options() {
  detach=false
  options=()
  if [[ $# -gt 0 && $1 != --* ]]; then
    [[ -z $1 ]] || options+=(--mindrecord_dir="$(realpath -m -- "$1")")
    shift
  fi
  local argument
  for argument in "$@"; do
    case $argument in
      --detach) detach=true ;;
      --config_path=?* | --anno_path=?* | --val_anno_path=?* | --image_dir=?* | --mindrecord_dir=?* | \
        --save_checkpoint_path=?* | --eval_output_path=?*)
        options+=("${argument%%=*}=$(realpath -m -- "${argument#*=}")")
        ;;
      --?*=*) options+=("$argument") ;;
      *) usage ;;
    esac
  done
}

# choose_flags FLAG...: join a launcher's flags and the user's options in the array flags. What the launcher has chosen
# by itself, not by its arguments, gives way to the user's own flag. The program refuses any other flag given twice.
choose_flags() {
  local flag key option
  flags=()
  for flag in "$@"; do
    key=${flag%%=*}
    for option in "${options[@]/#--distribute=/--run_distribute=}"; do
      if [[ $key == --device_target || $key == --run_distribute ]] && [[ $option == "$key"=* ]]; then continue 2; fi
    done
    flags+=("$flag")
  done
  flags+=("${options[@]}")
}

# Run folders lie beside scripts/, or where RUN_ROOT says: in a container, in the folder that outlives it.
RUN_ROOT=${RUN_ROOT:-$REPO_ROOT}

# launch FOLDER LOG PROGRAM [FLAG...]: run a Python program of this project with these flags and the options of
# read_options in a fresh FOLDER, its output on the screen and in LOG, with a link called log beside it. The exit code
# is the program's, and signals reach the program itself, which takes this shell's place. With detach it runs on in the
# background, output in LOG alone.
launch() {
  local folder=$RUN_ROOT/$1 log=$2 program=$REPO_ROOT/$3
  choose_flags "${@:4}"
  use_python
  fresh_folder "$folder"
  cd "$folder"
  ln -s "$log" log
  if [[ $detach == true ]]; then
    setsid nohup python "$program" "${flags[@]}" >"$log" 2>&1 </dev/null &
    printf 'process %s runs in the background; its output goes to %s\n' "$!" "$folder/$log"
  else
    # shellcheck disable=SC2312 # a tee that fails has said so on the screen; the exit code is the program's
    exec python "$program" "${flags[@]}" > >(exec tee -i "$log") 2>&1
  fi
}

# read_hosts DEVICE_NUM: the hosts of a distributed run and this one's number among them, from NNODES, NODE_RANK,
# MASTER_ADDR and MASTER_PORT, as the array of msrun's flags `cluster`, and the ranks of this host, first_rank and
# device_num.
read_hosts() {
  device_num=$1
  local nodes node_rank address=127.0.0.1 port=${MASTER_PORT:-}
  use_python
  nodes=$(require_positive NNODES "${NNODES:-1}")
  node_rank=$(require_number NODE_RANK "${NODE_RANK:-0}")
  [[ $node_rank -lt $nodes ]] || die "NODE_RANK is $node_rank, but the hosts are 0 to $((nodes - 1)): NNODES is $nodes"
  if [[ $nodes -eq 1 ]]; then
    # A free one: two runs on one machine must not share a port.
    [[ -n $port ]] || port=$(python -c \
      'import socket; probe = socket.socket(); probe.bind(("127.0.0.1", 0)); print(probe.getsockname()[1])')
  else
    [[ -n ${MASTER_ADDR:-} ]] || die "NNODES is $nodes: set MASTER_ADDR to the address of the host with NODE_RANK 0"
    address=$MASTER_ADDR
  fi
  first_rank=$((node_rank * device_num))
  cluster=(--worker_num="$((nodes * device_num))" --local_worker_num="$device_num" --node_rank="$node_rank"
    --master_addr="$address" --master_port="${port:-8118}")
}

# read_rank_table FILE: the same from a rank table, the JSON of hccl_tools; the processes see this host's devices alone.
read_rank_table() {
  local lines values
  use_python
  lines=$(python "$REPO_ROOT/scripts/rank_table.py" "$1" "${NODE_RANK:-}") || exit 1
  mapfile -t values <<<"$lines"
  NNODES=${values[0]} NODE_RANK=${values[1]}
  export ASCEND_RT_VISIBLE_DEVICES=${values[3]}
  MASTER_ADDR=${MASTER_ADDR:-${values[4]}}
  read_hosts "${values[2]}"
}

# launch_ranks FOLDER LOG PROGRAM [FLAG...]: as launch, but as several processes that train together, by msrun, rank i
# in a fresh FOLDER{i} with its own LOG and a link called log. The screen shows the first rank of this host; when a rank
# fails, the others are ended, the end of its log is shown, and the exit code is not 0.
launch_ranks() {
  local rank_folder=$RUN_ROOT/$1 log=$2 program=$REPO_ROOT/$3 rank lock flag
  choose_flags "${@:4}"
  for flag in "${flags[@]}"; do
    [[ ! $flag =~ ^--(run_)?distribute=[Ff]alse$ ]] ||
      die "$flag: these processes train together; run_standalone_train_*.sh trains alone"
  done
  command -v msrun >/dev/null || die "no msrun on the PATH. It comes with MindSpore: activate that environment"
  export RANK_LOGS=$rank_folder$first_rank/msrun
  # A run that goes on would find the folders of this one under the old names.
  if [[ -e $RANK_LOGS/lock ]] && ! flock --nonblock "$RANK_LOGS/lock" true; then
    die "a run is still going on in $rank_folder$first_rank; wait for it or stop it, or set RUN_ROOT to another folder"
  fi
  for ((rank = first_rank; rank < first_rank + device_num; rank++)); do
    fresh_folder "$rank_folder$rank"
    ln -s "$log" "$rank_folder$rank/log"
    : >"$rank_folder$rank/$log"
  done
  mkdir "$RANK_LOGS"
  # Held by this shell and all that it starts.
  exec {lock}>"$RANK_LOGS/lock"
  flock "$lock"
  # Ranks wait for one that evaluates or compiles longer; a dead one is noticed by its host, or by the scheduler after
  # MS_NODE_TIMEOUT seconds without a sign of life.
  export MS_CPU_COMM_OP_TIMEOUT=${MS_CPU_COMM_OP_TIMEOUT:-86400} HCCL_EXEC_TIMEOUT=${HCCL_EXEC_TIMEOUT:-7200}
  export HCCL_CONNECT_TIMEOUT=${HCCL_CONNECT_TIMEOUT:-600} MS_NODE_TIMEOUT=${MS_NODE_TIMEOUT:-30}
  local command=(msrun "${cluster[@]}" --log_dir="$RANK_LOGS" --join=True "$REPO_ROOT/scripts/rank_worker.py"
    "$rank_folder" "$log" "$program" "${flags[@]}")
  if [[ $detach == true ]]; then
    (
      trap '' HUP
      watch_ranks "$rank_folder" "$log" "${command[@]}"
    ) >"$RANK_LOGS/launcher.log" 2>&1 </dev/null &
    printf 'process %s runs in the background; the output of rank i goes to %s\n' "$!" "$rank_folder{i}/$log"
  else
    watch_ranks "$rank_folder" "$log" "${command[@]}"
  fi
}

# watch_ranks FOLDER LOG COMMAND...: run msrun, showing the log of this host's first rank; see launch_ranks.
watch_ranks() {
  local folder=$1 name=$2 launcher code=0 signalled=0 rank how
  shift 2
  # In a session of its own: msrun knows one signal alone, and dies of the others without its ranks.
  setsid "$@" >"$RANK_LOGS/msrun.log" 2>&1 &
  launcher=$!
  [[ $detach == true ]] || trap 'signalled=129; stop_ranks "$launcher"' HUP
  trap 'signalled=143; stop_ranks "$launcher"' TERM
  trap 'signalled=130; stop_ranks "$launcher"' INT
  tail --pid="$launcher" -n +1 -f "$folder$first_rank/$name" &
  wait "$launcher" || code=$?
  wait || true
  if [[ $signalled -ne 0 ]]; then
    exit "$signalled"
  elif [[ -s $RANK_LOGS/failures ]]; then
    read -r rank how <"$RANK_LOGS/failures"
    printf '\nthe end of %s:\n' "$folder$rank/$name" >&2
    tail -n 20 "$folder$rank/$name" >&2
    die "rank $rank $how, and the others were ended; the end of its log is above"
  elif [[ $code -ne 0 ]]; then
    tail -n 20 "$RANK_LOGS/msrun.log" >&2
    die "msrun ended with code $code, although no rank of this host failed; more is in $RANK_LOGS"
  fi
}

# stop_ranks PID: end msrun, which ends its ranks when it is interrupted, though not while it starts; so ask again.
stop_ranks() {
  local attempt
  for ((attempt = 0; attempt < 30; attempt++)); do
    kill -INT "$1" 2>/dev/null || return 0
    sleep 1
  done
  kill -KILL "$1"
}
