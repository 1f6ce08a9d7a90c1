"""Rotary positions: the last R channels of a vector, in interleaved pairs, turned by position times frequency.

R rotary part, T tokens. Report section 2.3.3 (partial RoPE). Window-only layers use the base `rope_theta`; CSA and HCA
layers use `compress_rope_theta` with YaRN for everything in them: queries, window and compressed entries, indexer,
and the turning back of the output. Cosine and sine have unit length: V4 applies no YaRN amplitude.
"""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from minidsv4.config import Config, LayerKind
from minidsv4.model.norm import precise


def frequencies(config: Config, kind: LayerKind, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Radians per token of each channel pair, `base^(-2i/R)`, slowed by YaRN in CSA and HCA layers.

    returns  [R/2], dtype float32 or float64: angles carry the precision of the model
    """
    plain = kind is LayerKind.WINDOW or config.rope_scaling is None
    base = config.rope_theta if kind is LayerKind.WINDOW else config.compress_rope_theta
    yarn = None if plain else YaRN(*(config.rope_scaling[name] for name in YaRN._fields))
    return _frequencies(config.qk_rope_head_dim, base, yarn, dtype, device)


class YaRN(NamedTuple):
    """How far positions are stretched, the length that was trained on, and the turns between which the ramp lies."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float


@functools.cache
def _frequencies(rotary: int, base: float, yarn: YaRN | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    period = base ** (torch.arange(0, rotary, 2, dtype=dtype, device=device) / rotary)
    if yarn is None:
        return 1.0 / period

    def pair_that_turns(times: float) -> float:
        return rotary * math.log(yarn.original_max_position_embeddings / (times * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(pair_that_turns(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(yarn.beta_slow)), rotary - 1)
    high = high + 0.001 if low == high else high  # a step instead of a division by zero
    slow = ((torch.arange(rotary // 2, dtype=dtype, device=device) - low) / (high - low)).clamp(0, 1)
    return (1.0 / (yarn.factor * period)) * slow + (1.0 / period) * (1 - slow)  # slow 1: by the whole factor


class Angles:
    """The turns of the positions `first .. stop - 1`: unit complex numbers, one a channel pair.

    frequencies_R  [R/2], float32 or float64
    begin_BT       where the document of each of the newest T positions begins, a multiple of every M; None where all is
                   one document
    """

    def __init__(self, frequencies_R: Tensor, first: int, stop: int, begin_BT: Tensor | None = None):
        position_T = torch.arange(first, stop, dtype=frequencies_R.dtype, device=frequencies_R.device)
        angle_TR = position_T[:, None] * frequencies_R
        self.first, self.turn_TR, self.begin_BT = first, torch.polar(torch.ones_like(angle_TR), angle_TR), begin_BT

    def at(self, start: int, stop: int, step: int = 1) -> Tensor:
        """The turns [T, R/2] of positions `start, start + step, ...` below `stop`."""
        return self.turn_TR[start - self.first : stop - self.first : step]

    def begin_from(self, origin: int) -> Tensor | None:
        """Where each token's document begins [B, T], counted from position `origin`."""
        return None if self.begin_BT is None else self.begin_BT - origin

    def first_entry(self, ratio: int) -> Tensor | None:
        """The first compressed entry [B, T] of each token's document."""
        return None if self.begin_BT is None else (self.begin_BT + ratio - 1) // ratio


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the last R channels of `x` pair by pair; a conjugate `turn` turns them back.

    x     [..., K], any float dtype
    turn  [..., R/2] complex, broadcast against the leading axes of `x`
    """
    if x.shape[-1] % 2:  # only pairs at even places can be read as complex numbers
        return rotate(F.pad(x, (1, 0)), turn)[..., 1:]
    turned = precise(x).clone(memory_format=torch.contiguous_format)
    torch.view_as_complex(turned[..., -2 * turn.shape[-1] :].unflatten(-1, (-1, 2))).mul_(turn)
    return turned.to(x.dtype)
