"""Compiled loops side by side, on the threads that torch has.

After each of its parallel operations torch's threads wait for the next one at full speed, for some 20 milliseconds.
Threads beside them would share the processor's cores with waiting ones: two of two gained nothing. So the loops are
given to torch's own threads, by the function of its OpenMP library that a compiler writes for a parallel region.
"""

import ctypes
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

MEMBER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)  # what every thread of a team calls


def with_threads(work: Callable, per_token: list[np.ndarray], *shared: object) -> None:
    """Call `work` on as many shares of the tokens as torch uses threads, at once; compiled loops run side by side."""
    n_shares = min(torch.get_num_threads(), len(per_token[0]))
    if n_shares == 1:
        work(*per_token, *shared)
        return
    shares = zip(*(np.array_split(part, n_shares) for part in per_token))
    at_once([functools.partial(work, *share, *shared) for share in shares])


def at_once(calls: Sequence[Callable[[], object]]) -> None:
    """Make all calls, each in a thread of its own where there are so many; the first failure is raised at the end."""
    library = gnu_openmp()
    if library is None:
        with ThreadPoolExecutor(len(calls)) as pool:
            made = [pool.submit(call) for call in calls]
        for one in made:
            one.result()
        return
    left, failures = iter(calls), []

    def member(_data: int | None) -> None:
        for call in left:  # a team may have fewer members than were asked for
            try:
                call()
            except BaseException as error:
                failures.append(error)

    library.GOMP_parallel(MEMBER(member), None, len(calls), 0)
    if failures:
        raise failures[0]


@functools.cache
def gnu_openmp(maps: Path = Path("/proc/self/maps")) -> ctypes.CDLL | None:
    """The GNU OpenMP library that torch has loaded; none on other systems."""
    try:
        lines = maps.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    paths = [line.split(maxsplit=5)[5] for line in lines if "/torch" in line and "libgomp" in line]
    return ctypes.CDLL(paths[0]) if paths else None
