"""How close each phase comes to what the machine can do, both measured in the same run.

FLOPs are the model's own (`cost.flops`, raw). Bytes are the least that must move: the weights once a chunk, the
residual streams read twice and written once at each of two sites a layer, and in decoding the cache that a token reads.
"""

import math
import statistics
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.benchmark import Timer

from minidsv4.bench import implementations
from minidsv4.bench.implementations import FUSED, MiniDSV4
from minidsv4.bench.peak_memory import FLOAT32, weight_bytes
from minidsv4.bench.phases import Bench
from minidsv4.bench.rows import Row
from minidsv4.config import Config
from minidsv4.cost import flops, memory
from minidsv4.cost.parameters import weights
from minidsv4.fast.products import linear
from minidsv4.model.model import PREFILL_CHUNK


class Share(NamedTuple):
    """What one of our runs reaches of three limits.

    of_products  of the FLOP/s of a large product
    of_copy      of the bytes/s of a copy that is as large as what is moved
    of_calls     time that the calls of its operations take by themselves, in eager decoding; 0 where not counted
    """

    of_products: float
    of_copy: float
    of_calls: float


def share(bench: Bench, row: Row) -> Share | None:
    """The shares of the row's own time; transformers' are those over the row's ratio. None for bytes, and `attend`."""
    if row.unit != "s" or row.phase == "attend":
        return None
    seconds = statistics.median(row.ours)
    n_flops, n_bytes = work_of(bench.config, row.phase, row.n_tokens)
    counted = row.phase == "decode" and row.way != FUSED
    calls = calls_of_a_token(bench.ours, bench.ids(1, 256)) if counted else 0
    return Share(*(ideal / seconds for ideal in times_at_the_limits(n_flops, n_bytes, calls)))


def times_at_the_limits(n_flops: float, n_bytes: float, n_calls: int) -> tuple[float, float, float]:
    """Seconds that so many FLOPs, bytes and calls take at least."""
    return n_flops / product_rate(), n_bytes / memory_rate(n_bytes), n_calls * call_seconds()


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


def calls_of_a_token(side: MiniDSV4, ids_BT: Tensor) -> int:
    """Operations of one token decoded after these; a longer context changes their size and hardly their number."""
    context = side.prefill(ids_BT)
    with Calls() as calls:
        side.step(ids_BT[:, :1], context)
    return calls.n


def best_seconds(statement: str, **values: Any) -> float:
    """The shortest mean time of a statement over blocks of runs: a limit is what a machine can do."""
    timer = Timer(statement, globals=values, num_threads=torch.get_num_threads())
    return min(timer.blocked_autorange(min_run_time=0.1).times)


@cache
def product_rate() -> float:
    """FLOP/s of a float32 product of 1024 x 1024 matrices, by the faster of torch's libraries."""
    x = torch.randn(1024, 1024)
    return 2 * 1024**3 / min(best_seconds("x @ x", x=x), best_seconds("linear(x, x)", x=x, linear=linear))


@cache
def call_seconds() -> float:
    """Seconds of adding 4 numbers, which takes no longer than calling the operation does."""
    return best_seconds("x + x", x=torch.ones(4))


def memory_rate(n_bytes: float) -> float:
    """Bytes/s that a copy reads and writes, as large as `n_bytes` (1 to 256 MB): a small one stays in the caches."""
    source = torch.ones(int(min(max(n_bytes, 1e6), 256e6)) // 8)
    return 2 * source.nbytes / best_seconds("y.copy_(x)", x=source, y=torch.empty_like(source))
