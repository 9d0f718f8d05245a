"""How messages count, list and shorten."""

from collections.abc import Sequence

MAX_LISTED = 10  # names in one message
_MAX_TEXT = 80  # characters of a faulty line shown


def count_of(number: int, word: str, plural: str = "") -> str:
    """A number with its noun: "1 box", "2 boxes"."""
    return f"{number} {word if number == 1 else plural or word + 's'}"


def listed(names: Sequence[str], most: int = MAX_LISTED, separator: str = "; ") -> str:
    """The first few names on one line, and how many more there are."""
    return separator.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def listed_below(names: Sequence[str], most: int = MAX_LISTED) -> str:
    """The first few names, each on an indented line of its own, and how many more there are."""
    rest = [f"and {len(names) - most} more"] if len(names) > most else []
    return "".join(f"\n  {line}" for line in [*names[:most], *rest])


def short(text: str) -> str:
    """A string cut to what a message can hold."""
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "..."
