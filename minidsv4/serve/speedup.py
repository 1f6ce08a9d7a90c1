"""The speedup of speculative decoding on given prompts: acceptance, tokens a pass, seconds against plain decoding."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from minidsv4.model.model import Model
from minidsv4.serve.generation import generate
from minidsv4.serve.speculate import Speculation


@dataclass(frozen=True)
class Speedup:
    """Counts and times, summed over all prompts; see `measure_speedup`.

    speculation          counts of rounds and accepted drafts
    written              tokens written, by either way
    same                 texts that are the same by both ways; at temperature 0 all but for rounding
    seconds, plain       time with drafts and without, prefill of the prompts included
    """

    speculation: Speculation
    written: int
    same: int
    seconds: float
    plain: float

    def __str__(self) -> str:
        counts = self.speculation
        shares = ", ".join(f"{kept / max(1, counts.rounds):.0%}" for kept in counts.kept)
        return (
            f"{self.written} tokens, {counts.passes} passes: {counts.tokens_per_pass:.2f} tokens a pass; "
            f"drafts kept: {shares}; {self.plain / self.seconds:.2f} times as fast"
        )


def measure_speedup(
    model: Model, prompts: Iterable[Sequence[int]], n_tokens: int, depth: int = 1, **sampling: Any
) -> Speedup:
    """The speedup over all prompts, after each of which is written twice: one by one and with drafts.

    prompts   token ids of each
    n_tokens  to write after each
    depth     drafts a round
    sampling  temperature (0 if not given), top_p, seed, stop: as in `generate`
    """
    sampling = {"temperature": 0} | sampling
    counts = Speculation(depth)
    seconds = {False: 0.0, True: 0.0}
    written = 0
    same = 0
    for ids in prompts:
        texts = {}
        for drafting in (False, True):
            start = time.perf_counter()
            texts[drafting] = generate(model, ids, n_tokens, speculate=counts if drafting else False, **sampling)
            seconds[drafting] += time.perf_counter() - start
        written += len(texts[True])
        same += texts[True] == texts[False]
    return Speedup(counts, written, same, seconds[True], seconds[False])
