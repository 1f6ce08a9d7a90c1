"""Compiled loops side by side, on the threads that torch has.

After each of its parallel operations torch's threads wait for the next one at full speed, for some 20 milliseconds. On
two cores two more threads beside them gained nothing. So the loops are given to torch's own threads, by that function
of its OpenMP library which a compiled parallel region calls.
"""

import ctypes
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from minidsv4.fast.compiled.numba_loops import loops

OF_TORCH = Path(torch.__file__).parent / "lib", Path(torch.__file__).parents[1] / "torch.libs"
ADDRESSES = "GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads"  # of what a team needs


class _Process:
    """Which process this is: in a child of `os.fork` the threads of a team are gone, and a call would wait for them."""

    forked = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: setattr(_Process, "forked", True))


def with_threads(work: Callable, per_token: list[np.ndarray], *shared: object) -> None:
    """Call the compiled loop `work` on as many shares of the tokens as torch uses threads, at once.

    One share goes the same way: sums compiled for a team may be taken in another order than those of `work` alone.

    per_token  arrays whose first axis is cut: tokens; or one row a share, where each has room of its own
    raises     RuntimeError if a share of a team failed; elsewhere what `work` raised
    """
    n_shares = max(1, min(torch.get_num_threads(), len(per_token[0])))
    addresses = addresses_of_team()
    if addresses is None:
        in_threads_of_python(work, n_shares, per_token, shared)
        return
    team = loops("team").in_team(work, len(per_token))
    if _Process.forked:
        in_threads_of_python(lambda *given: team(addresses, 1, given), n_shares, per_token, shared)
    else:
        team(addresses, n_shares, (*per_token, *shared))


def in_threads_of_python(work: Callable, n_shares: int, per_token: list[np.ndarray], shared: tuple) -> None:
    """`with_threads` where there is no team; the first failure is raised when all shares are done."""
    shares = list(zip(*(np.array_split(part, n_shares) for part in per_token)))
    if n_shares == 1:
        work(*shares[0], *shared)
        return
    with ThreadPoolExecutor(n_shares) as pool:
        made = [pool.submit(work, *share, *shared) for share in shares]
    for one in made:
        one.result()


@functools.cache
def addresses_of_team() -> tuple[int, ...] | None:
    """Where ADDRESSES are in the library of torch's threads; None where it has none."""
    library = gnu_openmp()
    if library is None:
        return None
    return tuple(ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in ADDRESSES)


def gnu_openmp(maps: Path = Path("/proc/self/maps")) -> ctypes.CDLL | None:
    """The GNU OpenMP library that torch brought along and has loaded; None where there is no such library."""
    try:
        lines = maps.read_text(encoding="utf-8").splitlines()
        paths = [Path(line.split(maxsplit=5)[5]) for line in lines if "libgomp" in line]
        return next((ctypes.CDLL(str(path)) for path in paths if path.parent in OF_TORCH), None)
    except OSError:
        return None
