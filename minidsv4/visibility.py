"""Visibility: which tokens and which entries each query of one attention call sees.

B batch, T queries, S tokens of the window, C compressed entries, P picked entries, W
window, M tokens per entry. Report sections 2.3.1 and 2.3.2. Every position, that of a
document's first token too, is counted in tokens from the start of the row. The one
place that says who sees what: attention, indexer, losses and pictures ask it.
"""

from typing import NamedTuple, TypeVar

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

Position = TypeVar("Position", int, Tensor)


def finished(position: Position, ratio: int) -> Position:
    """How many entries have all M tokens at or before position t: `floor((t + 1) / M)`.

    The report prints `floor(t / M)`; the released code counts the query's own token,
    as here.
    """
    return (position + 1) // ratio


def real_tokens(ids_BT: Tensor, document_BT: Tensor | None = None) -> Tensor:
    """Which tokens are text, boolean [B, T]: all but padding.

    Padding is a document of one token.
    """
    if document_BT is None:
        return torch.ones_like(ids_BT, dtype=torch.bool)
    same_BT = document_BT[:, 1:] == document_BT[:, :-1]
    return F.pad(same_BT, (1, 0)) | F.pad(same_BT, (0, 1))


class Visibility(NamedTuple):
    """Who sees what in one attention call.

    An entry is visible to a query when it is finished and lies in the query's document.
    It is read when it is visible and, in CSA, picked.

    start        position of the first query
    n_queries    T; their positions are consecutive
    window       W: a query sees this many tokens, its own included
    n_window     S: entries of the window at hand, those of the last S tokens up to the
                 newest query
    device       where maps are made
    ratio        M, tokens per compressed entry
    n_entries    C, compressed entries of the row; 0 in layers without a compressor
    picks_BTP    indices of the entries that the indexer picked; None: every visible
                 entry is read
    document_BT  position of the first token of each query's document; None: the row is
                 one document
    """

    start: int
    n_queries: int
    window: int
    n_window: int
    device: torch.device
    ratio: int = 1
    n_entries: int = 0
    picks_BTP: Tensor | None = None
    document_BT: Tensor | None = None

    def map(self) -> Tensor:
        """What each query sees `[1 or B, T, S + C]`: window tokens, then entries."""
        tokens = self.token_map()
        entries = self.entry_map()
        n_batch = max(len(tokens), len(entries))
        tokens = tokens.expand(n_batch, -1, -1)
        entries = entries.expand(n_batch, -1, -1)
        return torch.cat([tokens, entries], dim=-1)

    def token_map(self) -> Tensor:
        """Tokens that each query sees `[1 or B, T, S]`: the last W of its document."""
        newest = self.start + self.n_queries
        source = torch.arange(newest - self.n_window, newest, device=self.device)
        source = rearrange(source, "s -> 1 1 s")
        age = rearrange(self.positions(), "t -> 1 t 1") - source
        seen = (age >= 0) & (age < self.window)
        if self.document_BT is None:
            return seen
        return seen & (source >= rearrange(self.document_BT, "b t -> b t 1"))

    def entry_map(self) -> Tensor:
        """Entries that a query reads `[1 or B, T, C]`: visible and, in CSA, picked."""
        entry = torch.arange(self.n_entries, device=self.device)
        seen = self.visible(rearrange(entry, "c -> 1 1 c"))
        if self.picks_BTP is None:
            return seen
        shape = (*self.picks_BTP.shape[:2], self.n_entries)
        nothing = torch.zeros(shape, dtype=torch.bool, device=self.device)
        return seen & nothing.scatter(-1, self.picks_BTP, True)

    def visible(self, entry: Tensor) -> Tensor:
        """Whether each query sees these entries: finished, and of its document.

        entry    indices `[1 or B, 1 or T, any number]`
        returns  boolean, of that shape with T queries
        """
        n_finished = finished(self.positions(), self.ratio)
        seen = entry < rearrange(n_finished, "t -> 1 t 1")
        if self.document_BT is None:
            return seen
        first_token = entry * self.ratio
        return seen & (first_token >= rearrange(self.document_BT, "b t -> b t 1"))

    def positions(self) -> Tensor:
        """The position of each query `[T]`."""
        return torch.arange(self.start, self.start + self.n_queries, device=self.device)

    def visible_counts(self) -> Tensor:
        """How many entries each query sees `[T]`, in a row of one document."""
        return finished(self.positions(), self.ratio).clamp(max=self.n_entries)

    def n_visible(self, query: int) -> int:
        """`visible_counts` of the query at this index (from 0), as an int."""
        return min(finished(self.start + query, self.ratio), self.n_entries)

    def part(self, first: int, stop: int) -> "Visibility":
        """The same for queries `first .. stop - 1` and the tokens that they can see."""
        n_later = self.n_queries - stop
        n_reach = self.window + stop - first - 1
        queries = slice(first, stop)
        picks_BTP = None if self.picks_BTP is None else self.picks_BTP[:, queries]
        document_BT = None if self.document_BT is None else self.document_BT[:, queries]
        return self._replace(
            start=self.start + first,
            n_queries=stop - first,
            n_window=min(self.n_window - n_later, n_reach),
            picks_BTP=picks_BTP,
            document_BT=document_BT,
        )
