#!/bin/bash
# Usage: run.sh [--coco_root=FOLDER] [--onnx=FILE] [--only=GROUP] [--turns=N] [--threads=N] [--output=FOLDER]
# Measures this project beside torchvision on this machine's processor; --only=GROUP for a part of it. Makes
# .venv-peer with torch and torchvision (about 6 GB); the table and all results land in benchmarks/results/.
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/common.sh"

cd "$REPO_ROOT"
ensure_venv requirements.txt
peer=$REPO_ROOT/.venv-peer
if ! "$peer/bin/python" -c 'import torchvision' 2>/dev/null; then
  say "Making $peer with torch and torchvision (about 6 GB)"
  python -m venv "$peer"
  "$peer/bin/python" -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements-peer.txt ||
    die "pip could not install torch and torchvision; its message stands above"
fi
exec python benchmarks/run.py --peer_python="$peer/bin/python" "$@"
