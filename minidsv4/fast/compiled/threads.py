"""Compiled loops side by side, on the threads that torch has.

After each of its parallel operations torch's threads wait for the next one at full speed, for some 20 milliseconds. On
two cores two more threads beside them gained nothing. So the loops are given to torch's own threads, by that function
of its OpenMP library which a compiled parallel region calls.
"""

import ctypes
import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

OF_TORCH = Path(torch.__file__).parent / "lib", Path(torch.__file__).parents[1] / "torch.libs"
MEMBER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)  # what every thread of a team calls


class _Process:
    """Which process this is: in a child of `os.fork` the threads of a team are gone, and a call would wait for them."""

    forked = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: setattr(_Process, "forked", True))


def with_threads(work: Callable, per_token: list[np.ndarray], *shared: object) -> None:
    """Call `work` on as many shares of the tokens as torch uses threads, at once; compiled loops run side by side."""
    n_shares = min(torch.get_num_threads(), len(per_token[0]))
    if n_shares <= 1:
        work(*per_token, *shared)
        return
    shares = zip(*(np.array_split(part, n_shares) for part in per_token))
    at_once([functools.partial(work, *share, *shared) for share in shares])


def at_once(calls: Sequence[Callable[[], object]]) -> None:
    """Make all calls, side by side where there are threads for it; the first failure is raised when all are made."""
    library = None if _Process.forked else gnu_openmp()
    if library is None:
        with ThreadPoolExecutor(len(calls)) as pool:
            made = [pool.submit(call) for call in calls]
        for one in made:
            one.result()
        return
    left, failures = iter(calls), []

    def make_what_is_left(_data: int | None = None) -> None:
        try:
            for call in left:
                try:
                    call()
                except BaseException as error:
                    failures.append(error)
        except BaseException as error:  # Ctrl-C between two calls
            failures.append(error)

    # as many members as torch's own teams have: one of another size would end threads and make them anew
    library.GOMP_parallel(MEMBER(make_what_is_left), None, 0, 0)
    make_what_is_left()  # nothing, but where an interrupt kept the team from it
    if failures:
        raise failures[0]


@functools.cache
def gnu_openmp(maps: Path = Path("/proc/self/maps")) -> ctypes.CDLL | None:
    """The GNU OpenMP library that torch brought along and has loaded; None where there is no such library."""
    try:
        lines = maps.read_text(encoding="utf-8").splitlines()
        paths = [Path(line.split(maxsplit=5)[5]) for line in lines if "libgomp" in line]
        return next((ctypes.CDLL(str(path)) for path in paths if path.parent in OF_TORCH), None)
    except OSError:
        return None
