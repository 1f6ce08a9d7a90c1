"""How close each phase comes to what the machine can do, both measured in the same run.

FLOPs are the model's own (`cost.flops`, raw). Bytes are the least that must move: the weights once a chunk, the
residual streams read twice and written once at each of two sites a layer, and in decoding the cache that a token reads.
"""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.benchmark import Timer

from minidsv4.bench import implementations
from minidsv4.bench.implementations import FUSED
from minidsv4.bench.peak_memory import FLOAT32, weight_bytes
from minidsv4.bench.phases import Bench, Row
from minidsv4.config import Config
from minidsv4.cost import flops, memory
from minidsv4.cost.parameters import weights
from minidsv4.cost.report import aligned
from minidsv4.model.model import PREFILL_CHUNK


@dataclass(frozen=True)
class Use:
    """FLOP/s and bytes/s of one run, and its shares of three limits.

    side         the implementation, and its way of doing it
    of_products  of the FLOP/s of a large product
    of_memory    of the bytes/s of a copy that is as large as what is moved
    of_calls     time that the calls of its operations take by themselves, in eager decoding; 0 where not counted
    """

    phase: str
    n_tokens: int
    side: str
    flops: float
    bytes: float
    of_products: float
    of_memory: float
    of_calls: float


def uses(bench: Bench, rows: Iterable[Row]) -> list[Use]:
    """The shares of every phase, length and implementation of which the rows have a time."""
    found = {}
    for row in rows:
        if row.unit != "s" or row.phase == "attend":
            continue
        ours, theirs = ("", row.way) if row.phase == "prefill" else (row.way, "")
        for side, times in ((f"minidsv4 {ours}", row.ours), (f"transformers {theirs}", row.reference)):
            if times:
                key = (row.phase, row.n_tokens, side.strip())
                found[key] = use(bench, *key, statistics.median(times))
    return list(found.values())


def use(bench: Bench, phase: str, n_tokens: int, side: str, seconds: float) -> Use:
    """The shares of one run that took so many seconds."""
    n_flops, n_bytes = work_of(bench.config, phase, n_tokens)
    counted = phase == "decode" and FUSED not in side
    ideal = (
        n_flops / product_rate(),
        n_bytes / memory_rate(n_bytes),
        calls_of_a_token(bench, side) * call_seconds() if counted else 0.0,
    )
    return Use(phase, n_tokens, side, n_flops / seconds, n_bytes / seconds, *(one / seconds for one in ideal))


def work_of(config: Config, phase: str, n_tokens: int) -> tuple[float, float]:
    """FLOPs and least bytes of one run of a phase; of one token in decoding."""
    streams = 3 * 2 * config.num_hidden_layers * 4 * config.hc_mult * config.hidden_size * n_tokens
    if phase == "decode":
        read = sum(4 * weight.active * weight.size for weight in weights(config) if weight.is_multiplied)
        read += memory.read_bytes(config, n_tokens, FLOAT32)
        return flops.weighted(flops.decode(config, n_tokens), flops.RAW), float(read)
    if phase == "train":  # forward, and twice as much backward
        return flops.training(config, n_tokens, implementations.TRAINED[1]), 3.0 * (streams + weight_bytes(config))
    read = math.ceil(n_tokens / PREFILL_CHUNK) * weight_bytes(config)
    return flops.weighted(flops.prefill(config, n_tokens), flops.RAW), float(streams + read)


class Calls(TorchDispatchMode):
    """Counts the operations that reach torch's kernels, views among them."""

    n = 0

    def __torch_dispatch__(self, operation, types, arguments=(), named=None):
        self.n += 1
        return operation(*arguments, **(named or {}))


def calls_of_a_token(bench: Bench, side: str, n_tokens: int = 256) -> int:
    """Operations of one decoded token; a longer context changes their size and hardly their number."""
    runner = bench.ours if side == "minidsv4" else bench.reference
    context = runner.prefill(bench.ids(1, n_tokens))
    if runner is bench.reference:
        runner.use_backend(runner.backends["decode"])
    with Calls() as calls:
        runner.step(bench.ids(1, 1), context)
    return calls.n


def best_seconds(statement: str, **values: Tensor) -> float:
    """The shortest mean time of a statement over blocks of runs: a limit is what a machine can do."""
    timer = Timer(statement, globals=values, num_threads=torch.get_num_threads())
    return min(timer.blocked_autorange(min_run_time=0.1).times)


@cache
def product_rate() -> float:
    """FLOP/s of a float32 product of 1024 x 1024 matrices."""
    return 2 * 1024**3 / best_seconds("x @ x", x=torch.randn(1024, 1024))


@cache
def call_seconds() -> float:
    """Seconds of adding 4 numbers, which takes no longer than calling the operation does."""
    return best_seconds("x + x", x=torch.ones(4))


def memory_rate(n_bytes: float) -> float:
    """Bytes/s that a copy reads and writes, as large as `n_bytes` (1 to 256 MB): a small one stays in the caches."""
    source = torch.ones(int(min(max(n_bytes, 1e6), 256e6)) // 8)
    return 2 * source.nbytes / best_seconds("y.copy_(x)", x=source, y=torch.empty_like(source))


def table(shares: list[Use]) -> str:
    """What each phase reaches of the machine's limits, a line each."""
    rows = [
        (
            f"{use.phase} at {use.n_tokens:,}, {use.side}",
            f"{use.flops / 1e9:,.3g} GFLOP/s {use.of_products:7.1%}",
            f"{use.bytes / 1e9:,.3g} GB/s {use.of_memory:7.1%}",
            f"{use.of_calls:.0%} of the time" if use.of_calls else "",
        )
        for use in shares
    ]
    return aligned(("shares of limits", "of a large product's FLOPs", "of a copy's bytes", "calls alone"), rows)
