"""Mistakes in what is remembered, and in going back."""

from collections.abc import Callable

from minidsv4.course.mutants.museum import trap
from minidsv4.model import cache


@trap(
    39,
    at=[(cache.Cache, "rewind")],
    symptom="After a prefix hit the model continues another conversation for W tokens.",
    found="ATOM#1417",
    killed_by=("restoring_forgets_what_was_rejected",),
)
def window_left_stale(right, memory, mark):
    """A restored cache gets its compressed entries back, and keeps the window of whatever ran last."""
    _rewind_all_but([layer.window for layer in memory.layers], right, memory, mark)


def _rewind_all_but(left: list[cache.Series], right: Callable, memory: cache.Cache, mark: cache.Snapshot) -> None:
    stale = [dict(vars(series)) for series in left]
    right(memory, mark)
    for series, state in zip(left, stale):
        vars(series).update(state)


@trap(
    40,
    at=[(cache.Cache, "rewind")],
    symptom="After rejected drafts that closed a window, the next entry overlaps with tokens that were never said.",
    killed_by=("restoring_forgets_what_was_rejected",),
)
def overlap_not_rolled_back(right, memory, mark):
    """The compressors' previous half stays what the rejected tokens made of it."""
    compressors = [part for layer in memory.layers for part in layer.compressors()]
    _rewind_all_but([part.previous for part in compressors], right, memory, mark)


@trap(
    39,
    at=[(cache.Series, "keep")],
    symptom="One pass is right; every call begins blind to the tokens just before it.",
    killed_by=("chunks_equal_one_pass", "cache_bytes_equal_the_formula"),
)
def window_not_carried_over(right, series, n):
    """The window's entries are not remembered between calls."""
    return right(series, 0)


@trap(
    at=[(cache.Series, "keep")],
    symptom="Every output is right; memory grows by a window entry a token and layer, and 1M tokens do not fit.",
    killed_by=("cache_bytes_equal_the_formula",),
)
def window_never_forgotten(right, series, n):
    """Window entries are masked when they are old, and kept for ever."""
