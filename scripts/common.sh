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
  local venv=$REPO_ROOT/.venv python file stamp
  if [[ ! -x $venv/bin/python ]]; then
    python=$(find_python)
    say "Making $venv with $("$python" --version)"
    "$python" -m venv "$venv" || die "cannot make $venv. On Debian: apt-get install python3.11-venv"
  fi
  for file in "$@"; do
    stamp=$venv/installed-$(basename "$file")
    # The stamp is written last, so an installation that was broken off is taken up again.
    if ! cmp --silent "$REPO_ROOT/$file" "$stamp"; then
      say "Installing $file (about 1 GB to download the first time)"
      "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$REPO_ROOT/$file" ||
        die "pip could not install $file; its message stands above"
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

# require_number NAME TEXT: print the whole number from 0; end when it is none.
require_number() {
  [[ $2 =~ ^[0-9]+$ ]] || die "$1: '$2' is not a whole number from 0"
  printf '%s\n' "$2"
}

# require_weights NAME PATH: as require_file, but an empty PATH stands for random weights.
require_weights() {
  [[ -z $2 ]] || require_file "$1" "$2"
}

# require_backbone NAME: print the name; end when there is no such backbone.
require_backbone() {
  case $1 in
    resnet_v1.5_50 | resnet_v1_50 | resnet_v1_101 | resnet_v1_152) printf '%s\n' "$1" ;;
    *) die "BACKBONE: '$1' is none of resnet_v1.5_50, resnet_v1_50, resnet_v1_101, resnet_v1_152" ;;
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
      --config_path=* | --image_dir=* | --save_checkpoint_path=* | --eval_output_path=*)
        options+=("${argument%%=*}=$(realpath -m -- "${argument#*=}")")
        ;;
      --?*=*) options+=("$argument") ;;
      *) usage ;;
    esac
  done
}

# launch FOLDER LOG PROGRAM [FLAG...]: run a Python program of this project in a fresh FOLDER beside scripts/, its output
# on the screen and in LOG, with a link called log beside it; the exit code is the program's. With detach it runs on in
# the background, output in LOG alone.
launch() {
  local folder=$REPO_ROOT/$1 log=$2 program=$REPO_ROOT/$3
  shift 3
  use_python
  fresh_folder "$folder"
  cd "$folder"
  ln -s "$log" log
  if [[ $detach == true ]]; then
    setsid nohup python "$program" "$@" >"$log" 2>&1 </dev/null &
    printf 'process %s runs in the background; its output goes to %s\n' "$!" "$folder/$log"
  else
    python "$program" "$@" 2>&1 | tee "$log"
  fi
}
