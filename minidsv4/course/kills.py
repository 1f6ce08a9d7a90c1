"""A process that is killed in the middle of its work, for notebooks and tests that go on from what it left."""

import multiprocessing
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch


def kill_at(n_lines: int, path: str | Path, work: Callable[[], object]) -> None:
    """Run `work` in a fork of this process, and kill it (SIGKILL) as soon as a file has so many lines.

    path    of the file that the work writes
    raises  RuntimeError where the work ends before
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking where threads run: the fork has one
        process = multiprocessing.get_context("fork").Process(target=_alone, args=(work,), daemon=True)
        process.start()
    while not Path(path).exists() or Path(path).read_bytes().count(b"\n") < n_lines:
        if process.exitcode is not None:
            raise RuntimeError(f"kill_at: the work ended before {path} had {n_lines} lines")
        time.sleep(0.001)
    process.kill()
    process.join()


def _alone(work: Callable[[], object]) -> None:
    torch.set_num_threads(1)  # a fork that wants its parent's OpenMP threads waits for ever
    work()
