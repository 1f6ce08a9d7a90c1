"""What drafting gains on given prompts: acceptance, tokens a pass, seconds against plain decoding."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from minidsv4.serve.sample import generate
from minidsv4.serve.speculate import Speculation


@dataclass(frozen=True)
class Gain:
    """Sums over all prompts; see `measure`.

    speculation          counts of rounds and kept drafts
    written              tokens written, by either way
    same                 texts that are the same by both ways; at temperature 0 all but for rounding
    seconds, plain       time with drafts and without, each with the taking in of the prompts
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


def measure(model: nn.Module, prompts: Iterable[Sequence[int]], n_tokens: int, depth: int = 1, **sampling) -> Gain:
    """Write after every prompt, plainly and with drafts.

    prompts   token ids of each
    n_tokens  to write after each
    depth     drafts a round
    sampling  temperature (0 if not given), top_p, seed, stop: as in `generate`
    """
    sampling, counts = {"temperature": 0} | sampling, Speculation(depth)
    written, same, seconds = 0, 0, {False: 0.0, True: 0.0}
    for ids in prompts:
        texts = {}
        for drafting in (False, True):
            start = time.perf_counter()
            texts[drafting] = generate(model, ids, n_tokens, speculate=counts if drafting else False, **sampling)
            seconds[drafting] += time.perf_counter() - start
        written, same = written + len(texts[True]), same + (texts[True] == texts[False])
    return Gain(counts, written, same, seconds[True], seconds[False])
