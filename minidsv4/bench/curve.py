"""Cost curves of this package alone: one pass over a long text, with a look at clock and memory at each length."""

import statistics
from dataclasses import dataclass

import torch

from minidsv4.bench.implementations import MiniDSV4
from minidsv4.bench.phases import DECODED, Bench, peak_bytes, reset_peak
from minidsv4.config import Config

LENGTHS = tuple(1 << power for power in range(10, 21))  # tokens: 1K to 1M
HEADING = "".join(
    f"{name:>18}" for name in ("tokens", "prefill, us/token", "decode, ms/token", "cache, MB", "peak, MB")
)


@dataclass(frozen=True)
class Point:
    """What `n_tokens` have cost this package.

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


@torch.inference_mode()
def curve(size: str, config: Config, n_threads: int, device: str, lengths: tuple[int, ...], fused: bool) -> list[Point]:
    """Points at rising lengths of one text, printed as they come; to be run in a process of its own."""
    torch.set_num_threads(n_threads)
    bench = Bench(size, config, MiniDSV4(config, device), None, device=device)
    ours = bench.ours
    step = ours.step
    if fused:
        ours.fuse_prompts()
        step = ours.fused_step()
    ids_BT = bench.ids(1, lengths[-1])
    step(ids_BT[:, :1], ours.prefill(ids_BT[:, : lengths[0]]))  # a warm-up, which compiles
    before = reset_peak(device)
    cache = ours.model.new_cache()
    spent = 0.0
    points = []
    for n_tokens in lengths:
        spent += bench.seconds(lambda n=n_tokens: ours.model.prefill(ids_BT[:, cache.n_tokens : n], cache))
        peak = max(0, peak_bytes(device) - before)
        held = ours.cache_bytes(cache)[1]
        here = cache.snapshot()
        turns = [bench.seconds(lambda: [step(ids_BT[:, :1], cache) for _ in range(DECODED)]) for _ in range(3)]
        cache.restore(here)
        a_token = statistics.median(turns) / DECODED
        points.append(Point(size + ", fused" * fused, n_tokens, spent / n_tokens, a_token, held, peak))
        print(point_line(points[-1]), flush=True)
    return points


def point_line(point: Point) -> str:
    """A row below HEADING."""
    numbers = (1e6 * point.prefill, 1e3 * point.decode, point.cache / 1e6, point.peak / 1e6)
    return f"{point.n_tokens:18,}" + "".join(f"{number:18.3g}" for number in numbers)
