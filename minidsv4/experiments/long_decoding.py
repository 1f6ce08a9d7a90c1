"""How long one more token takes after texts of a thousand to a million tokens, by table of operations.

    python -m minidsv4.experiments.long_decoding  `tiny` with PLAIN, FAST, COMPILED and the fused step (2 CPU minutes)

What a step computes depends on how many entries the cache holds, not on which: so the cache is filled with random
numbers, in place of a text that would have to be read first. Times are this machine's.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from minidsv4.config import Config
from minidsv4.fast import FAST
from minidsv4.fast.compiled.numba_loops import numba_is_here, told_of_compiling
from minidsv4.fast.compiled.step import FusedStep
from minidsv4.fast.compiled.table import COMPILED
from minidsv4.model.cache import Cache, Series
from minidsv4.model.model import Model
from minidsv4.ops import PLAIN

LENGTHS = tuple(4**power for power in range(5, 11))  # tokens: 1K to 1M
REPEATS = 24  # tokens whose times give the median


class Pace(NamedTuple):
    """The median seconds of one more token after a text, with one way of computing it."""

    way: str
    n_tokens: int
    seconds: float


def random_cache(model: Model, n_tokens: int, seed: int = 0) -> Cache:
    """A cache as after so many tokens: as many values of every kind, and those random."""
    cache, generator = model.new_cache(), torch.Generator().manual_seed(seed)
    some = min(n_tokens, 4 * model.config.document_grid)
    model(torch.zeros(1, some, dtype=torch.int64), cache=cache)  # fills what keeps the previous window

    def fill(series: Series, n: int) -> None:
        shape = (1, n, series.data.shape[2])
        series.replace(torch.randn(shape, generator=generator, dtype=series.data.dtype))

    for layer in cache.layers:
        ratio = model.config.ratio_of(layer.kind)
        fill(layer.window, min(n_tokens, model.config.sliding_window))
        for memory in layer.compressors():
            fill(memory.open, n_tokens % ratio)
            fill(memory.entries, n_tokens // ratio)
    cache.n_tokens = n_tokens
    return cache


def pace(step: Callable[[Tensor], Tensor], cache: Cache, repeats: int = REPEATS) -> float:
    """The median seconds of a step from the same cache, which is then as it was."""
    snapshot, taken = cache.snapshot(), []
    for token in range(repeats):
        began = time.perf_counter()
        step(torch.tensor([[token]]))
        taken.append(time.perf_counter() - began)
        cache.restore(snapshot)
    return statistics.median(taken)


@torch.inference_mode()
def paces(model: Model, n_tokens: int) -> list[Pace]:
    """Every way at one length; the compiled ones where numba is there."""
    cache, found = random_cache(model, n_tokens), []
    tables = {"PLAIN": PLAIN, "FAST": FAST} | ({"COMPILED": COMPILED} if numba_is_here() else {})
    for way, table in tables.items():
        model.use(table)
        found.append(Pace(way, n_tokens, pace(partial(model, cache=cache), cache)))
    if numba_is_here():
        found.append(Pace("fused", n_tokens, pace(partial(FusedStep(model), cache=cache), cache)))
    return found


def main() -> None:
    """Measure `tiny` and show a line a length."""
    parser = argparse.ArgumentParser(prog="python -m minidsv4.experiments.long_decoding", description="One more token.")
    parser.add_argument("--threads", type=int, default=1, help="of torch and loops")
    torch.set_num_threads(parser.parse_args().threads)
    model = Model(Config.tiny())
    with told_of_compiling():
        paces(model, LENGTHS[0])  # a warm-up
    for n_tokens in LENGTHS:
        told = (f"{one.way} {1000 * one.seconds:.3g} ms" for one in paces(model, n_tokens))
        print(f"{n_tokens:10,}  {', '.join(told)}", flush=True)


if __name__ == "__main__":
    main()
