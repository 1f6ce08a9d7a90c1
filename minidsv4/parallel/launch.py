"""Ranks: processes that each hold a part of the model and send each other tensors through torch.distributed.

`run_ranks(fn, n)` starts them here, also from a notebook, whose functions need no module of their own; `join()` makes
the process that calls it one of the ranks that `torchrun` started. `fn` is the same for both: it takes the group.
"""

import contextlib
import faulthandler
import importlib
import math
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import distributed as dist
from torch.multiprocessing import ProcessContext, start_processes

from minidsv4.files import locked

DEVICES = {"gloo": "cpu", "nccl": "cuda", "hccl": "npu"}  # the kind of device that each backend moves tensors between
PATIENCE = 15.0  # seconds that ranks wait for one that does not come
GRACE = 2.0  # seconds for the others to say what they saw, once one rank has failed
_LOST = ("lostcontact", "gloo", "closed by peer", "connection reset", "timed out", "broken pipe", "socket")


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
        if isinstance(error, LostContact) or not lost_contact(str(error)):
            raise
        reason = str(error).strip().split("\n")[0]
        raise LostContact(f"rank {rank}: while {doing}, another rank ended or did not come ({reason})") from error


def lost_contact(said: str) -> bool:
    """Whether an error's words only say that another rank is gone."""
    return any(word in said.lower() for word in _LOST)


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
    raises   RankError naming the ranks that raised, ended or did not come, with their traceback; all have ended
             ValueError for n below 1, an unknown backend, a system that cannot fork, or inside of a rank
    """
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"run_ranks: n = {n!r} starts nothing; it counts ranks, from 1")
    if backend not in DEVICES:
        raise ValueError(f"run_ranks: backend = {backend!r} is not known; it is one of {', '.join(DEVICES)}")
    if "fork" not in multiprocessing.get_all_start_methods():
        raise ValueError(f"run_ranks: ranks are forks, which {sys.platform} does not have; use Linux, macOS or WSL")
    if dist.is_available() and dist.is_initialized():
        raise ValueError("run_ranks: this process is a rank itself; call fn(group) with the group that it has")
    with locked_folder() as folder:
        work = (n, fn, args, backend, timeout, folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking where threads run: see _work
            context = start_processes(_work, work, n, join=False, daemon=True, start_method="fork")
        try:
            _wait(context)
            fates = [_fate(rank, context, folder) for rank in range(n)]
        finally:
            _end(context)
        if not all(fate.kind == DONE for fate in fates):
            raise _blame(fates)
        for rank in range(n):
            print((folder / f"{rank}.said").read_text(encoding="utf-8"), end="")
        return [pickle.loads((folder / f"{rank}.result").read_bytes()) for rank in range(n)]


@contextlib.contextmanager
def locked_folder() -> Iterator[Path]:
    """A temporary folder, locked until the last process that was forked within has ended.

    Folders without a lock were left by runs that were killed with all of their ranks, and are removed first. One that
    is younger than PATIENCE may be about to be locked.
    """
    for left in Path(tempfile.gettempdir()).glob("ranks-*"):
        with contextlib.suppress(OSError), locked(left):
            if time.time() - left.stat().st_mtime > PATIENCE:
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix="ranks-") as name, locked(Path(name)):
        yield Path(name)


# --- inside a rank ---


def _work(rank: int, n: int, fn: Callable, args: tuple, backend: str, timeout: float, folder: Path) -> None:
    """The life of a rank: join the group, call the function, keep its result; torch's launcher keeps what it raises."""
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and ends all ranks
    torch.set_num_threads(1)  # a forked process that wants its parent's OpenMP threads waits for ever
    sys.stdout = open(folder / f"{rank}.said", "w", encoding="utf-8")
    log = open(folder / f"{rank}.log", "w", encoding="utf-8")
    for number in (1, 2):  # gloo speaks on both; nobody asked for it
        os.dup2(log.fileno(), number)
    faulthandler.register(signal.SIGUSR1, file=log, all_threads=False)
    os.environ["LOCAL_RANK"] = str(rank)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all ranks are here, whatever this machine calls itself
    device_of(backend)
    store = dist.FileStore(str(folder / "store"), n)
    dist.init_process_group(backend, store=store, rank=rank, world_size=n, timeout=timedelta(seconds=timeout))
    dist.barrier()  # whoever is quick must not be gone before the others have found it
    result = fn(dist.group.WORLD, *args)
    try:
        (folder / f"{rank}.result").write_bytes(pickle.dumps(result))
    except Exception as error:
        raise TypeError(f"its result cannot be sent back ({error}); return tensors and plain values") from error
    dist.barrier()  # another rank may not have read yet what this one sent


