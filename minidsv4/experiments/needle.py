"""Needles in a haystack of up to a million tokens and more: what a small V4 finds, and what that costs.

    python -m minidsv4 needle --tokens 1048576

A text is read once; then each of its needles is asked for from a snapshot of the cache. B batch, T tokens.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from minidsv4 import options
from minidsv4.checksums import digest
from minidsv4.config import LayerKind
from minidsv4.experiments import facts, needle_state
from minidsv4.experiments.choices import CHOICES
from minidsv4.experiments.needle_recipe import FOLDER, load_needle
from minidsv4.experiments.needle_state import ASKING, Point, Task
from minidsv4.fast import FAST
from minidsv4.fast.compiled.numba_loops import numba_is_here, told_of_compiling
from minidsv4.fast.compiled.table import COMPILED
from minidsv4.fast.pages import peak_bytes
from minidsv4.files import writable_folder
from minidsv4.interrupts import STOPPED
from minidsv4.model.cache import Cache
from minidsv4.model.layer import watch
from minidsv4.model.model import PREFILL_CHUNK, Model
from minidsv4.ops import index_scores
from minidsv4.train.loop import stop_on_interrupt

STEP = 4  # from one length of the curve to the next
KEPT_EVERY = 30.0  # seconds from one state on the disk to the next
DECODED = 32  # tokens whose time is taken, one by one
MOST_TOKENS = 1 << 22

Tick = Callable[[float], None]  # called with the work that was done


def lengths(n_tokens: int) -> list[int]:
    """1,024 tokens, four times as many, and so on below `n_tokens`, and these."""
    found = []
    while (length := facts.SHORTEST * STEP ** len(found)) < n_tokens:
        found.append(length)
    return [*found, n_tokens]


class Read(NamedTuple):
    """A text that was read: its cache, and the seconds that it took."""

    cache: Cache
    seconds: float


class Needles:
    """A run of tasks, which goes on where it was stopped.

    folder  keeps points and the prefill under way
    """

    def __init__(self, model: Model, source: Tensor, folder: Path):
        self.model, self.source, self.folder = model, source, folder
        self.table = model.table
        flat = torch.cat([tensor.flatten().double() for tensor in model.state_dict().values()])
        self.of = {"weights": digest("weights", flat)[:16], "source": digest("source", source)[:16]}
        self.records = needle_state.read_points(folder)

    def known(self, task: Task) -> Point | None:
        """The point of a task that was measured before, with the same weights and text."""
        wanted = asdict(task) | self.of
        for record in self.records:
            if all(record.get(name) == value for name, value in wanted.items()):
                return Point(**{name: value for name, value in record.items() if name not in self.of})
        return None

    def point(self, task: Task, tick: Tick, stopped: Callable[[], bool]) -> Point | None:
        """Read and ask; None where it was stopped, with what was read on the disk."""
        self.model.use(CHOICES[task.choice](self.table))
        hay = facts.haystack(self.source, task.n_tokens, task.seed)
        read = self.read(task, hay, tick, stopped)
        if read is None:
            return None
        point = Point(
            **asdict(task),
            depths=[round(depth, 4) for depth in hay.depths()],
            right=asked(self.model, hay, read.cache),
            ranks=ranks(self.model, hay, read.cache),
            prefill_seconds=round(read.seconds, 3),
            token_seconds=decoding_seconds(self.model, read.cache),
            cache=read.cache.report(),
            mha_bytes=mha_bytes(self.model, task.n_tokens),
            peak_bytes=peak_bytes(),
            n_threads=torch.get_num_threads(),
        )
        self.records.append(asdict(point) | self.of)
        needle_state.write_points(self.folder, self.records)
        needle_state.forget_prefill(self.folder)
        tick(ASKING)
        return point

    def read(self, task: Task, hay: facts.Haystack, tick: Tick, stopped: Callable[[], bool]) -> Read | None:
        """The cache of a text, from where an earlier run left it, or None where it was stopped; kept on the way."""
        told = {name: str(value) for name, value in (asdict(task) | self.of).items()}
        kept = needle_state.kept_prefill(self.folder, self.model, told)
        cache, before = (kept[0], float(kept[1]["seconds"])) if kept else (self.model.new_cache(), 0.0)
        tick(task.work() - task.work(cache.n_tokens))
        began = saved = time.perf_counter()
        while cache.n_tokens < task.n_tokens:
            first = cache.n_tokens
            self.model.prefill(hay.ids_BT[:, first : first + PREFILL_CHUNK], cache)
            tick(task.work(first) - task.work(cache.n_tokens))
            now = time.perf_counter()
            ends = cache.n_tokens == task.n_tokens
            if not ends and (stopped() or now - saved > KEPT_EVERY):
                seconds = before + now - began
                needle_state.keep_prefill(self.folder, cache, told | {"seconds": f"{seconds:.3f}"})
                saved = time.perf_counter()
                before -= saved - now  # writing is not reading
            if not ends and stopped():
                return None
        return Read(cache, before + time.perf_counter() - began)


def asked(model: Model, hay: facts.Haystack, cache: Cache) -> list[bool]:
    """Whether the likeliest token after each needle's question is its value.

    The cache is then as it was.
    """
    snapshot, right = cache.snapshot(), []
    for number, value in enumerate(hay.value.tolist()):
        logits_BTV = model(hay.question(number), cache=cache, last=1)
        right.append(int(logits_BTV.argmax()) == value)
        cache.restore(snapshot)
    return right


def scores(model: Model, question_BT: Tensor, cache: Cache) -> Tensor:
    """The index scores [C] of all entries for the last token of a question; the cache is then as it was."""
    snapshot = cache.snapshot()
    with watch(model, "top_entries") as calls:
        model(question_BT, cache=cache, last=1)
    (_, (query_BTUZ, weight_BTU, keys_BCZ, *_), _), *_ = calls
    score_BTC = index_scores(query_BTUZ[:, -1:], weight_BTU[:, -1:], keys_BCZ)
    cache.restore(snapshot)
    return score_BTC[0, 0]


def ranks(model: Model, hay: facts.Haystack, cache: Cache) -> list[int]:
    """How many entries of other text score above each needle's own; below P it is picked."""
    found = []
    for number, place in enumerate(hay.place.tolist()):
        score_C = scores(model, hay.question(number), cache)
        own = facts.entries(place, model.config.ratio_of(LayerKind.CSA))
        best = score_C[own].max()
        score_C[own] = -torch.inf
        found.append(int((score_C > best).sum()))
    return found


