"""Time: what each phase runs, and runs of both sides interleaved, so that a slow moment of the machine meets both."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from minidsv4.bench import fresh, sizes
from minidsv4.bench.sides import RECOMPUTED, Ours, Peer
from minidsv4.config import Config
from minidsv4.fused.step import numba_is_here

PEER_WHOLE = 8192  # tokens up to which transformers takes a prompt whole: time and memory grow with their square
DECODED = 16  # tokens between two looks at the clock
PATIENCE = 120.0  # seconds after which a row begins no further round
BRIEF = 2.0  # seconds: a first round that took less was a warm-up and does not count
FUSED = "fused"  # the way of a decode row whose step is compiled
CHUNKS = f"chunks of {sizes.PEER_CHUNK}"  # how transformers' prompt is cut by hand


@dataclass(frozen=True)
class Row:
    """One line of the comparison, with every measured value of both sides.

    phase    prefill, decode, train, memory or cache
    n_tokens of the prompt, of the context, or of the training step
    way      how transformers does it, where there are two ways; FUSED or RECOMPUTED where ours has two
    unit     "s" (of a token in decode, of a step in train) or "B"
    peer     empty where transformers did not run; `why` then says why
    """

    size: str
    phase: str
    n_tokens: int
    way: str
    unit: str
    ours: list[float]
    peer: list[float] = field(default_factory=list)
    why: str = ""

    def ratio(self) -> float | None:
        """The peer's median over ours: above 1 is in our favour."""
        return statistics.median(self.peer) / statistics.median(self.ours) if self.peer else None

    def spread(self) -> tuple[float, float] | None:
        """The lowest and the highest ratio of one round."""
        rounds = [peer / ours for ours, peer in zip(self.ours, self.peer)]
        return (min(rounds), max(rounds)) if rounds else None

    def to_dict(self) -> dict:
        """All fields, medians and ratio, as plain values."""
        medians = {f"{side}_median": statistics.median(getattr(self, side) or [0]) for side in ("ours", "peer")}
        return asdict(self) | medians | {"ratio": self.ratio(), "spread": self.spread()}