def _end_with_parent(folder: Path) -> None:
    """No rank outlives the process that asked for it, not even one that computes for ever, nor does their folder."""
    multiprocessing.parent_process().join()
    shutil.rmtree(folder, ignore_errors=True)  # the process that would have is gone
    os._exit(1)


# --- outside ---

DIED, RAISED, AWAY, LOST, DONE = range(5)  # the first kind that occurs is to blame
_LOST_TYPES = ("RuntimeError", "torch.distributed.", f"{__name__}.LostContact")  # as tracebacks write them


class _Fate(NamedTuple):
    """What became of a rank: one of the kinds above, the end of a sentence with its name, and where in the code."""

    kind: int
    story: str
    trace: str = ""


def _wait(context: ProcessContext) -> None:
    """Until all ranks have ended, or GRACE after one failed."""
    limit = math.inf
    while time.monotonic() < limit and (running := [p for p in context.processes if p.is_alive()]):
        wait([process.sentinel for process in running], GRACE)
        if limit == math.inf and any(process.exitcode for process in context.processes):
            limit = time.monotonic() + GRACE


def _fate(rank: int, context: ProcessContext, folder: Path) -> _Fate:
    process = context.processes[rank]
    raised = Path(context.error_files[rank])
    if process.exitcode is None:
        return _Fate(AWAY, "did not come while the others waited", _stack(process.pid, folder / f"{rank}.log"))
    if process.exitcode < 0:
        return _Fate(DIED, f"was killed ({signal.Signals(-process.exitcode).name})")
    if raised.exists():
        trace = pickle.loads(raised.read_bytes())
        after = trace.rsplit("\n  File ", 1)[-1].split("\n")
        line = next((line for line in after[1:] if line and not line.startswith(" ")), after[-1])
        lost = line.startswith(_LOST_TYPES) and lost_contact(line)
        return _Fate(LOST if lost else RAISED, f"raised {line}", trace)
    if process.exitcode or not (folder / f"{rank}.result").exists():
        return _Fate(DIED, f"ended with exit code {process.exitcode}")
    return _Fate(DONE, "came to its end")


def _stack(pid: int, log: Path) -> str:
    """Where a rank is that does not come."""
    start = log.stat().st_size
    os.kill(pid, signal.SIGUSR1)
    time.sleep(0.3)
    stack = log.read_bytes()[start:].decode(errors="replace")
    return stack.partition(f'  File "{__file__}"')[0].strip()


def _end(context: ProcessContext) -> None:
    """See that all processes are gone, and what torch's launcher wrote of them."""
    for process, raised in zip(context.processes, context.error_files):
        process.kill()
        process.join()
        Path(raised).unlink(missing_ok=True)


def _blame(fates: list[_Fate]) -> RankError:
    """Who is to blame, and all ranks with the same story; the others ended for that."""
    first = min(fates, key=lambda fate: fate.kind)
    blamed = [rank for rank, fate in enumerate(fates) if fate.story == first.story]
    others = [rank for rank in range(len(fates)) if rank not in blamed]
    ended = f"; {names(others)} ended for that" if others else ""
    story = f"run_ranks: {names(blamed)} {first.story}{ended}"
    return RankError("\n\n".join(filter(None, (story, first.trace))), blamed)


def names(ranks: list[int]) -> str:
    """`rank 2`, or `ranks 0, 1`."""
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))
