"""Mistakes in what is remembered, and in going back."""

from collections.abc import Callable

from minidsv4.course.mutants.museum import trap
from minidsv4.model.cache import Cache, Series


@trap(
    39,
    at=[(Cache, "go_back")],
    symptom="After a prefix hit the model continues another conversation for W tokens.",
    found="ATOM#1417",
    killed_by=("restoring_forgets_what_was_rejected",),
)
def window_left_stale(right, memory, n_tokens, ends):
    """A restored cache gets its compressed entries back, and keeps the window of whatever ran last."""
    go_back_but_keep([layer.window for layer in memory.layers], right, memory, n_tokens, ends)


def go_back_but_keep(kept: list[Series], right: Callable, memory: Cache, n_tokens: int, ends: list) -> None:
    """Everything goes back but these series."""
    stale = [series.ends() for series in kept]
    right(memory, n_tokens, ends)
    for series, series_ends in zip(kept, stale):
        series.set_ends(series_ends)


@trap(
    40,
    at=[(Cache, "go_back")],
    symptom="After rejected drafts that closed a window, the next entry overlaps with tokens that were never said.",
    killed_by=("restoring_forgets_what_was_rejected",),
)
def overlap_not_rolled_back(right, memory, n_tokens, ends):
    """The compressors' previous half stays what the rejected tokens made of it."""
    compressors = [part for layer in memory.layers for part in layer.compressors()]
    go_back_but_keep([part.previous for part in compressors], right, memory, n_tokens, ends)


@trap(
    40,
    at=[(Cache, "go_back")],
    symptom="After rejected drafts the next entry pools tokens that were never said, and all later ones a wrong count.",
    killed_by=("restoring_forgets_what_was_rejected",),
)
def raw_series_of_drafts_kept(right, memory, n_tokens, ends):
    """The raw series of the open windows keep what rejected tokens put there."""
    compressors = [part for layer in memory.layers for part in layer.compressors()]
    go_back_but_keep([part.open for part in compressors], right, memory, n_tokens, ends)


@trap(
    39,
    at=[(Series, "keep")],
    symptom="One pass is right; every call begins blind to the tokens just before it.",
    killed_by=("chunks_equal_one_pass", "cache_bytes_equal_the_formula"),
)
def window_not_carried_over(right, series, n):
    """The window's entries are not remembered between calls."""
    return right(series, 0)


@trap(
    at=[(Series, "keep")],
    symptom="Every output is right; memory grows by a window entry a token and layer, and 1M tokens do not fit.",
    killed_by=("cache_bytes_equal_the_formula",),
)
def window_never_forgotten(right, series, n):
    """Window entries are masked when they are old, and kept for ever."""
