"""What is measured: each phase on both implementations, interleaved in time, memory in processes of its own.

B batch, T tokens. A round runs every work once, so that a slow moment of the machine meets both implementations.
"""

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from minidsv4.bench import implementations, peak_memory
from minidsv4.bench.implementations import CHUNK, FUSED, RECOMPUTED, TABLES, MiniDSV4, Transformers, random_ids
from minidsv4.bench.rows import Point, Row, Run, run
from minidsv4.config import Config
from minidsv4.fast.compiled.numba_loops import numba_is_here, told_of_compiling
from minidsv4.fast.compiled.step import FusedStep
from minidsv4.fast.compiled.table import COMPILED
from minidsv4.model.cache import Cache
from minidsv4.model.layer import watch

WHOLE_AT_MOST = 8192  # tokens that transformers takes whole: its time and memory grow with their square
PLAIN_AT_MOST = 1024  # tokens that the plain operations take: their memory grows with the square, too
CURVE = tuple(1 << power for power in range(10, 21))  # tokens: 1K to 1M
PART = 8192  # tokens of a long text that are one prompt
DECODED = 16  # tokens between two looks at the clock
PATIENCE = 120.0  # seconds after which a row begins no further round
BRIEF = 2.0  # seconds: a first round that took less warms up and does not count
CHUNKS = f"chunks of {CHUNK}"


