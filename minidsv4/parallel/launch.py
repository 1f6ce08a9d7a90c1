"""Ranks: processes that each hold a part of the model and send each other tensors through torch.distributed.

`run_ranks(fn, n)` starts them here, also from a notebook, whose functions need no module of their own; `join()` makes
the process that calls it one of the ranks that `torchrun` started. `fn` is the same for both: it takes the group.
"""

import contextlib
import faulthandler
import importlib
import io
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import wait
from typing import Any

import torch
from torch import distributed as dist

DEVICES = {"gloo": "cpu", "nccl": "cuda", "hccl": "npu"}  # the kind of device that each backend moves tensors between
PATIENCE = 15.0  # seconds that ranks wait for one that does not come
GRACE = 2.0  # seconds for the others to say what they saw, once one rank has failed
_LOST = ("gloo", "closed by peer", "connection reset", "timed out", "broken pipe", "socket")


class RankError(RuntimeError):
    """A rank did not come to its end. `ranks` are those to blame."""

    def __init__(self, message: str, ranks: list[int]):
        super().__init__(message)
        self.ranks = ranks


class LostContact(RuntimeError):
    """What a rank raises that waited for another one in vain."""


@contextlib.contextmanager
def contact(rank: int, doing: str):
    """Around collectives: what torch says of a lost connection becomes a sentence with this rank's number."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, LostContact) or not lost_contact(error):
            raise
        reason = str(error).strip().split("\n")[0]
        raise LostContact(f"rank {rank}: while {doing}, another rank ended or did not come ({reason})") from error


def lost_contact(error: BaseException) -> bool:
    """Whether an error only says that another rank is gone."""
    said = str(error).lower()
    return isinstance(error, LostContact) or (isinstance(error, RuntimeError) and any(word in said for word in _LOST))


def device_of(backend: str) -> torch.device:
    """The device whose tensors a backend moves: this process's own by LOCAL_RANK. Only gloo has been tested.

    raises  ValueError for a backend that is not known
    """
    if backend not in DEVICES:
        raise ValueError(f"backend = {backend!r} is not known; it is one of {', '.join(DEVICES)}")
    if backend == "gloo":
        return torch.device("cpu")
    if backend == "hccl":
        importlib.import_module("torch_npu")  # registers the device and the backend
    device = torch.device(DEVICES[backend], int(os.environ.get("LOCAL_RANK", 0)))
    getattr(torch, device.type).set_device(device)
    return device


def join(backend: str = "gloo", timeout: float = PATIENCE) -> dist.ProcessGroup:
    """Become one of the ranks that torchrun started, by RANK, WORLD_SIZE and MASTER_ADDR of the environment.

    timeout  seconds to wait for another rank in one exchange
    returns  the group of all ranks: `fn(join())` does in a script what `run_ranks(fn, n)` does here
    raises   ValueError outside of torchrun
    """
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(f"join: {', '.join(missing)} not set; start with torchrun, or use run_ranks(fn, n) from here")
    device_of(backend)
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    return dist.group.WORLD


def run_ranks(fn: Callable, n: int, *args, backend: str = "gloo", timeout: float = PATIENCE) -> list[Any]:
    """Run `fn(group, *args)` on `n` new ranks and wait for all of them.

    fn       any function, a lambda or one defined in a notebook cell too; `group.rank()` tells it which rank it is
    n        number of ranks, each a process of one thread
    args     reach every rank as they are here: the ranks are forks of this process
    timeout  seconds that ranks wait for one that does not come
    returns  what `fn` returned, by rank; must be picklable. What ranks print appears at the end, rank after rank
    raises   RankError naming the ranks that raised, were killed or did not come, with their traceback; all have ended
             ValueError for n below 1, an unknown backend, or inside of a rank
    """
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"run_ranks: n = {n!r} starts nothing; it counts ranks, from 1")
    if backend not in DEVICES:
        raise ValueError(f"run_ranks: backend = {backend!r} is not known; it is one of {', '.join(DEVICES)}")
    if dist.is_available() and dist.is_initialized():
        raise ValueError("run_ranks: this process is a rank itself; call fn(group) with the group that it has")
    folder = tempfile.mkdtemp(prefix="ranks-")
    ranks: list[_Rank] = []
    try:
        for rank in range(n):
            ranks.append(_start(rank, lambda rank: _work(rank, n, fn, args, backend, timeout, folder)))
        _listen(ranks, timeout)
    finally:
        for rank in ranks:
            rank.end()
        shutil.rmtree(folder, ignore_errors=True)
    for rank in ranks:
        print(rank.report.said, end="")
    return [rank.report.result for rank in ranks]


# --- inside a rank ---


@dataclass
class _Report:
    """What a rank tells in the end; `error` is the last line of its traceback, empty if all went well."""

    result: Any = None
    said: str = ""
    error: str = ""
    trace: str = ""
    lost: bool = False


def _work(rank: int, n: int, fn: Callable, args: tuple, backend: str, timeout: float, folder: str) -> _Report:
    """Join the group, call the function."""
    torch.set_num_threads(1)  # a forked process that wants its parent's OpenMP threads waits for ever
    os.environ["LOCAL_RANK"] = str(rank)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all ranks are here, whatever this machine calls itself
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            device_of(backend)
            store = dist.FileStore(os.path.join(folder, "store"), n)
            waiting = timedelta(seconds=timeout)
            dist.init_process_group(backend, store=store, rank=rank, world_size=n, timeout=waiting)
            dist.barrier()  # whoever is quick must not be gone before the others have found it
            return _Report(fn(dist.group.WORLD, *args), said.getvalue())
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: the parent must hear of it
        line = "".join(traceback.format_exception_only(error)).strip()
        return _Report(None, said.getvalue(), line, traceback.format_exc(), lost_contact(error))


def _child(rank: int, work: Callable[[int], _Report], pipe, log) -> None:
    """The life of a rank: work, report, end without the clean-up that belongs to the process it was forked from."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and ends all ranks
    for number in (1, 2):  # gloo speaks on both; it is wanted only if the rank dies
        os.dup2(log.fileno(), number)
    faulthandler.register(signal.SIGUSR1, file=log, all_threads=False)
    report = work(rank)
    try:
        message = pickle.dumps(report)
    except Exception as error:
        problem = f"{type(error).__name__}: its result cannot be sent back ({error}); return tensors and plain values"
        message = pickle.dumps(_Report(error=problem, trace=problem))
    with contextlib.suppress(OSError, EOFError):  # the parent is gone: nobody to tell
        pipe.send_bytes(message)
        if not report.error:  # stay until all have reported: another rank may not have read yet what this one sent
            pipe.recv_bytes()
    os._exit(0)


