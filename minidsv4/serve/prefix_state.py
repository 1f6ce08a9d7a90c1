"""What is stored of a cache at a border of blocks, and how the rest of it is computed again.

B batch, T tokens, C entries, L layers, M tokens per entry, W window. Report section 3.6.2. Stored are entries and
indexer keys; window entries in part or not at all; the raw series of a compressor, open window and overlap, never.

What is not stored comes from running the last tokens before the border once more, over the stored entries. The window
of layer l is right from l (W - 1) tokens after the first of them on: before, a layer below read a window that was cut
off. So W + (L - 1)(W - 1) tokens make the last W entries of every window right (`cone_tokens`), and with them the raw
rows of CSA's last compression window, which the next entry overlaps with. Where the windows themselves are stored, they
are taken as they were M tokens before the border, and M tokens make those rows (`overlap_tokens`). Entries that
the first tokens pool again are wrong: `Stored` drops them and goes on with what was stored.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minidsv4.config import Config, LayerKind
from minidsv4.lowbit.entries import Form
from minidsv4.model.cache import Cache, Series
from minidsv4.model.model import Model


def block_tokens(config: Config) -> int:
    """Tokens of a block: the least that hold whole entries of every layer; a window where no layer compresses."""
    return config.document_grid if any(config.compress_ratios) else config.sliding_window


def overlap_tokens(config: Config) -> int:
    """Tokens before a border that are computed again in any case: the window of CSA that the next entry overlaps with.

    One where no layer overlaps: its logits begin the answer to a text that ends at the border.
    """
    return max(1, config.ratio_of(LayerKind.CSA))


def cone_tokens(config: Config) -> int:
    """Tokens before a border that, computed again without any window at their start, make all that a cache holds there.

    W + (L - 1)(W - 1); where CSA pools more than W tokens, as many as those in place of W.
    """
    last = max(config.sliding_window, overlap_tokens(config))
    return last + (config.num_hidden_layers - 1) * (config.sliding_window - 1)


class Stored(Series):
    """Entries of which more are known than there have been tokens.

    What the tokens pool gives way to the known ones.
    """

    def __init__(self, known: Tensor, n: int, form: Form):
        """The first `n` of the entries known [B, C, any], kept as `form` keeps them."""
        self.form = form
        self.data, self.low, self.high = known, 0, n

    def append(self, new: Tensor) -> Tensor:
        """As many of the known entries as there are new ones, and those before."""
        self.high += new.shape[1]
        assert self.high <= self.data.shape[1]
        return self.contents()


class Watched(Series):
    """A window that also holds on to what it was in the last call, before its oldest entries were dropped.

    seen  [B, S, any], the newest token of the call last
    """

    seen: Tensor

    def append(self, new: Tensor) -> Tensor:
        contents = super().append(new)
        self.seen = self.held()
        return contents


class Rows(NamedTuple):
    """So many rows of one series, as they are kept."""

    n: int
    width: int
    dtype: torch.dtype

    @property
    def n_bytes(self) -> int:
        return self.n * self.width * self.dtype.itemsize


def rows_of(series: Series, n: int) -> Rows:
    """So many rows of this series."""
    return Rows(n, series.data.shape[2], series.data.dtype)


def to_bytes(parts: Sequence[Tensor]) -> bytes:
    """Rows of several series [1, any, width], one series after the other."""
    return b"".join(part.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() for part in parts)


def from_bytes(pieces: Sequence[memoryview], parts: Sequence[Rows], device: torch.device) -> list[Tensor]:
    """The rows of each series [1, pieces * n, width], from pieces that each hold `parts` of every series."""
    table = np.stack([np.frombuffer(piece, np.uint8) for piece in pieces])
    ends = np.cumsum([part.n_bytes for part in parts])
    columns = np.split(table, ends[:-1], axis=1)
    return [_rows(column, part).to(device) for column, part in zip(columns, parts)]


def _rows(column: np.ndarray, part: Rows) -> Tensor:
    flat = torch.from_numpy(np.ascontiguousarray(column).reshape(-1))
    return flat.view(part.dtype).view(1, -1, part.width)


class Layout:
    """Which series of a cache are stored, and how many rows of each a block has.

    cache  an empty one, of the kind that is stored
    block  tokens
    """

    def __init__(self, cache: Cache, block: int):
        ratios = [cache.config.ratio_of(layer.kind) for layer in cache.layers for _ in layer.compressors()]
        self.block = block
        self.entries = [rows_of(series, block // ratio) for series, ratio in zip(entry_series(cache), ratios)]
        self.window = [rows_of(layer.window, block) for layer in cache.layers]

    def state(self, n_rows: int) -> list[Rows]:
        """Of every window so many rows."""
        return [rows._replace(n=n_rows) for rows in self.window]

    def entries_of(self, cache: Cache, number: int) -> list[Tensor]:
        """The entries of a block, by its number from 0, in a cache that holds it."""
        series = entry_series(cache)
        return [part.held()[:, number * rows.n : (number + 1) * rows.n] for part, rows in zip(series, self.entries)]


def entry_series(cache: Cache) -> list[Series]:
    """The entries of every compressor, main ones and indexer keys."""
    return [memory.entries for layer in cache.layers for memory in layer.compressors()]


def watched(cache: Cache) -> Cache:
    """The cache itself, whose windows are now `Watched`."""
    for layer in cache.layers:
        layer.window.__class__ = Watched
    return cache


def seen_windows(cache: Cache, first: int, stop: int) -> list[Tensor]:
    """Entries of tokens `first .. stop - 1` in every `Watched` window, as far as the last call read or made them."""
    kept = []
    for layer in cache.layers:
        assert isinstance(layer.window, Watched)
        seen = layer.window.seen
        oldest = cache.n_tokens - seen.shape[1]
        assert oldest <= first, (oldest, first)
        kept.append(seen[:, first - oldest : stop - oldest])
    return kept


def half_known(model: Model, start: int, entries: list[Tensor], window: list[Tensor], precision: str) -> Cache:
    """A cache after `start` tokens that knows the entries of later ones as well.

    Its open compression windows hold zeros in place of raw rows: what is pooled of them gives way to what is known.

    entries  of every compressor [1, C, any]
    window   of every layer [1, up to W, any]; no rows where they are not known
    """
    cache, known = model.new_cache(precision=precision), iter(entries)
    cache.n_tokens = start
    for layer, rows in zip(cache.layers, window):
        ratio = cache.config.ratio_of(layer.kind)
        layer.window.set_ends((rows, 0, rows.shape[1]))
        for memory in layer.compressors():
            memory.entries = Stored(next(known), start // ratio, memory.entries.form)
            raw = memory.open.data
            memory.open.set_ends((raw.new_zeros(1, start % ratio, raw.shape[2]), 0, start % ratio))
    return cache


def recomputed(
    model: Model, ids_T: Tensor, start: int, entries: list[Tensor], window: list[Tensor], precision: str
) -> tuple[Cache, Tensor]:
    """The cache after all of `ids_T`, which end at a border, and the logits [1, V] there; tokens from `start` on run.

    entries, window  as in `half_known`, of all of these tokens
    """
    known = half_known(model, start, entries, window, precision)
    logits_BV = model.prefill(ids_T[None, start:], known)
    cache = model.new_cache(precision=precision)
    cache.go_back(known.n_tokens, [series.ends() for series in known.series()])
    return cache, logits_BV
