#!/bin/bash
# Usage: run_tests.sh [pytest arguments]
# Makes .venv with the development requirements, runs the linters and the tests. -m slow runs the long ones,
# -m "" all of them.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ensure_venv requirements.txt requirements-dev.txt
cd "$REPO_ROOT"
say "Linters"
ruff check .
git ls-files -z '*.sh' .ci/run | xargs -0 shellcheck
hadolint Dockerfile
say "Tests"
exec python -m pytest "$@"
