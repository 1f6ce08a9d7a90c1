"""What a step shows of a variable: a small plain form that JSON holds, each different value written once.

Numbers keep four significant digits. An array keeps its shape and all of its numbers; a list keeps its items; of a
dictionary of tensors the names and shapes remain; anything else is a short text.
"""

import numbers
from collections.abc import Mapping

import numpy as np

DIGITS = 4


class Values:
    """A growing table of plain values; equal values share a row.

    rows  list of dictionaries: {"shape", "numbers"}, {"number"}, {"items": rows' indices}, {"tensors"} or {"text"}
    """

    def __init__(self):
        self.rows = []
        self._known = {}
        self._tables = []  # kept, so that no later object gets the identity of one of them

    def add(self, value):
        """The row's index of a value, which is copied: it may change later."""
        if isinstance(value, list | tuple):
            return self._row("items", tuple(self.add(item) for item in value), lambda items: list(items))
        if isinstance(value, Mapping):
            self._tables.append(value)
            return self._row("tensors", id(value), lambda _: shapes(value))
        if isinstance(value, np.ndarray) and value.shape:
            key = (value.shape, value.dtype.str, value.tobytes())
            return self._row("numbers", key, lambda _: [rounded(number) for number in value.reshape(-1)], value.shape)
        if isinstance(value, numbers.Number | np.ndarray) and not isinstance(value, bool):
            return self._row("number", float(value), lambda _: rounded(value))
        return self._row("text", spelled(value), lambda text: text)

    def _row(self, kind, key, plain, shape=None):
        """The index of the row with this key, which is made where there is none."""
        if (kind, key) not in self._known:
            self._known[kind, key] = len(self.rows)
            self.rows.append({kind: plain(key)} if shape is None else {"shape": list(shape), kind: plain(key)})
        return self._known[kind, key]


def shapes(tensors):
    """Name = shape of each tensor of a dictionary."""
    return {name: list(np.shape(tensor)) for name, tensor in tensors.items()}


def rounded(number):
    """A number with `DIGITS` significant digits: an int stays one; inf, which JSON lacks, is its name."""
    if isinstance(number, numbers.Integral):
        return int(number)
    number = float(f"{float(number):.{DIGITS}g}")
    return number if np.isfinite(number) else str(number)


def spelled(value):
    """A short text for what is no number, on every machine the same."""
    if callable(value):
        return f"the function {value.__name__}"
    if value is None or isinstance(value, str | bool | range):
        return repr(value)
    return f"a {type(value).__name__}"
