"""How messages count, list and shorten."""

import pytest

from src.common.wording import MAX_LISTED, count_of, listed, listed_below, short

NAMES = [f"n{number}" for number in range(12)]


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ((0, "image"), "0 images"),
        ((1, "image"), "1 image"),
        ((2, "box", "boxes"), "2 boxes"),
        ((1, "box", "boxes"), "1 box"),
    ],
)
def test_a_number_with_its_noun(arguments, expected):
    assert count_of(*arguments) == expected


def test_names_on_one_line():
    assert listed([]) == ""
    assert listed(["a"]) == "a"
    assert listed(["a", "b"], separator=" or ") == "a or b"
    assert listed(NAMES[:MAX_LISTED]) == "; ".join(NAMES[:10])
    assert listed(NAMES) == "; ".join(NAMES[:10]) + " and 2 more"
    assert listed(NAMES, most=1, separator=", ") == "n0 and 11 more"


def test_names_on_lines_of_their_own():
    assert listed_below([]) == ""
    assert listed_below(["a", "b"]) == "\n  a\n  b"
    assert listed_below(NAMES, most=2) == "\n  n0\n  n1\n  and 10 more"
    assert listed_below(NAMES).count("\n") == MAX_LISTED + 1


def test_long_strings_are_cut():
    assert short("a" * 80) == "a" * 80
    assert short("a" * 81) == "a" * 80 + "..."
