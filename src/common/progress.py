"""Progress of a loop: a bar on a terminal, some plain lines elsewhere."""

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

LOGGER = logging.getLogger(__name__)

PLAIN_LINES = 10  # about so many where there is no terminal

Item = TypeVar("Item")


def with_progress(items: Iterable[Item], total: int, what: str, units: str) -> Iterator[Item]:
    """Pass items on and show how far the loop over them is.

    Args:
        items (Iterable): what the loop runs over.
        total (int): how many they will be; 0 if that is not known, which shows no plain lines.
        what (str): the loop's name, such as "evaluation".
        units (str): several items, such as "batches".

    Yields:
        the items, unchanged.
    """
    if sys.stderr.isatty():
        yield from tqdm(items, total=total or None, desc=what, unit=f" {units}")
        return
    every = max(1, -(-total // PLAIN_LINES))
    for number, item in enumerate(items, start=1):
        yield item
        if total and number % every == 0:
            LOGGER.info("%s: %d of %d %s", what, number, total, units)
