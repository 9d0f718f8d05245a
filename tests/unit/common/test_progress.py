"""Progress of a loop: plain lines in a log or a pipe, a bar on a terminal."""

import contextlib
import logging
import os
import pty
import subprocess
import sys
import termios

import pytest

from src.common.progress import with_progress
from tests.helpers import REPO_ROOT

PROGRAM = """
from src.common.progress import with_progress
from src.runtime import setup_logging
setup_logging()
for _ in with_progress(range(20), 20, "counting", "images"):
    pass
"""


def lines(caplog, items, total):
    with caplog.at_level(logging.INFO):
        assert list(with_progress(items, total, "counting", "images")) == list(items)
    return caplog.messages


@pytest.mark.parametrize(
    "total, shown",
    [
        (0, []),
        (1, [1]),
        (3, [1, 2, 3]),
        (10, [*range(1, 11)]),
        (11, [2, 4, 6, 8, 10]),
        (100, [*range(10, 101, 10)]),
        (1005, [*range(101, 1000, 101)]),
    ],
)
def test_at_most_ten_plain_lines(caplog, total, shown):
    assert lines(caplog, range(total), total) == [f"counting: {number} of {total} images" for number in shown]


def test_an_unknown_number_of_items_has_no_lines(caplog):
    assert lines(caplog, [7, 8, 9], 0) == []


def test_a_line_says_what_is_done_not_what_has_begun(caplog):
    with caplog.at_level(logging.INFO):
        progress = with_progress("ab", 2, "counting", "letters")
        assert next(progress) == "a"
        assert caplog.messages == []
        assert next(progress) == "b"
        assert caplog.messages == ["counting: 1 of 2 letters"]


def test_a_loop_that_is_left_says_no_more(caplog):
    with caplog.at_level(logging.INFO):
        for number in with_progress(range(4), 4, "counting", "images"):
            if number == 1:
                break
    assert caplog.messages == ["counting: 1 of 4 images"]


def run(stderr):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=REPO_ROOT, stdout=subprocess.PIPE, stderr=stderr, check=True, timeout=60
    )


def test_a_pipe_gets_plain_lines():
    done = run(subprocess.PIPE)
    assert done.stderr == b""
    assert done.stdout.decode().count("counting: ") == 10
    assert b"counting: 20 of 20 images\n" in done.stdout


def read_to_the_end(master):
    """All that was written to a terminal that has been closed: reading on is an error then."""
    shown = b""
    with contextlib.suppress(OSError):
        while data := os.read(master, 4096):
            shown += data
    return shown.decode()


def test_a_terminal_gets_a_bar():
    master, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    try:
        done = run(terminal)
        os.close(terminal)
        shown = read_to_the_end(master)
    finally:
        os.close(master)
    assert done.stdout == b""
    assert "\rcounting: " in shown
    assert "100%" in shown and "20/20" in shown and " images/s" in shown
