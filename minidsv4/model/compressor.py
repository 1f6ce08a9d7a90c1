"""Compressors: M tokens become one entry, by a softmax over tokens in every channel separately.

B batch, T tokens, C entries, M tokens per entry, S slots pooled, K entry width. Report sections 2.3.1 and 2.3.2,
equations (9)-(12) and (20)-(23). Released names: `compressor.{wkv, wgate, ape, norm}`.
"""

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from minidsv4.model.cache import CompressorMemory
from minidsv4.model.norm import RMSNorm, precise
from minidsv4.model.rope import Angles, rotate


class Compressor(nn.Module):
    """HCA: entry i pools the M tokens of window i; eqs. (20)-(23)."""

    n_halves = 1  # series per token

    def __init__(self, width: int, entry_width: int, ratio: int, eps: float, finish: nn.Module | None = None):
        super().__init__()
        self.ratio, self.entry_width = ratio, entry_width
        self.wkv = nn.Linear(width, self.n_halves * entry_width, bias=False)
        self.wgate = nn.Linear(width, self.n_halves * entry_width, bias=False)
        self.ape = nn.Parameter(torch.zeros(ratio, self.n_halves * entry_width))
        self.norm, self.pool = RMSNorm(entry_width, eps), Pool()
        self.finish = finish or nn.Identity()  # what is done to an entry before it is remembered

    def forward(self, x_BTD: Tensor, memory: CompressorMemory, angles: Angles) -> Tensor:
        """Take in new tokens, close the windows that are full, and return every finished entry.

        returns  [B, C, K]: normalised, turned to the position of the window's first token
        """
        series = memory.open.append(torch.cat([self.wkv(x_BTD), self.wgate(x_BTD)], dim=-1))  # eqs. (20), (21)
        n_closed = series.shape[1] // self.ratio
        if n_closed == 0:
            return memory.entries.view()
        closed = rearrange(series[:, : n_closed * self.ratio], "b (c m) k -> b c m k", m=self.ratio)
        first = len(memory.entries)
        turn = angles.at(first * self.ratio, (first + n_closed) * self.ratio, self.ratio)
        entries = self.finish(rotate(self.norm(self.close(closed, memory, angles)), turn))
        memory.open.drop(n_closed * self.ratio)
        return memory.entries.append(entries)

    def close(self, closed_BCMK: Tensor, memory: CompressorMemory, angles: Angles) -> Tensor:
        """Weighted mean over the window's tokens, channel by channel; values and gates lie side by side in K."""
        values, gates = closed_BCMK.chunk(2, dim=-1)
        return self.pool(values, gates, self.ape)


class OverlapCompressor(Compressor):
    """CSA: entry i pools window i (second half of the channels) and window i - 1 (first half); eqs. (9)-(12)."""

    n_halves = 2

    def close(self, closed_BCMK: Tensor, memory: CompressorMemory, angles: Angles) -> Tensor:
        width = self.entry_width
        as_previous, as_current = rearrange(closed_BCMK, "b c m (two half k) -> half b c m (two k)", two=2, half=2)
        before = memory.previous.view() if len(memory.previous) else self.nothing_before(as_previous[:, 0])
        shifted = torch.cat([before[:, None], as_previous[:, :-1]], dim=1)  # window i reads window i - 1
        if angles.begin_BT is not None:  # unless that one lies before its document
            first_BC = self.first_of_document(shifted.shape[1], memory, angles)
            shifted = torch.where(first_BC[:, :, None, None], self.nothing_before(shifted), shifted)
        memory.previous.drop(len(memory.previous))
        memory.previous.append(as_previous[:, -1].clone())
        slots = torch.cat([shifted, as_current], dim=2)  # [B, C, 2 M slots, values and gates]
        bias = rearrange(self.ape, "m (half k) -> (half m) k", half=2)
        return self.pool(slots[..., :width], slots[..., width:], bias)

    def first_of_document(self, n_closed: int, memory: CompressorMemory, angles: Angles) -> Tensor:
        """Which of the windows [B, C] that close now find no whole window of their document before them.

        A window's last token tells, as it is always one of this call: of a document that begins inside the window
        nobody reads the entry.
        """
        last_C = torch.arange(self.ratio - 1, n_closed * self.ratio, self.ratio, device=angles.begin_BT.device)
        begin_BT = angles.begin_from(len(memory.entries) * self.ratio)
        return begin_BT[:, last_C - len(memory.open)] > last_C + 1 - 2 * self.ratio

    def nothing_before(self, like_BMK: Tensor) -> Tensor:
        """What the first window finds before it: value 0 and gate -inf, so a weight of exp(-inf) = 0."""
        before_BMK = torch.zeros_like(like_BMK)
        before_BMK[..., self.entry_width :] = -torch.inf
        return before_BMK


class Pool(nn.Module):
    """`sum_s softmax_s(gate + bias) * value`, a softmax of its own in each channel; eqs. (11), (12), (22), (23)."""

    def forward(self, values_BCSK: Tensor, gates_BCSK: Tensor, bias_SK: Tensor) -> Tensor:
        """Entries [B, C, K] in the dtype of the values; computed in float32 when they are 16 bit."""
        share_BCSK = slot_shares(gates_BCSK, bias_SK)
        return reduce(share_BCSK * precise(values_BCSK), "b c s k -> b c k", "sum").to(values_BCSK.dtype)


def slot_shares(gates_BCSK: Tensor, bias_SK: Tensor) -> Tensor:
    """What part of an entry each pooled slot gives, channel by channel; sums to 1 over s."""
    return (precise(gates_BCSK) + precise(bias_SK)).softmax(dim=2)