@dataclass
class Bench:
    """One size, both implementations ready to run, and how they are measured."""

    size: str
    config: Config
    ours: MiniDSV4
    reference: Transformers | None
    repeats: int = 5
    n_threads: int = 1

    def ids(self, n_batch: int, n_tokens: int) -> Tensor:
        """Random token ids [B, T], the same each time."""
        return random_ids(self.config, (n_batch, n_tokens))

    def rounds(self, works: dict[str, Callable[[], object]]) -> dict[str, list[Run]]:
        """What every work takes in each round."""
        began = time.perf_counter()
        taken = [{name: run(work) for name, work in works.items()}]
        if sum(one.seconds for one in taken[0].values()) < BRIEF:
            taken = []
        while not taken or (len(taken) < self.repeats and time.perf_counter() - began < PATIENCE):
            taken.append({name: run(work) for name, work in works.items()})
        return {name: [one[name] for one in taken] for name in works}

    def tables(self) -> list[str]:
        """Names of the tables that ours is measured with."""
        return ["FAST", "COMPILED"] if numba_is_here() else ["FAST"]

    def with_table(self, table: str) -> MiniDSV4:
        """Our side once more, with the same weights and the operations of this name."""
        side = MiniDSV4(self.config)
        side.model.use(TABLES[table])
        return side

    def row(self, phase: str, n_tokens: int, way: str, ours: list[Run], others: dict, **fields) -> Row:
        """A row of measured times; `others` holds the runs of transformers and of PLAIN, where there are any."""
        reference, plain = ([run.seconds for run in others.get(name, [])] for name in ("reference", "plain"))
        times = [run.seconds for run in ours]
        return Row(self.size, phase, n_tokens, way, "s", times, reference, plain, fresh=ours[-1].fresh, **fields)

    def peak(self, side: str, phase: str, n_tokens: int, chunk: int | None = None) -> int:
        """Bytes above weights and cache that one phase of a side (a table's name, or "reference") needs at most."""
        side = self.reference.backends[phase] if side == "reference" else side
        asked = (self.config, side, phase, n_tokens, chunk, self.n_threads)
        return peak_memory.run_alone(peak_memory.peak, *asked)

    def prepare_reference(self, phase: str) -> None:
        """Have transformers choose its backend for "prefill" or "train" on a small input; nothing without it."""
        if self.reference is None:
            return
        if phase == "prefill":
            small_BT = self.ids(1, implementations.CHUNK)
            self.reference.choose_backend(phase, lambda: self.reference.prefill(small_BT))
        else:
            small_BT = self.ids(implementations.TRAINED[0], implementations.TRAINED[1] // 4)
            self.reference.choose_backend(phase, lambda: self.reference.train(small_BT))

    def prompts(self, n_tokens: int) -> dict[str, tuple[int, str]]:
        """Ways in which transformers takes a prompt: tokens at a time, and why it does not."""
        if self.reference is None:
            return {"": (0, "alone")}
        ways = {"whole": n_tokens, CHUNKS: implementations.CHUNK}
        return {way: (chunk, self._refusal(n_tokens, chunk)) for way, chunk in ways.items()}

    def _refusal(self, n_tokens: int, chunk: int) -> str:
        needed = peak_memory.reference_needs(self.config, n_tokens, chunk)
        if needed > peak_memory.memory_left():
            return f"needs about {peak_memory.readable(needed)}"
        return f"not run; about {peak_memory.readable(needed)}" if chunk == n_tokens > WHOLE_AT_MOST else ""


@torch.inference_mode()
def agreement(bench: Bench, n_tokens: int = 512) -> float:
    """The largest difference of the two implementations' logits on one sequence.

    raises  ValueError where more than 1% of the positions differ by more than 1e-3: single ones do where two entries
            score alike to the last digits of float32 and each implementation picks another
    """
    ids_BT = bench.ids(1, n_tokens)
    reference_BTV = bench.reference.model.eval()(input_ids=ids_BT, use_cache=False).logits
    difference_T = (bench.ours.model(ids_BT) - reference_BTV).abs().amax(-1)[0]
    apart = (difference_T > 1e-3).double().mean().item()
    if apart > 0.01:
        raise ValueError(f"bench: {apart:.0%} of the logits differ, so the two do not compute the same; report this")
    return difference_T.max().item()


# --- time ---


def prefill(bench: Bench, n_tokens: int) -> Iterator[Row]:
    """A prompt and the logits of its last token: transformers as `generate` calls it, and in chunks."""
    ids_BT = bench.ids(1, n_tokens)
    plain = ["PLAIN"] if n_tokens <= PLAIN_AT_MOST else []
    tables = bench.tables()
    works = {table: partial(bench.with_table(table).prefill, ids_BT) for table in [*tables, *plain]}
    bench.prepare_reference("prefill")
    ways = bench.prompts(n_tokens)
    for way, (chunk, why) in ways.items():
        if not why:
            works[way] = partial(bench.reference.prefill, ids_BT, chunk)
    runs = bench.rounds(works)
    for way, (_, why) in ways.items():
        for table in tables:
            others = {"reference": runs.get(way, []), "plain": runs.get("PLAIN", [])}
            why = why if way else ""
            yield bench.row("prefill", n_tokens, way, runs[table], others, why=why, table=table)


def attend(bench: Bench, n_tokens: int) -> Iterator[Row]:
    """Core attention of the layer that sees the most entries, beside PLAIN's, on what it gets in a prompt."""
    with watch(bench.ours.model, "attend") as calls:
        bench.ours.prefill(bench.ids(1, n_tokens))
    inputs = max((arguments for _, arguments, _ in calls), key=lambda arguments: arguments[3].n_entries)
    plain = ["PLAIN"] if n_tokens <= PLAIN_AT_MOST else []
    tables = bench.tables()
    works = {table: partial(TABLES[table].attend, *inputs) for table in [*tables, *plain]}
    with torch.inference_mode():
        runs = bench.rounds(works)
    for table in tables:
        yield bench.row("attend", n_tokens, "", runs[table], {"plain": runs.get("PLAIN", [])}, table=table)


@torch.inference_mode()
def decode(bench: Bench, n_tokens: int) -> Iterator[Row]:
    """One more token after a context, the mean of DECODED in a row; ours as it is, and fused where that can run."""
    ids_BT = bench.ids(1, n_tokens)
    next_BT = bench.ids(1, 1)

    def writer(side: MiniDSV4 | Transformers, step: Callable) -> Callable[[], object]:
        cache = side.prefill(ids_BT, implementations.CHUNK)
        return lambda: [step(next_BT, cache) for _ in range(DECODED)]

    works = {"": writer(bench.ours, bench.ours.step)}
    if numba_is_here():
        works[FUSED] = writer(bench.ours, FusedStep(bench.ours.model))
    bench.prepare_reference("prefill")
    if bench.reference is not None:
        works["reference"] = writer(bench.reference, bench.reference.step)
        bench.reference.choose_backend("decode", works["reference"])
    found = bench.rounds(works)
    runs = {way: [Run(one.seconds / DECODED, one.fresh // DECODED) for one in taken] for way, taken in found.items()}
    for way in [way for way in works if way != "reference"]:
        yield bench.row("decode", n_tokens, way, runs[way], runs)


def train(bench: Bench) -> Iterator[Row]:
    """One training step: main loss, gradients, AdamW; ours as it is, and with its blocks recomputed."""
    ids_BT = bench.ids(*implementations.TRAINED)
    works = {}
    for table, way in itertools.product(bench.tables(), ("", RECOMPUTED)):
        works[table, way] = partial(bench.with_table(table).train, ids_BT, way == RECOMPUTED)
    bench.prepare_reference("train")
    if bench.reference is not None:
        works["reference"] = lambda: bench.reference.train(ids_BT)
    runs = bench.rounds(works)
    for table, way in itertools.product(bench.tables(), ("", RECOMPUTED)):
        yield bench.row("train", ids_BT.numel(), way, runs[table, way], runs, table=table)


@torch.inference_mode()
def curve(size: str, config: Config, n_threads: int, lengths: tuple[int, ...], fused: bool) -> list[Point]:
    """Points at rising lengths of one text, printed as they come; to be run in a process of its own.

    A point's peak is the most so far above the weights and the buffers of the cache.
    """
    torch.set_num_threads(n_threads)
    bench = Bench(size, config, MiniDSV4(config), None)
    ours = bench.ours
    step = ours.step
    if fused:
        ours.model.use(COMPILED)
        step = FusedStep(ours.model)
    ids_BT = bench.ids(1, lengths[-1])
    with told_of_compiling() if fused else contextlib.nullcontext():
        step(ids_BT[:, :1], ours.prefill(ids_BT[:, : lengths[0]]))  # a warm-up
    before = peak_memory.reset_peak()
    cache = ours.model.new_cache()
    spent, peak = 0.0, 0
    points = []
    for n_tokens in lengths:
        while cache.n_tokens < n_tokens:  # a prompt may have to be undone, so its cache is held twice: no long ones
            part_BT = ids_BT[:, cache.n_tokens : min(cache.n_tokens + PART, n_tokens)]
            spent += run(lambda part_BT=part_BT: ours.model.prefill(part_BT, cache)).seconds
            held = ours.cache_bytes(cache)[1]
            peak = max(peak, peak_memory.peak_bytes() - before - held)
            peak_memory.reset_peak()
        a_token = time_of_a_token(step, ids_BT[:, :1], cache)
        points.append(Point(size + ", fused" * fused, n_tokens, spent / n_tokens, a_token, held, peak))
        numbers = (1e6 * spent / n_tokens, 1e3 * a_token, held / 1e6, peak / 1e6)
        print(f"{n_tokens:18,}" + "".join(f"{number:18.3g}" for number in numbers), flush=True)
    return points


def time_of_a_token(step: Callable, ids_BT: Tensor, cache: Cache) -> float:
    """Seconds of one more token, the median of a few turns; the cache is then as it was."""
    here = cache.snapshot()
    turns = [run(lambda: [step(ids_BT, cache) for _ in range(DECODED)]).seconds for _ in range(3)]
    cache.restore(here)
    return statistics.median(turns) / DECODED


# --- memory ---


def memory(bench: Bench, n_tokens: int) -> Iterator[Row]:
    """Peak memory above weights and cache of a prompt."""
    bench.prepare_reference("prefill")
    ours = {table: [bench.peak(table, "prefill", n_tokens)] for table in bench.tables()}
    for way, (chunk, why) in bench.prompts(n_tokens).items():
        reference = [] if why else [bench.peak("reference", "prefill", n_tokens, chunk)]
        for table in ours:
            why = why if way else ""
            yield Row(bench.size, "memory", n_tokens, way, "B", ours[table], reference, why=why, table=table)


def training_memory(bench: Bench) -> Iterator[Row]:
    """Peak memory above the weights of one training step: gradients, moments and activations."""
    n_tokens = implementations.TRAINED[0] * implementations.TRAINED[1]
    bench.prepare_reference("train")
    reference = [bench.peak("reference", "train", n_tokens)] if bench.reference else []
    for table, way in itertools.product(bench.tables(), ("train", RECOMPUTED)):
        ours = [bench.peak(table, way, n_tokens)]
        yield Row(bench.size, "memory", n_tokens, way, "B", ours, reference, table=table)


def cache(bench: Bench, n_tokens: int) -> Iterator[Row]:
    """Bytes of one sequence's cache that are in use, and those of the buffers that hold them."""
    both = [side for side in (bench.ours, bench.reference) if side is not None]
    found = [side.cache_bytes(side.prefill(bench.ids(1, n_tokens), implementations.CHUNK)) for side in both]
    for way, numbers in zip(("in use", "buffers"), zip(*found)):
        yield Row(bench.size, "cache", n_tokens, way, "B", *([number] for number in numbers))
