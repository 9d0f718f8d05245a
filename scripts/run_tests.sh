#!/bin/bash
# Usage: run_tests.sh [pytest arguments]
# Makes .venv with the development requirements, runs the linters and the tests, two files at a time. -m slow runs the
# long ones, -m "" all of them; -n 0 runs one file at a time. The ten slowest are listed at the end.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ensure_venv requirements.txt requirements-dev.txt
cd "$REPO_ROOT"
say "Linters"
ruff check .
ruff format --check .
mypy
git ls-files -z '*.sh' .ci/run | xargs -0 shellcheck
hadolint Dockerfile
say "Tests"
# In the order of the folders: integration and scripts, which take longest, come first.
exec python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=10 "$@"