def decoding_seconds(model: Model, cache: Cache, n: int = DECODED) -> float:
    """The median time of one more token, of `n`; the cache is then as it was."""
    snapshot, taken = cache.snapshot(), []
    ids_BT = torch.tensor([[facts.ASK]])
    for _ in range(n):
        began = time.perf_counter()
        ids_BT = model(ids_BT, cache=cache, last=1).argmax(-1)
        taken.append(time.perf_counter() - began)
    cache.restore(snapshot)
    return statistics.median(taken)


def mha_bytes(model: Model, n_tokens: int) -> int:
    """Bytes of a key and a value of every head, in every layer, of the model's numbers."""
    config, n_bytes = model.config, model.embed.weight.element_size()
    return 2 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * n_bytes * n_tokens


# --- the command ---


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m minidsv4 needle`."""
    tokens = options.whole(facts.SHORTEST, MOST_TOKENS)
    parser.add_argument("--tokens", type=tokens, default=16384, help="of the longest text; 1048576 is a million")
    parser.add_argument(
        "--curve", action="store_true", help="also texts of 1,024 tokens, four times as many, and so on"
    )
    parser.add_argument("--seeds", type=options.whole(1, 1000), default=1, help="texts of each length")
    says = "which entries CSA and HCA layers read: as they were trained, or with something taken away"
    parser.add_argument("--reads", choices=list(CHOICES), action="append", help=f"{says}; may be given several times")
    parser.add_argument("--threads", type=options.whole(1, options.MOST_THREADS), default=2, help="of torch and loops")
    parser.add_argument("--model", type=options.folder, default=str(FOLDER), help="folder of the model that is asked")
    says = "folder of results and of the text that is being read; the same command goes on with them"
    parser.add_argument("--out", type=options.folder, default="runs/needle", help=says)


def measured(needles: Needles, tasks: Sequence[Task]) -> bool:
    """Measure the tasks that are not known, with a bar that tells the time left; False where Ctrl-C ended it."""
    left = [task for task in tasks if needles.known(task) is None]
    layout = "{percentage:3.0f}% |{bar:24}| {desc}, {elapsed} gone, {remaining} left"
    closed = sys.stderr is None or sys.stderr.closed
    total = sum(task.work() for task in left)
    with stop_on_interrupt() as stop, tqdm(total=total, bar_format=layout, disable=closed or not left) as bar:
        for task in left:
            bar.set_description_str(f"{task.choice} reads {task.n_tokens:,} tokens, seed {task.seed}")
            if stop.is_set() or needles.point(task, bar.update, stop.is_set) is None:
                return False
    return True


def table(points: Sequence[Point]) -> str:
    """The points as lines to read, and below them which needles were not found."""
    sizes = "".join(f"{name:>9}" for name in ("cache", "MHA", "peak"))
    lines = [f"{'reads':8}{'tokens':>10}{'seed':>5}{'found':>10}{'read':>16}{'one more':>10}{sizes}"]
    for point in points:
        found = f"{sum(point.right)} of {len(point.right)}"
        pace = f"{point.n_tokens / point.prefill_seconds:,.0f} tokens/s"
        held = (sum(point.cache.values()), point.mha_bytes, point.peak_bytes)
        lines.append(
            f"{point.choice:8}{point.n_tokens:10,}{point.seed:5}{found:>10}{pace:>16}"
            f"{1000 * point.token_seconds:7.2f} ms" + "".join(f"{options.readable(size):>9}" for size in held)
        )
    for point in points:
        missed = [f"{depth:.0%}" for depth, right in zip(point.depths, point.right) if not right]
        if missed and point.choice == "CSA":
            lines.append(
                f"Not found at {point.n_tokens:,} tokens, seed {point.seed}: at {', '.join(missed)} of the text."
            )
    lines.append(f"By chance {facts.CHANCE:.0%} are found. MHA: a key and a value of every head in every layer.")
    return "\n".join(lines)


def main(arguments: argparse.Namespace) -> int:
    """Measure what is not measured yet, and show all of it; 130 after Ctrl-C, which keeps what was read."""
    torch.set_num_threads(arguments.threads)
    folder = writable_folder(arguments.out)
    model = load_needle(arguments.model)
    compiled = arguments.ops is FAST and numba_is_here()
    model.use(COMPILED if compiled else arguments.ops)
    needles = Needles(model, facts.source_ids(), folder)
    each = lengths(arguments.tokens) if arguments.curve else [arguments.tokens]
    reads = arguments.reads or ["CSA"]
    tasks = [Task(choice, n, seed) for choice in reads for n in each for seed in range(arguments.seeds)]
    with told_of_compiling() if compiled else nullcontext():
        if not measured(needles, tasks):
            print(f"Stopped; the same command goes on from {options.pasted(folder)}.")
            return STOPPED
    print(table([needles.known(task) for task in tasks]))
    return 0