def _end_with_parent() -> None:
    """No rank outlives the process that asked for it, not even one that computes for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


# --- outside ---


@dataclass
class _Rank:
    """A rank as its parent sees it."""

    rank: int
    process: Any
    pipe: Any
    log: Any
    report: _Report | None = None
    died: str = ""
    heard: float = field(default_factory=time.monotonic)

    @property
    def over(self) -> bool:
        return self.report is not None or bool(self.died)

    @property
    def failed(self) -> bool:
        return bool(self.died) or (self.report is not None and bool(self.report.error))

    def hear(self) -> None:
        """Take in the report, or find that there will be none."""
        self.heard = time.monotonic()
        try:
            self.report = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            self.died = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"

    @property
    def story(self) -> str:
        """What became of it, to follow its name in a sentence."""
        if self.died or not self.report:
            return self.died or "did not come while the others waited"
        return f"raised {self.report.error}" if self.report.error else "came to its end"

    def trace(self) -> str:
        """Where it raised, or where it is if it does not come."""
        if self.died or self.report:
            return self.report.trace if self.report else ""
        start = self.log.seek(0, os.SEEK_END)
        with contextlib.suppress(OSError):
            os.kill(self.process.pid, signal.SIGUSR1)
            time.sleep(0.3)
        self.log.seek(start)
        stack = self.log.read().decode(errors="replace").strip().split("\n")
        ours = next((number for number, line in enumerate(stack) if __file__ in line), len(stack))
        return "\n".join(stack[:ours])

    def end(self) -> None:
        """See that the process is gone."""
        self.process.kill()
        self.process.join()
        self.pipe.close()
        self.log.close()


def _start(rank: int, work: Callable[[int], _Report]) -> _Rank:
    context, log = multiprocessing.get_context("fork"), tempfile.TemporaryFile()
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(rank, work, theirs, log), daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking where threads run: see _work
        process.start()
    theirs.close()
    return _Rank(rank, process, ours, log)


def _listen(ranks: list[_Rank], timeout: float) -> None:
    """Wait for every report; raises RankError when one tells of a failure, or stays away too long after the others."""
    limit = float("inf")
    while missing := [rank for rank in ranks if not rank.over]:
        patience = None if limit == float("inf") else max(0.0, limit - time.monotonic())
        for pipe in wait([rank.pipe for rank in missing], patience):
            rank = next(rank for rank in missing if rank.pipe is pipe)
            rank.hear()
            limit = min(limit, rank.heard + GRACE) if rank.failed else min(limit, rank.heard + timeout)
        if time.monotonic() >= limit:
            break
    if not all(rank.report and not rank.failed for rank in ranks):
        raise _blame(ranks)


def _blame(ranks: list[_Rank]) -> RankError:
    """Who is to blame: whoever was killed, or raised, or did not come, in this order; else those that lost contact."""
    died = [rank for rank in ranks if rank.died]
    raised = [rank for rank in ranks if rank.report and rank.report.error and not rank.report.lost]
    away = [rank for rank in ranks if not rank.over]
    first, *_ = died or raised or away or [rank for rank in ranks if rank.failed]
    blamed, trace = [rank.rank for rank in ranks if rank.story == first.story], first.trace()
    others = [rank.rank for rank in ranks if rank.rank not in blamed]
    ended = f"; {names(others)} ended for that" if others else ""
    story = f"run_ranks: {names(blamed)} {first.story}{ended}"
    return RankError("\n\n".join(filter(None, (story, trace))), blamed)


def names(ranks: list[int]) -> str:
    """`rank 2`, or `ranks 0, 1`."""
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))