@dataclass
class Bench:
    """One size, both sides ready to run, and how they are measured."""

    size: str
    config: Config
    ours: Ours
    peer: Peer | None
    repeats: int = 5
    clock: Callable[[], float] = time.perf_counter
    device: str = "cpu"
    n_threads: int = 1

    def ids(self, n_batch: int, n_tokens: int) -> Tensor:
        """Random token ids [B, T], the same each time."""
        ids_BT = torch.randint(self.config.vocab_size, (n_batch, n_tokens), generator=torch.Generator().manual_seed(1))
        return ids_BT.to(self.device)

    def rounds(self, works: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
        """Seconds of every work in each round; a round runs each work once."""
        began, taken = time.perf_counter(), [self.round(works)]
        if sum(taken[0].values()) < BRIEF:
            taken = [self.round(works)]
        while len(taken) < self.repeats and time.perf_counter() - began < PATIENCE:
            taken.append(self.round(works))
        return {name: [one[name] for one in taken] for name in works}

    def round(self, works: dict[str, Callable[[], object]]) -> dict[str, float]:
        """Seconds of each work, run one after the other."""
        return {name: self.seconds(work) for name, work in works.items()}

    def seconds(self, work: Callable[[], object]) -> float:
        """Seconds of one run, until the device has finished it."""
        began = self.clock()
        work()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return self.clock() - began

    def settle(self, phase: str) -> None:
        """Have the peer choose its backend for this phase on a small input."""
        prompt_BT, batch_BT = self.ids(1, sizes.PEER_CHUNK), self.ids(sizes.TRAINED[0], sizes.TRAINED[1] // 4)
        small = {"prefill": lambda: self.peer.prefill(prompt_BT), "train": lambda: self.peer.train(batch_BT)}
        self.peer.settle(phase, small[phase])

    def row(self, phase: str, n_tokens: int, way: str, times: dict[str, list[float]], why: str = "") -> Row:
        """A row of times, ours beside those of the peer's `way`."""
        return Row(self.size, phase, n_tokens, way, "s", times["ours"], times.get(way or "peer", []), why)


def agreement(bench: Bench, n_tokens: int = 512) -> float:
    """The largest difference of the two sides' logits on one sequence.

    raises  ValueError where more than 1% of the positions differ by more than 1e-3: single ones do where two entries
            score alike to the last digits of float32 and each side picks another
    """
    ids_BT = bench.ids(1, n_tokens)
    difference_T = (bench.ours.logits(ids_BT) - bench.peer.logits(ids_BT)).abs().amax(-1)[0]
    apart = (difference_T > 1e-3).double().mean().item()
    if apart > 0.01:
        raise ValueError(f"bench: {apart:.0%} of the logits differ, so the two do not compute the same; report this")
    return difference_T.max().item()


def prefill(bench: Bench, n_tokens: int) -> Iterator[Row]:
    """A prompt and the logits of its last token: the peer as `generate` calls it, and in chunks."""
    ids_BT = bench.ids(1, n_tokens)
    works, why = {"ours": lambda: bench.ours.prefill(ids_BT)}, {}
    if bench.peer is not None:
        bench.settle("prefill")
        for way, chunk in (("whole", n_tokens), (CHUNKS, sizes.PEER_CHUNK)):
            why[way] = peer_cannot(bench, n_tokens, chunk)
            if not why[way]:
                works[way] = lambda chunk=chunk: bench.peer.prefill(ids_BT, chunk)
    times = bench.rounds(works)
    yield from (bench.row("prefill", n_tokens, way, times, reason) for way, reason in (why or {"": ""}).items())


def peer_cannot(bench: Bench, n_tokens: int, chunk: int) -> str:
    """Why the peer does not take in this prompt so; empty where it does."""
    needed = sizes.peer_needs(bench.config, n_tokens, chunk)
    if needed > sizes.memory_left(bench.device):
        return f"needs about {sizes.readable(needed)}"
    if chunk == n_tokens > PEER_WHOLE:
        return f"not run; about {sizes.readable(needed)}"
    return ""


def decode(bench: Bench, n_tokens: int) -> Iterator[Row]:
    """One more token after a context, the mean of DECODED in a row; ours as it is, and fused where that can run."""
    ids_BT, next_BT = bench.ids(1, n_tokens), bench.ids(1, 1)

    def writer(side: Ours | Peer, step: Callable) -> Callable[[], object]:
        cache = side.prefill(ids_BT, sizes.PEER_CHUNK)
        return lambda: [step(next_BT, cache) for _ in range(DECODED)]

    works = {"ours": writer(bench.ours, bench.ours.step)}
    if bench.device == "cpu" and numba_is_here():
        works[FUSED] = writer(bench.ours, bench.ours.fused_step)
        works[FUSED]()  # compiles
    if bench.peer is not None:
        bench.settle("prefill")
        works["peer"] = writer(bench.peer, bench.peer.step)
        bench.peer.settle("decode", works["peer"])
    times = {name: [one / DECODED for one in found] for name, found in bench.rounds(works).items()}
    yield bench.row("decode", n_tokens, "", times)
    if FUSED in times:
        yield bench.row("decode", n_tokens, FUSED, {"ours": times[FUSED], FUSED: times.get("peer", [])})


def train(bench: Bench) -> Iterator[Row]:
    """One training step of 4 x 512: main loss, gradients, AdamW; ours as it is, and with its blocks recomputed."""
    ids_BT = bench.ids(*sizes.TRAINED)
    works = {way: lambda way=way: bench.ours.train(ids_BT, way == RECOMPUTED) for way in ("ours", RECOMPUTED)}
    if bench.peer is not None:
        bench.settle("train")
        works["peer"] = lambda: bench.peer.train(ids_BT)
    times = bench.rounds(works)
    yield bench.row("train", ids_BT.numel(), "", times)
    yield bench.row("train", ids_BT.numel(), RECOMPUTED, {"ours": times[RECOMPUTED], RECOMPUTED: times.get("peer", [])})


def memory(bench: Bench, n_tokens: int) -> Iterator[Row]:
    """Peak memory above weights and cache of a prompt, each measured in a process of its own."""
    ours = fresh.peak(bench, "ours", "prefill", n_tokens, None)
    if bench.peer is not None:
        bench.settle("prefill")
    for way, chunk in (("whole", n_tokens), (CHUNKS, sizes.PEER_CHUNK)) if bench.peer is not None else ():
        why = peer_cannot(bench, n_tokens, chunk)
        peer = [] if why else [fresh.peak(bench, "peer", "prefill", n_tokens, chunk)]
        yield Row(bench.size, "memory", n_tokens, way, "B", [ours], peer, why)
    if bench.peer is None:
        yield Row(bench.size, "memory", n_tokens, "", "B", [ours])


def training_memory(bench: Bench) -> Iterator[Row]:
    """Peak memory above the weights of one training step: gradients, moments and activations."""
    n_tokens = sizes.TRAINED[0] * sizes.TRAINED[1]
    if bench.peer is not None:
        bench.settle("train")
    peer = [fresh.peak(bench, "peer", "train", n_tokens, None)] if bench.peer else []
    for way in ("train", RECOMPUTED):
        yield Row(bench.size, "memory", n_tokens, way, "B", [fresh.peak(bench, "ours", way, n_tokens, None)], peer)


def cache(bench: Bench, n_tokens: int) -> Iterator[Row]:
    """Bytes that the cache of one sequence remembers, and those of the buffers that it holds for them."""
    sides = [bench.ours, *filter(None, [bench.peer])]
    found = [side.cache_bytes(side.prefill(bench.ids(1, n_tokens), sizes.PEER_CHUNK)) for side in sides]
    for way, numbers in zip(("remembered", "held"), zip(*found)):
        yield Row(bench.size, "cache", n_tokens, way, "B", *([number] for number in numbers))
