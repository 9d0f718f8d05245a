"""Contenders in processes of their own, so that no library disturbs another, which run in turns.

A contender is a function in a file of this folder: it takes its settings and returns a function to be timed and a
dictionary of notes. A run that returns a number has timed itself. The process that holds it is this file, run by the
contender's own Python.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Contender:
    """Who runs.

    Attributes:
        name (str): in the table; the first contender of a comparison is ours.
        python (str): the interpreter that has its libraries.
        function (str): FILE:NAME, in this folder.
        settings (dict): its arguments, plain values.
        environment (dict): variables that it runs with, beside those of this process.
    """

    name: str
    python: str
    function: str
    settings: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)


class Worker:
    """A contender in its process, warmed up by one run."""

    def __init__(self, contender: Contender, num_threads: int):
        threads = dict.fromkeys(THREAD_VARIABLES, str(num_threads))
        self.process = subprocess.Popen(
            [
                contender.python,
                __file__,
                contender.function,
                json.dumps(contender.settings | {"num_threads": num_threads}),
            ],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | threads | {"PYTHONPATH": str(FOLDER.parent)} | contender.environment,
        )
        self.name = contender.name
        self.notes = self._answer()

    def seconds(self) -> float:
        """Seconds of one more run."""
        return self._ask("run")["seconds"]

    def stop(self) -> int:
        """End the process; returns the bytes that it held at most."""
        peak = self._ask("stop")["peak_bytes"]
        self.process.wait()
        return peak

    def _ask(self, question: str) -> dict:
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        # Libraries write to the standard output too; answers are the lines that begin with the mark.
        for line in self.process.stdout:
            if line.startswith(MARK):
                return json.loads(line[len(MARK) :])
        raise SystemExit(f"the contender {self.name} has ended without an answer; its message is above")


MARK = "@answer "


def compare(contenders: Sequence[Contender], turns: int, num_threads: int) -> list[dict]:
    """Run contenders in turns.

    Args:
        contenders (Sequence[Contender]): ours first.
        turns (int): runs of each, after one to warm up.
        num_threads (int): of each.

    Returns:
        list of dict, one per contender: ``name``, ``seconds`` of its runs, ``median_s``, ``spread_s`` (between
        the quartiles), ``peak_bytes``, ``notes``; and ``ratio``, the median over turns of ours / this one.
    """
    workers = [Worker(contender, num_threads) for contender in contenders]
    times = [[worker.seconds() for worker in workers] for _ in range(turns)]
    rows = []
    for index, worker in enumerate(workers):
        own = [turn[index] for turn in times]
        low, _, high = statistics.quantiles(own, n=4) if turns > 1 else own * 3
        rows.append(
            {
                "name": worker.name,
                "seconds": own,
                "median_s": statistics.median(own),
                "spread_s": high - low,
                "ratio": statistics.median(turn[0] / turn[index] for turn in times),
                "notes": worker.notes,
                "peak_bytes": worker.stop(),
            }
        )
    return rows


def serve() -> None:
    """Be a worker: build the contender, run it once, then once for every line that arrives."""
    function, settings = sys.argv[1], json.loads(sys.argv[2])
    file, name = function.split(":")
    module = importlib.import_module(f"benchmarks.{file}")
    start = time.perf_counter()
    run, notes = getattr(module, name)(**settings)
    run()
    answer({**notes, "first_run_s": time.perf_counter() - start})
    for line in sys.stdin:
        if line.strip() == "stop":
            break
        start = time.perf_counter()
        own = run()
        answer({"seconds": own if isinstance(own, float) else time.perf_counter() - start})
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    answer({"peak_bytes": peak * 1024})


def answer(values: dict) -> None:
    """One line for the process that asked."""
    sys.stdout.write(f"{MARK}{json.dumps(values)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve()
