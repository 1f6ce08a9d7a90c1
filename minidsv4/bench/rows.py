"""What `bench` finds: lines of the comparison, and points of the cost curves."""

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import NamedTuple


class Run(NamedTuple):
    """One run of a work: seconds, and the bytes of pages that the system handed out anew."""

    seconds: float
    fresh: int


def run(work: Callable[[], object]) -> Run:
    """What one run takes."""
    before, began = fresh_bytes(), time.perf_counter()
    work()
    return Run(time.perf_counter() - began, fresh_bytes() - before)


def fresh_bytes() -> int:
    """Bytes of pages that this process has been handed so far, each when it was first touched.

    Too few where the system hands out huge pages, which count as small ones.
    """
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt * resource.getpagesize()


@dataclass(frozen=True)
class Row:
    """One line of the comparison, with every measured value.

    phase      prefill, attend, decode, train, memory or cache
    n_tokens   of the prompt, of the context, or of the training step
    way        how transformers takes the prompt; FUSED or RECOMPUTED where this package has two ways
    table      the operations that `ours` ran
    unit       "s" (of a token in decode, of a step in train) or "B"
    ours       values of this package; with FAST where `plain` has values
    reference  values of transformers, empty where it did not run; `why` then says why
    plain      values of this package with the operations of PLAIN, empty where they were not measured
    fresh      bytes of pages that the system handed out anew in the last of `ours`; None where not counted
    """

    size: str
    phase: str
    n_tokens: int
    way: str
    unit: str
    ours: list[float]
    reference: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    why: str = ""
    table: str = "FAST"
    fresh: int | None = None

    def ratio(self) -> float | None:
        """The reference's median over ours: above 1 is in our favour."""
        return statistics.median(self.reference) / statistics.median(self.ours) if self.reference else None

    def spread(self) -> tuple[float, float] | None:
        """The lowest and the highest ratio of one round."""
        rounds = [reference / ours for ours, reference in zip(self.ours, self.reference)]
        return (min(rounds), max(rounds)) if rounds else None

    def plain_over_fast(self) -> float | None:
        """The median with PLAIN over that with FAST."""
        return statistics.median(self.plain) / statistics.median(self.ours) if self.plain else None

    def to_dict(self) -> dict:
        """All fields, medians and ratios, as plain values."""
        values = {"ours": self.ours, "reference": self.reference, "plain": self.plain}
        medians = {f"{name}_median": statistics.median(found or [0]) for name, found in values.items()}
        ratios = {"ratio": self.ratio(), "spread": self.spread(), "plain_over_fast": self.plain_over_fast()}
        return asdict(self) | medians | ratios


@dataclass(frozen=True)
class Point:
    """What a text of `n_tokens` costs this package.

    size     with ", fused" where compiled loops ran
    prefill  seconds a token, from the first one on
    decode   seconds of one more token
    cache    bytes of the cache's buffers
    peak     the most bytes so far above the weights and the buffers of the cache
    """

    size: str
    n_tokens: int
    prefill: float
    decode: float
    cache: int
    peak: int
