"""Calls scripts as a user does, with a stub in the place of the programs they start."""

import os
import subprocess
import sys

# Variables that would change what the scripts do.
VARIABLES = (
    "DEVICE_ID",
    "CUDA_VISIBLE_DEVICES",
    "ASCEND_RT_VISIBLE_DEVICES",
    "NNODES",
    "NODE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "RUN_ROOT",
)
STUB = """#!/bin/bash
# Stands for python, msrun or docker: writes down its arguments, some variables and its folder, and ends as it is told.
# What the scripts themselves ask Python is answered by the real one.
[[ $0 == */python && ( $1 == -c || $1 == */rank_table.py ) ]] && exec "$REAL_PYTHON" "$@"
printf '%s\\0' "$@" >"$RECORD/arguments"
printf '%s\\n' "${DEVICE_ID-unset}" "${CUDA_VISIBLE_DEVICES-unset}" "$PWD" >"$RECORD/environment"
env -0 >"$RECORD/variables"
# The output comes last: who sends a signal on reading it must not meet a bash that waits for env. That bash would take
# no notice of an interrupt which env has survived.
echo "the program's output"
[[ -z ${STUB_WAIT:-} ]] || exec sleep "$STUB_WAIT"
exit "${STUB_EXIT:-0}"
"""


class Caller:
    """A user in a folder with spaces, who calls scripts of a copy of the project."""

    def __init__(self, project, folder):
        self.project, self.folder = project, folder
        self.record = folder.parent / "record"
        programs = folder.parent / "stub bin"
        for made in (folder / "my coco", self.record, programs):
            made.mkdir(parents=True)
        for name in ("python", "msrun", "docker"):
            (programs / name).write_text(STUB)
            (programs / name).chmod(0o755)
        for name in ("it's.ckpt", "val.json", "mine.yaml"):
            (folder / name).write_text("")
        kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        # An activated environment: the scripts take its python.
        self.environment = kept | {
            "VIRTUAL_ENV": str(folder.parent),
            "RECORD": str(self.record),
            "REAL_PYTHON": sys.executable,
            "PATH": f"{programs}:{os.environ['PATH']}",
        }

    def __call__(self, script, *arguments, **environment):
        return subprocess.run(
            ["bash", self.project / "scripts" / script, *arguments],
            cwd=self.folder,
            check=False,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def recorded(self):
        """Arguments of the program, and DEVICE_ID, CUDA_VISIBLE_DEVICES and folder that it saw."""
        arguments = (self.record / "arguments").read_text().split("\0")[:-1]
        return arguments, (self.record / "environment").read_text().splitlines()

    def environment_of_the_stub(self):
        """Every variable that the program saw."""
        return dict(line.split("=", 1) for line in (self.record / "variables").read_text().split("\0")[:-1])
