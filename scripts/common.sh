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
