"""One process of a distributed run: what msrun starts, as often as there are ranks and once more for its scheduler.

Usage, by common.sh: msrun ... rank_worker.py RUN_FOLDER LOG_NAME PROGRAM [FLAG...]

A rank works in RUN_FOLDER{rank} and writes its log there, as users of the published launchers know it; msrun itself
keeps all ranks in one folder. The first rank that fails is noted, and the scheduler is ended with it: msrun kills the
other ranks by itself, but would wait for a scheduler that waits for ranks that never come.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

# Files in msrun's log folder, which common.sh names in the environment.
SCHEDULER_FILE = "scheduler.pid"
FAILURES_FILE = "failures"


def main() -> int:
    """Become the scheduler, or run a rank to its end; returns the exit code."""
    run_folder, log_name, *program = sys.argv[1:]
    logs = Path(os.environ["RANK_LOGS"])
    if os.environ["MS_ROLE"] == "MS_SCHED":
        (logs / SCHEDULER_FILE).write_text(str(os.getpid()), encoding="ascii")
        # It runs the program too, up to the place where ranks meet; its output is msrun's scheduler.log.
        os.execv(sys.executable, [sys.executable, *program])
    rank = os.environ["RANK_ID"]
    folder = Path(f"{run_folder}{rank}")
    with (folder / log_name).open("ab") as log:
        code = subprocess.run(
            [sys.executable, *program],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    if code:
        note_failure(logs, rank, code)
    # Killed by a signal is 128 + its number, as in a shell.
    return code if code >= 0 else 128 - code


def note_failure(logs: Path, rank: str, code: int) -> None:
    """Write down rank and how it ended, the first failure in the first line, and end this host's scheduler."""
    how = f"ended with code {code}" if code > 0 else f"was killed by signal {-code}"
    with (logs / FAILURES_FILE).open("a", encoding="ascii") as failures:
        failures.write(f"{rank} {how}\n")
    with suppress(FileNotFoundError, ProcessLookupError):
        os.kill(int((logs / SCHEDULER_FILE).read_text(encoding="ascii")), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
