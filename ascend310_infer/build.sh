#!/bin/bash
# Usage: build.sh
# Builds ascend310_infer/build/main against the MindSpore Lite at MS_LITE_HOME, else the one of install_cpp_tools.sh.
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/common.sh"

[[ $# -eq 0 ]] || usage
for tool in cmake g++; do
  command -v "$tool" >/dev/null || die "$tool is not installed. Run: bash scripts/install_cpp_tools.sh"
done
lite=${MS_LITE_HOME:-$REPO_ROOT/.mindspore-lite}
[[ -d $lite ]] || die "no MindSpore Lite at '$lite'. Set MS_LITE_HOME, or run: bash scripts/install_cpp_tools.sh"
lite=$(realpath -- "$lite")
processors=$(nproc)
cmake -S "$REPO_ROOT/ascend310_infer" -B "$REPO_ROOT/ascend310_infer/build" -DMS_LITE_HOME="$lite"
cmake --build "$REPO_ROOT/ascend310_infer/build" --parallel "$processors"
