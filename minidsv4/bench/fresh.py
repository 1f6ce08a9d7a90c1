"""Peak memory: one piece of work in a process of its own, whose high-water mark nothing else has raised."""

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch

from minidsv4.bench.sides import RECOMPUTED, Ours, Peer, optimizer_of
from minidsv4.bench.sizes import TRAINED
from minidsv4.config import Config

WARM_UP = 64  # tokens that bring in the libraries before the mark is read
PAGE = 4096  # bytes: less cannot be told


def run_alone(work, *arguments):
    """`work(*arguments)` in a fresh process, and what it returns.

    raises  ValueError where the process died, which is what happens when memory runs out
    """
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(work, *arguments).result()
    except BrokenProcessPool as error:
        raise ValueError("bench: a measuring process was killed, most likely for want of memory") from error


def peak(bench, side: str, phase: str, n_tokens: int, chunk: int | None) -> int:
    """Bytes above weights and cache that one phase of one side needs at most.

    bench   a `measure.Bench`
    side    "ours" or "peer"
    phase   "prefill", "train" or RECOMPUTED
    chunk   tokens at a time where the peer's prompt is cut
    """
    backend = bench.peer.backends[phase] if side == "peer" else None
    return run_alone(_peak, bench.config, side, backend, phase, n_tokens, chunk, bench.n_threads, bench.device)


def _peak(config: Config, side: str, backend, phase: str, n_tokens: int, chunk, n_threads: int, device: str) -> int:
    torch.set_num_threads(n_threads)
    subject = Ours(config, device) if side == "ours" else Peer(config, device)
    if backend is not None:
        subject.use_backend(backend)
    shape = (1, n_tokens) if phase == "prefill" else TRAINED
    ids_BT = torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(1)).to(device)
    subject.prefill(ids_BT[:1, :WARM_UP])
    if phase != "prefill":
        optimizer_of(subject)  # what it imports is no part of the step
    before = reset_mark(device)
    if phase != "prefill":
        subject.train(ids_BT, *[True] * (phase == RECOMPUTED))
        return max(PAGE, high_water(device) - before)
    cache = subject.prefill(ids_BT, chunk)
    return max(PAGE, high_water(device) - before - subject.cache_bytes(cache)[1])


def high_water(device: str = "cpu") -> int:
    """The most bytes that this process has held so far.

    Linux hands `ru_maxrss` on from the parent to its child, so there the kernel's own record of the process is read;
    macOS, which does not, counts in bytes.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource  # not on every system

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_mark(device: str = "cpu") -> int:
    """Lower the mark to what is held now, where the system lets one, and read it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
    return high_water()
