"""What is measured: each phase on both implementations, interleaved in time, memory in processes of its own.

B batch, T tokens. A round runs every work once, so that a slow moment of the machine meets both implementations.
"""

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from minidsv4.bench import implementations, sizes
from minidsv4.bench.implementations import RECOMPUTED, MiniDSV4, Transformers, optimizer_of
from minidsv4.config import Config
from minidsv4.fast.compiled.step import numba_is_here

WHOLE_AT_MOST = 8192  # tokens that transformers takes whole: its time and memory grow with their square
PLAIN_AT_MOST = 1024  # tokens that the plain operations take: their memory grows with the square, too
DECODED = 16  # tokens between two looks at the clock
PATIENCE = 120.0  # seconds after which a row begins no further round
BRIEF = 2.0  # seconds: a first round that took less warms up and does not count
PAGE = 4096  # bytes: no less can be told
FUSED = "fused"
PLAIN_WAY = "plain"
CHUNKS = f"chunks of {sizes.REFERENCE_CHUNK}"


@dataclass(frozen=True)
class Row:
    """One line of the comparison, with every measured value of both implementations.

    phase      prefill, decode, train, memory or cache
    n_tokens   of the prompt, of the context, or of the training step
    way        how transformers takes the prompt; FUSED, RECOMPUTED or PLAIN_WAY where this package has several ways
    unit       "s" (of a token in decode, of a step in train) or "B"
    reference  values of transformers, empty where it did not run; `why` then says why
    """

    size: str
    phase: str
    n_tokens: int
    way: str
    unit: str
    ours: list[float]
    reference: list[float] = field(default_factory=list)
    why: str = ""

    def ratio(self) -> float | None:
        """The reference's median over ours: above 1 is in our favour."""
        return statistics.median(self.reference) / statistics.median(self.ours) if self.reference else None

    def spread(self) -> tuple[float, float] | None:
        """The lowest and the highest ratio of one round."""
        rounds = [reference / ours for ours, reference in zip(self.ours, self.reference)]
        return (min(rounds), max(rounds)) if rounds else None

    def to_dict(self) -> dict:
        """All fields, medians and ratio, as plain values."""
        medians = {f"{side}_median": statistics.median(getattr(self, side) or [0]) for side in ("ours", "reference")}
        return asdict(self) | medians | {"ratio": self.ratio(), "spread": self.spread()}


