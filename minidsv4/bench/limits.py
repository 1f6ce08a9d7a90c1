"""How close each phase comes to what the machine can do, both measured in the same run.

FLOPs are the model's own (`cost.flops`, raw). Bytes are the least that must move: the weights once a chunk, the
residual streams read twice and written once at each of two sites a layer, and in decoding the cache that a token reads.
"""

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from minidsv4.bench import sizes
from minidsv4.bench.implementations import RECOMPUTED
from minidsv4.bench.phases import FUSED, PLAIN_WAY, Bench, Row
from minidsv4.config import Config
from minidsv4.cost import flops, memory
from minidsv4.cost.parameters import weights
from minidsv4.model.model import PREFILL_CHUNK

OWN_WAYS = {FUSED: "", RECOMPUTED: "", PLAIN_WAY: "whole"}  # of this package: the way of transformers beside it


@dataclass(frozen=True)
class Use:
    """What one run does a second, and its shares of three limits.

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
    rates = (product_rate(bench), call_seconds(bench))
    found = {}
    for row in rows:
        own = row.way if row.way in OWN_WAYS else ""
        sides = {
            f"minidsv4 {own}".strip(): row.ours,
            f"transformers {OWN_WAYS.get(row.way, row.way)}".strip(): row.reference,
        }
        for side, times in sides.items():
            if row.unit == "s" and times:
                found[row.phase, row.n_tokens, side] = _use(bench, row, side, statistics.median(times), rates)
    return list(found.values())


def _use(bench: Bench, row: Row, side: str, seconds: float, rates: tuple[float, float]) -> Use:
    n_flops, n_bytes = work_of(bench.config, row.phase, row.n_tokens)
    calls = calls_of_a_token(bench, side) * rates[1] if row.phase == "decode" and FUSED not in side else 0.0
    ideal = (n_flops / rates[0], n_bytes / memory_rate(bench, n_bytes), calls)
    return Use(row.phase, row.n_tokens, side, n_flops / seconds, n_bytes / seconds, *(one / seconds for one in ideal))


def work_of(config: Config, phase: str, n_tokens: int) -> tuple[float, float]:
    """FLOPs and least bytes of one run of a phase; of one token in decoding."""
    streams = 3 * 2 * config.num_hidden_layers * 4 * config.hc_mult * config.hidden_size * n_tokens
    if phase == "decode":
        read = sum(4 * weight.active * weight.size for weight in weights(config) if weight.product)
        read += memory.read(config, n_tokens, sizes.FLOAT32)
        return flops.weighted(flops.decode(config, n_tokens), flops.RAW), float(read)
    if phase == "train":  # forward, and twice as much backward
        return flops.training(config, n_tokens, sizes.TRAINED[1]), 3.0 * (streams + sizes.weight_bytes(config))
    read = math.ceil(n_tokens / PREFILL_CHUNK) * sizes.weight_bytes(config)
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
    cache = runner.prefill(bench.ids(1, n_tokens))
    if runner is bench.reference:
        runner.use_backend(runner.backends["decode"])
    with Calls() as calls:
        runner.step(bench.ids(1, 1), cache)
    return calls.n


def best_seconds(bench: Bench, work: Callable[[], object]) -> float:
    """The shortest of five runs after one to warm up: a limit is what a machine can do."""
    return min([bench.seconds(work) for _ in range(6)][1:])


def product_rate(bench: Bench) -> float:
    """FLOP/s of a float32 product of 1024 x 1024 matrices."""
    left, right = torch.randn(2, 1024, 1024, device=bench.device)
    return 2 * 1024**3 / best_seconds(bench, lambda: left @ right)


def memory_rate(bench: Bench, n_bytes: float) -> float:
    """Bytes/s that a copy reads and writes, as large as `n_bytes` (1 to 256 MB): a small one stays in the caches."""
    source = torch.ones(int(min(max(n_bytes, 1e6), 256e6)) // 8, device=bench.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_seconds(bench, lambda: target.copy_(source))


def call_seconds(bench: Bench) -> float:
    """Seconds of adding 4 numbers, the mean of 1000."""
    numbers = torch.ones(4, device=bench.device)
    return best_seconds(bench, lambda: [numbers + numbers for _ in range(1000)]) / 1000


def table(shares: list[Use]) -> list[str]:
    """Lines: what each phase reaches of the machine's limits."""
    heads = ("of a large product's FLOPs", "of a copy's bytes", "calls alone")
    lines = ["", f"{'what is reached of the limits':46}" + "".join(f"{head:>28}" for head in heads)]
    for use in shares:
        reached = (
            f"{use.flops / 1e9:,.3g} GFLOP/s {use.of_products:7.1%}",
            f"{use.bytes / 1e9:,.3g} GB/s {use.of_memory:7.1%}",
            f"{use.of_calls:.0%} of the time" if use.of_calls else "",
        )
        name = f"{use.phase} at {use.n_tokens:,}, {use.side}"
        lines.append((f"{name:46}" + "".join(f"{cell:>28}" for cell in reached)).rstrip())
    return lines
