"""Cost curves of this package alone: one pass over a long text, with a look at clock and memory at each length."""

import statistics
import time
from dataclasses import dataclass

import torch

from minidsv4.bench.fresh import high_water, reset_mark, run_alone
from minidsv4.bench.sides import Ours
from minidsv4.config import Config

LENGTHS = tuple(1 << power for power in range(10, 21))  # tokens: 1K to 1M
DECODED = 16  # tokens, in each of three turns


@dataclass(frozen=True)
class Point:
    """What `n_tokens` have cost.

    size     with ", fused" where compiled loops ran
    prefill  seconds a token, from the first one on
    decode   seconds of one more token
    cache    bytes that the cache holds, spare room included
    peak     the most bytes above the weights so far, the cache among them
    """

    size: str
    n_tokens: int
    prefill: float
    decode: float
    cache: int
    peak: int


def curve(
    size: str, config: Config, n_threads: int, device: str, lengths: tuple[int, ...], fused: bool = False
) -> list[Point]:
    """Points at rising lengths, measured in a process of its own; `fused`: with the compiled indexer and step."""
    return run_alone(_points, size, config, n_threads, device, lengths, fused)


@torch.inference_mode()
def _points(
    size: str, config: Config, n_threads: int, device: str, lengths: tuple[int, ...], fused: bool
) -> list[Point]:
    torch.set_num_threads(n_threads)
    ours = Ours(config, device)
    step = ours.fuse() if fused else ours.step
    ids_BT = torch.randint(config.vocab_size, (1, lengths[-1]), generator=torch.Generator().manual_seed(1)).to(device)
    step(ids_BT[:, :1], ours.prefill(ids_BT[:, : lengths[0]]))  # a warm-up, which compiles
    before, spent, points, cache = reset_mark(device), 0.0, [], ours.model.new_cache()
    for n_tokens in lengths:
        spent += _seconds(device, lambda n=n_tokens: ours.model.prefill(ids_BT[:, cache.n_tokens : n], cache))
        peak, held = max(0, high_water(device) - before), ours.cache_bytes(cache)[1]
        here, turns = cache.snapshot(), []
        for _ in range(3):
            turns.append(_seconds(device, lambda: [step(ids_BT[:, :1], cache) for _ in range(DECODED)]) / DECODED)
        cache.restore(here)
        points.append(Point(size + ", fused" * fused, n_tokens, spent / n_tokens, statistics.median(turns), held, peak))
        print(point_line(points[-1]), flush=True)
    return points


def _seconds(device: str, work) -> float:
    began = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


HEADING = "".join(
    f"{name:>18}" for name in ("tokens", "prefill, us/token", "decode, ms/token", "cache, MB", "peak, MB")
)


def point_line(point: Point) -> str:
    """A row below HEADING."""
    numbers = (1e6 * point.prefill, 1e3 * point.decode, point.cache / 1e6, point.peak / 1e6)
    return f"{point.n_tokens:18,}" + "".join(f"{number:18.3g}" for number in numbers)
