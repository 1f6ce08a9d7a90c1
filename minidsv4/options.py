"""Types of the commands' options for argparse, whose refusals name the value and what would be right; how they end."""

import argparse
import math
import os
import re
import reprlib
import shlex
from collections.abc import Callable
from numbers import Integral, Real
from pathlib import Path
from typing import TextIO, TypeVar

T = TypeVar("T")

READER_GONE = 141  # the exit code that a shell has for SIGPIPE
MOST = 999_999_999  # whatever is counted
MOST_THREADS = 1024
MOST_MINUTES = 1e6  # nearly two years


def whole(least: int, most: int = MOST) -> Callable[[str], int]:
    """The type of whole numbers in a range, both ends in it."""

    def read(text: str) -> int:
        digits = text.removeprefix("-")
        number = int(text) if digits.isdecimal() and len(digits) <= 20 else None
        if number is None or not least <= number <= most:
            raise argparse.ArgumentTypeError(
                f"{reprlib.repr(text)} cannot be; give a whole number from {least} to {most}"
            )
        return number

    return read


def above_0(most: float) -> Callable[[str], float]:
    """The type of finite numbers above 0, up to the most that makes sense."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not 0 < number <= most:
            raise argparse.ArgumentTypeError(
                f"{reprlib.repr(text)} cannot be; give a number above 0, at most {most:,.0f}"
            )
        return number

    return read


def checked(convert: Callable[[str], T], check: Callable[[T], T]) -> Callable[[str], T]:
    """The type of what a function called with it takes: the text is converted, then checked by the function's rule.

    A refusal begins with the value: the names of command and option, which a rule tells as well, stand before it.
    """

    def read(text: str) -> T:
        try:
            return check(convert(text))
        except ValueError as error:
            raise argparse.ArgumentTypeError(re.sub(r"^\w+: \w+ = ", "", str(error))) from None

    return read


def folder(text: str) -> str:
    """The type of folders: any name but an empty one, which would be the folder one stands in."""
    if not text:
        raise argparse.ArgumentTypeError("'' names no folder; give its name, or . for the one you are in")
    return text


def check_memory(memory: float | str | None, field: str = "load: memory") -> float:
    """Bytes, from a number of them or a text such as '8 GB'; no limit where None.

    raises  ValueError for what is no amount
    """
    if memory is None:
        return math.inf
    if isinstance(memory, Real) and not isinstance(memory, bool) and memory > 0:
        return int(memory) if isinstance(memory, Integral) else float(memory)
    amount = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*([kMGT]?)(i?)B?\s*", str(memory), re.IGNORECASE)
    if not isinstance(memory, str) or amount is None or not float(amount[1]):
        raise ValueError(f"{field} = {reprlib.repr(memory)} is no amount; give bytes, or such as '8 GB' or '500 MB'")
    return float(amount[1]) * (1024 if amount[3] else 1000) ** " KMGT".index(amount[2].upper() or " ")


def readable(n_bytes: float) -> str:
    """'1.3 MB': three digits and the fitting unit, of 1000 each."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 999.5:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.3g} TB" if n_bytes < 999.5 else f"{n_bytes:,.0f} TB"


seed = whole(-(2**63), 2**63 - 1)
count = whole(1)
minutes = above_0(MOST_MINUTES)


def pasted(path: str | Path) -> str:
    """A path as it is to be typed into a shell: quoted where need be, and never like an option."""
    text = str(path)
    return shlex.quote(os.path.join(".", text) if text.startswith("-") else text)


def close(stream: TextIO) -> None:
    """What is still to be written goes nowhere: its reader has gone, and Python would complain at its end."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError):  # no file, as under pytest
        return
