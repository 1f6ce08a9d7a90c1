"""Compressors: M tokens become one entry, by a softmax over tokens in every channel.

B batch, T tokens, C entries, M tokens per entry, S slots pooled, K entry width. Report
sections 2.3.1 and 2.3.2, equations (9)-(12) and (20)-(23). Released names:
`compressor.{wkv, wgate, ape, norm}`.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from minidsv4.model.autocast import linear
from minidsv4.model.cache import CompressorMemory
from minidsv4.model.layer import Layer, RMSNorm
from minidsv4.model.rope import Positions


class Compressor(Layer):
    """HCA: entry i pools the M tokens of window i; eqs. (20)-(23)."""

    n_halves = 1  # series of values, and of gates, that each token gives
    float32 = ("ape",)

    def __init__(self, width: int, entry_width: int, ratio: int, eps: float):
        super().__init__()
        self.ratio = ratio
        self.entry_width = entry_width
        series_width = self.n_halves * entry_width
        self.wkv = nn.Linear(width, series_width, bias=False)
        self.wgate = nn.Linear(width, series_width, bias=False)
        # position bias, by slot
        self.ape = nn.Parameter(torch.zeros(ratio, series_width))
        self.norm = RMSNorm(entry_width, eps)

    def forward(
        self,
        x_BTD: Tensor,
        positions: Positions,
        memory: CompressorMemory,
    ) -> Tensor:
        """Every finished entry [B, C, K], the new ones included.

        `memory` takes the tokens in.
        """
        values = linear(x_BTD, self.wkv.weight)  # eqs. (9), (20)
        gates = linear(x_BTD, self.wgate.weight)  # eqs. (10), (21)
        series = memory.open.append(torch.cat([values, gates], dim=-1))
        n_closed = series.shape[1] // self.ratio
        if n_closed == 0:
            return memory.entries.contents()
        first = len(memory.entries)
        closed = series[:, : n_closed * self.ratio]
        closed_BCMK = rearrange(closed, "b (c m) k -> b c m k", m=self.ratio)
        pooled_BCK = self.pool_windows(closed_BCMK, positions, memory)
        turn_CR = positions.entry_turns(first, n_closed, self.ratio)
        entries_BCK = self.ops.rotate(self.norm(pooled_BCK.to(x_BTD.dtype)), turn_CR)
        memory.open.drop(n_closed * self.ratio)
        return memory.entries.append(self.stored(entries_BCK))

    def pool_windows(
        self,
        closed_BCMK: Tensor,
        positions: Positions,
        memory: CompressorMemory,
    ) -> Tensor:
        """One entry a window [B, C, K].

        Values and gates lie side by side in the last axis.
        """
        values, gates = rearrange(closed_BCMK, "b c m (two k) -> two b c m k", two=2)
        return self.ops.pool(values, gates, self.ape)

    def stored(self, entries_BCK: Tensor) -> Tensor:
        """Entries as the memory holds them: as they are."""
        return entries_BCK


class OverlapCompressor(Compressor):
    """CSA: entry i pools windows i - 1 and i; eqs. (9)-(12).

    Of window i - 1 it takes the first half of channels, of window i the second.
    """

    n_halves = 2

    def pool_windows(
        self,
        closed_BCMK: Tensor,
        positions: Positions,
        memory: CompressorMemory,
    ) -> Tensor:
        """One entry a window [B, C, K], from 2 M slots.

        The slots are the previous window's, then its own.
        """
        halves = rearrange(
            closed_BCMK,
            "b c m (two half k) -> half b c m (two k)",
            two=2,
            half=2,
        )
        as_previous, as_current = halves
        previous = self.shifted(as_previous, positions, memory)
        memory.previous.replace(as_previous[:, -1].clone())
        slots_BCSK = torch.cat([previous, as_current], dim=2)
        values, gates = rearrange(slots_BCSK, "b c s (two k) -> two b c s k", two=2)
        bias_SK = rearrange(self.ape, "m (half k) -> (half m) k", half=2)
        return self.ops.pool(values, gates, bias_SK)

    def shifted(
        self,
        as_previous_BCMK: Tensor,
        positions: Positions,
        memory: CompressorMemory,
    ) -> Tensor:
        """The window before each window [B, C, M, K].

        It is `nothing` where its document has none.
        """
        before = memory.previous.contents()
        if len(memory.previous) == 0:
            before = self.nothing(as_previous_BCMK[:, 0])
        before = rearrange(before, "b m k -> b 1 m k")
        shifted = torch.cat([before, as_previous_BCMK[:, :-1]], dim=1)
        document_BT = positions.document_BT
        if document_BT is None:
            return shifted
        first_BC = self.opens_document(
            document_BT,
            n_closed=shifted.shape[1],
            start=positions.start,
            n_entries=len(memory.entries),
        )
        first_BCMK = rearrange(first_BC, "b c -> b c 1 1")
        return torch.where(first_BCMK, self.nothing(shifted), shifted)

    def opens_document(
        self,
        document_BT: Tensor,
        n_closed: int,
        start: int,
        n_entries: int,
    ) -> Tensor:
        """Which windows closing now [B, C] have no whole one of their document before.

        The document is that of a window's last token, which is always a token of this
        call. Where a document begins inside the window, no query reads its entry.
        """
        window = torch.arange(n_closed, device=document_BT.device) + n_entries
        last = (window + 1) * self.ratio - 1 - start
        return document_BT[:, last] > (window - 1) * self.ratio

    def nothing(self, like: Tensor) -> Tensor:
        """Slots of value 0 and gate -inf, so with a softmax weight of exp(-inf) = 0."""
        zeros = torch.zeros_like(like)
        values, gates = rearrange(zeros, "... (two k) -> two ... k", two=2)
        return torch.cat([values, gates - torch.inf], dim=-1)