@dataclass
class Bench:
    """One size, both implementations ready to run, and how they are measured."""

    size: str
    config: Config
    ours: MiniDSV4
    reference: Transformers | None
    repeats: int = 5
    clock: Callable[[], float] = time.perf_counter
    device: str = "cpu"
    n_threads: int = 1

    def ids(self, n_batch: int, n_tokens: int) -> Tensor:
        """Random token ids [B, T], the same each time."""
        return random_ids(self.config, (n_batch, n_tokens), self.device)

    def rounds(self, works: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
        """Seconds of every work in each round."""
        began = time.perf_counter()
        taken = [{name: self.seconds(work) for name, work in works.items()}]
        if sum(taken[0].values()) < BRIEF:
            taken = []
        while not taken or (len(taken) < self.repeats and time.perf_counter() - began < PATIENCE):
            taken.append({name: self.seconds(work) for name, work in works.items()})
        return {name: [one[name] for one in taken] for name in works}

    def seconds(self, work: Callable[[], object]) -> float:
        """Seconds of one run, until the device has finished it."""
        began = self.clock()
        work()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return self.clock() - began

    def choose_backend(self, phase: str) -> None:
        """Have transformers choose its backend for prefill or train on a small input."""
        prompt_BT = self.ids(1, sizes.REFERENCE_CHUNK)
        batch_BT = self.ids(sizes.TRAINED[0], sizes.TRAINED[1] // 4)
        small = {"prefill": lambda: self.reference.prefill(prompt_BT), "train": lambda: self.reference.train(batch_BT)}
        self.reference.choose_backend(phase, small[phase])

    def prompts(self, n_tokens: int) -> dict[str, tuple[int, str]]:
        """Ways in which transformers takes a prompt: tokens at a time, and why it does not; none without it."""
        ways = {"whole": n_tokens, CHUNKS: sizes.REFERENCE_CHUNK} if self.reference else {}
        return {way: (chunk, self._cannot(n_tokens, chunk)) for way, chunk in ways.items()}

    def _cannot(self, n_tokens: int, chunk: int) -> str:
        needed = sizes.reference_needs(self.config, n_tokens, chunk)
        if needed > sizes.memory_left(self.device):
            return f"needs about {sizes.readable(needed)}"
        return f"not run; about {sizes.readable(needed)}" if chunk == n_tokens > WHOLE_AT_MOST else ""

    def time_row(self, phase: str, n_tokens: int, way: str, ours: list[float], reference=(), why: str = "") -> Row:
        return Row(self.size, phase, n_tokens, way, "s", ours, list(reference), why)


def random_ids(config: Config, shape: tuple[int, int], device: str) -> Tensor:
    """Token ids of this shape, the same each time."""
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(1)).to(device)


def agreement(bench: Bench, n_tokens: int = 512) -> float:
    """The largest difference of the two implementations' logits on one sequence.

    raises  ValueError where more than 1% of the positions differ by more than 1e-3: single ones do where two entries
            score alike to the last digits of float32 and each implementation picks another
    """
    ids_BT = bench.ids(1, n_tokens)
    difference_T = (bench.ours.logits(ids_BT) - bench.reference.logits(ids_BT)).abs().amax(-1)[0]
    apart = (difference_T > 1e-3).double().mean().item()
    if apart > 0.01:
        raise ValueError(f"bench: {apart:.0%} of the logits differ, so the two do not compute the same; report this")
    return difference_T.max().item()


# --- time ---


def prefill(bench: Bench, n_tokens: int) -> Iterator[Row]:
    """A prompt and the logits of its last token: transformers as `generate` calls it, and in chunks."""
    ids_BT = bench.ids(1, n_tokens)
    works = {"ours": lambda: bench.ours.prefill(ids_BT)}
    if implementations.PLAIN is not None and n_tokens <= PLAIN_AT_MOST:
        plain = MiniDSV4(bench.config, bench.device, implementations.PLAIN)
        works[PLAIN_WAY] = lambda: plain.prefill(ids_BT)
    if bench.reference is not None:
        bench.choose_backend("prefill")
    ways = bench.prompts(n_tokens)
    for way, (chunk, why) in ways.items():
        if not why:
            works[way] = lambda chunk=chunk: bench.reference.prefill(ids_BT, chunk)
    times = bench.rounds(works)
    for way, (_, why) in (ways or {"": (0, "")}).items():
        yield bench.time_row("prefill", n_tokens, way, times["ours"], times.get(way, []), why)
    if PLAIN_WAY in times:
        yield bench.time_row("prefill", n_tokens, PLAIN_WAY, times[PLAIN_WAY], times.get("whole", []))


def decode(bench: Bench, n_tokens: int) -> Iterator[Row]:
    """One more token after a context, the mean of DECODED in a row; ours as it is, and fused where that can run."""
    ids_BT = bench.ids(1, n_tokens)
    next_BT = bench.ids(1, 1)

    def writer(side: MiniDSV4 | Transformers, step: Callable) -> Callable[[], object]:
        cache = side.prefill(ids_BT, sizes.REFERENCE_CHUNK)
        return lambda: [step(next_BT, cache) for _ in range(DECODED)]

    works = {"": writer(bench.ours, bench.ours.step)}
    if bench.device == "cpu" and numba_is_here():
        works[FUSED] = writer(bench.ours, bench.ours.fused_step())
        works[FUSED]()  # compiles
    if bench.reference is not None:
        bench.choose_backend("prefill")
        works["reference"] = writer(bench.reference, bench.reference.step)
        bench.reference.choose_backend("decode", works["reference"])
    times = {name: [one / DECODED for one in found] for name, found in bench.rounds(works).items()}
    reference = times.pop("reference", [])
    yield from (bench.time_row("decode", n_tokens, way, ours, reference) for way, ours in times.items())


def train(bench: Bench) -> Iterator[Row]:
    """One training step: main loss, gradients, AdamW; ours as it is, and with its blocks recomputed."""
    ids_BT = bench.ids(*sizes.TRAINED)
    works = {way: lambda way=way: bench.ours.train(ids_BT, way == RECOMPUTED) for way in ("", RECOMPUTED)}
    if bench.reference is not None:
        bench.choose_backend("train")
        works["reference"] = lambda: bench.reference.train(ids_BT)
    times = bench.rounds(works)
    reference = times.pop("reference", [])
    yield from (bench.time_row("train", ids_BT.numel(), way, ours, reference) for way, ours in times.items())


# --- memory ---


def memory(bench: Bench, n_tokens: int) -> Iterator[Row]:
    """Peak memory above weights and cache of a prompt."""
    ours = [peak_alone(bench, "ours", "prefill", n_tokens)]
    if bench.reference is not None:
        bench.choose_backend("prefill")
    for way, (chunk, why) in (bench.prompts(n_tokens) or {"": (0, "alone")}).items():
        reference = [] if why else [peak_alone(bench, "reference", "prefill", n_tokens, chunk)]
        yield Row(bench.size, "memory", n_tokens, way, "B", ours, reference, why if way else "")


def training_memory(bench: Bench) -> Iterator[Row]:
    """Peak memory above the weights of one training step: gradients, moments and activations."""
    n_tokens = sizes.TRAINED[0] * sizes.TRAINED[1]
    reference = []
    if bench.reference is not None:
        bench.choose_backend("train")
        reference = [peak_alone(bench, "reference", "train", n_tokens)]
    for way in ("train", RECOMPUTED):
        yield Row(bench.size, "memory", n_tokens, way, "B", [peak_alone(bench, "ours", way, n_tokens)], reference)


def cache(bench: Bench, n_tokens: int) -> Iterator[Row]:
    """Bytes that the cache of one sequence remembers, and those of the buffers that it holds for them."""
    sides = [side for side in (bench.ours, bench.reference) if side is not None]
    found = [side.cache_bytes(side.prefill(bench.ids(1, n_tokens), sizes.REFERENCE_CHUNK)) for side in sides]
    for way, numbers in zip(("remembered", "held"), zip(*found)):
        yield Row(bench.size, "cache", n_tokens, way, "B", *([number] for number in numbers))


def run_alone(work: Callable, *arguments):
    """`work(*arguments)` in a fresh process, whose peak nothing else has raised, and what it returns.

    raises  ValueError where the process died, which is what happens when memory runs out
    """
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(work, *arguments).result()
    except BrokenProcessPool as error:
        raise ValueError("bench: a measuring process was killed, most likely for want of memory") from error


def peak_alone(bench: Bench, side: str, phase: str, n_tokens: int, chunk: int | None = None) -> int:
    """Bytes above weights and cache that one phase ("prefill", "train" or RECOMPUTED) of one side needs at most."""
    backend = bench.reference.backends[phase] if side == "reference" else None
    return run_alone(peak, bench.config, backend, phase, n_tokens, chunk, bench.n_threads, bench.device)


def peak(config: Config, backend: str | None, phase: str, n_tokens: int, chunk, n_threads: int, device: str) -> int:
    """What `peak_alone` measures, in this process; `backend` is transformers', None for this package."""
    torch.set_num_threads(n_threads)
    side = Transformers(config, device) if backend else MiniDSV4(config, device)
    if backend:
        side.use_backend(backend)
    ids_BT = random_ids(config, (1, n_tokens) if phase == "prefill" else sizes.TRAINED, device)
    side.prefill(ids_BT[:1, :64])  # brings in the libraries
    if phase == "prefill":
        before = reset_peak(device)
        cache = side.prefill(ids_BT, chunk)
        return max(PAGE, peak_bytes(device) - before - side.cache_bytes(cache)[1])
    optimizer_of(side)  # what it imports is no part of the step
    before = reset_peak(device)
    side.train(ids_BT, *[True] * (phase == RECOMPUTED))
    return max(PAGE, peak_bytes(device) - before)


def peak_bytes(device: str = "cpu") -> int:
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


def reset_peak(device: str = "cpu") -> int:
    """Lower the peak to what is held now, where the system lets one, and read it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
    return peak_bytes()
