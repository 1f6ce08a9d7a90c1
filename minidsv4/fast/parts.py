"""Rows in parts that stay in the processor's cache from one pass over them to the next."""

from collections.abc import Iterator

from torch import Tensor

NUMBERS = 1 << 16  # of one part


def parts(rows: Tensor) -> Iterator[slice]:
    """Slices of the first axis that hold about `NUMBERS` numbers each."""
    size = max(1, NUMBERS * len(rows) // max(1, rows.numel()))
    for first in range(0, len(rows), size):
        yield slice(first, first + size)
