"""Mistakes in what is remembered, and in going back."""

from collections.abc import Callable
from unittest.mock import patch

import torch

from minidsv4.course.mutants.museum import trap
from minidsv4.lowbit import entries
from minidsv4.model.cache import Cache, Series
from minidsv4.serve import prefix_store
from minidsv4.serve.prefix_files import PrefixFiles
from minidsv4.serve.prefix_state import Stored


@trap(
    39,
    at=[(Cache, "go_back")],
    symptom="After a prefix hit the model continues another conversation for W tokens.",
    found="ATOM#1417",
    killed_by=("restoring_forgets_what_was_rejected", "a_prefix_hit_goes_on_with_its_own_text"),
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
    killed_by=("restoring_forgets_what_was_rejected", "a_prefix_hit_goes_on_with_its_own_text"),
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
    killed_by=("chunks_equal_one_pass", "cache_bytes_equal_the_formula", "a_prefix_hit_goes_on_with_its_own_text"),
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


@trap(
    39,
    at=[(PrefixFiles, "read")],
    symptom="After a prefix hit the model continues the conversation that somebody else had last.",
    found="ATOM#1417",
    killed_by=("a_prefix_hit_goes_on_with_its_own_text",),
)
def window_of_another_prompt(right, files, name):
    """Stored windows are told apart by their place alone, so a hit gets that of the prompt that came last."""
    kind = name.rpartition(".")[2]
    same_place = [other for other in files.found() if other.endswith(kind) and kind != "entries"]
    newest = max(same_place, key=lambda other: files.found()[other].used, default=name)
    return right(files, newest if name in same_place else name)


@trap(
    39,
    at=[(Stored, "append")],
    symptom="The longer the prefix was, the further the answer strays: its last entries come from a window cut off.",
    killed_by=("a_prefix_hit_goes_on_with_its_own_text",),
)
def recomputed_entries_stored(right, series, new):
    """What the first tokens of the cone pool anew takes the place of the entries that were stored."""
    return Series.append(series, new)


@trap(
    41,
    at=[(prefix_store, "block_tokens")],
    symptom="Every answer is right; a prompt shorter than a block, of thousands of tokens, is never found again.",
    found="vllm-ascend#16270",
    killed_by=("a_prefix_hit_goes_on_with_its_own_text",),
)
def blocks_of_whole_pages(right, config):
    """A block fills a page of every series, and a page holds as many entries of HCA as window entries."""
    return right(config) * config.sliding_window


@trap(
    43,
    at=[(entries, "unpack_entries")],
    symptom="What is read back is half as large, and NaN where a byte meant -0: no score of NaN is among the best.",
    found="vllm#52109",
    killed_by=("an_entry_of_8_bits_is_read_as_the_format_says",),
)
def entries_read_as_fnuz(right, packed, width, rotary, dtype):
    """Bytes of e4m3fn, the open standard, are read as e4m3fnuz: exponents count from 8, not 7, and byte 80 is NaN."""
    with patch.object(torch, "float8_e4m3fn", torch.float8_e4m3fnuz):
        return right(packed, width, rotary, dtype)


@trap(
    40,
    at=[(Cache, "go_back")],
    symptom="Going back inside a compression window loses tokens: the entry that closes next pools too few or others.",
    killed_by=("restoring_forgets_what_was_rejected",),
)
def rewound_by_cutting(right, memory, n_tokens, ends):
    """A cache goes back by cutting off the newest rows of every series; but a pool has eaten the rows of its window."""
    n_cut = memory.n_tokens - n_tokens
    if n_cut < 0:  # no rewind: what another cache held is taken over
        return right(memory, n_tokens, ends)
    for layer in memory.layers:
        cut(layer.window, n_cut)
        for part in layer.compressors():
            cut(part.open, n_cut)
            cut(part.entries, len(part.entries) - n_tokens // memory.config.ratio_of(layer.kind))
    memory.n_tokens = n_tokens


def cut(series: Series, n: int) -> None:
    """Forget the newest `n`, or all there are; none where `n` is negative."""
    series.high = max(series.low, series.high - max(0, n))
