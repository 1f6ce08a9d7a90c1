"""Rotary position embedding (RoPE): frequencies, and the rotations of a call's tokens.

R rotary part, T tokens, C compressed entries. Report section 2.3.3 (partial RoPE).
Window-only layers use the base `rope_theta`; CSA and HCA layers use
`compress_rope_theta` with YaRN for everything in them: queries, window and compressed
entries, indexer, and the turning back of the output. V4 leaves out YaRN's attention
scaling (mscale): turns have unit length. The released code calls them `freqs_cis`.
"""

import math

import torch
from torch import Tensor

from minidsv4.config import Config, LayerKind, YaRN
from minidsv4.fast.function import cached


def frequencies(
    config: Config,
    kind: LayerKind,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Radians per token of each channel pair [R/2]: `base^(-2i/R)`.

    CSA and HCA layers have YaRN.

    dtype  float32 or float64: angles carry the precision of the model
    """
    rotary = config.qk_rope_head_dim
    if kind is LayerKind.WINDOW:
        return _frequencies(rotary, config.rope_theta, None, dtype, device)
    base = config.compress_rope_theta
    return _frequencies(rotary, base, config.rope_scaling, dtype, device)


@cached
def _frequencies(
    rotary: int,
    base: float,
    yarn: YaRN | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    period = base ** (torch.arange(0, rotary, 2, dtype=dtype, device=device) / rotary)
    if yarn is None:
        return 1.0 / period

    def pair_that_turns(times: float) -> float:
        period_of_pair = yarn.original_max_position_embeddings / (times * 2 * math.pi)
        return rotary * math.log(period_of_pair) / (2 * math.log(base))

    low = max(math.floor(pair_that_turns(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(yarn.beta_slow)), rotary - 1)
    width = max(high - low, 0.001)  # a step instead of a division by zero
    pair = torch.arange(rotary // 2, dtype=dtype, device=device)
    slow = ((pair - low) / width).clamp(0, 1)  # 1: slowed by the whole factor
    return slow / (yarn.factor * period) + (1 - slow) / period


class Positions:
    """The positions of one call's tokens, and their turns.

    A turn is a complex number of unit length, for each channel pair.

    frequencies_R  [R/2], float32 or float64, of the layers that ask
    start          position of the first token of the call
    n_tokens       T; the others follow
    oldest         position where the oldest unfinished window begins; turns are made
                   from here on
    document_BT    position of the first token of each token's document, a multiple of
                   every M; None where the row is one document
    """

    def __init__(
        self,
        frequencies_R: Tensor,
        start: int,
        n_tokens: int,
        oldest: int = 0,
        document_BT: Tensor | None = None,
    ):
        self.frequencies_R = frequencies_R
        self.start = start
        self.n_tokens = n_tokens
        self.oldest = oldest
        self.document_BT = document_BT
        position = torch.arange(oldest, start + n_tokens, device=frequencies_R.device)
        angle = torch.outer(position.to(frequencies_R.dtype), frequencies_R)
        self.turn_TR = torch.polar(torch.ones_like(angle), angle)

    def turns(self) -> Tensor:
        """The turns of the call's tokens [T, R/2]."""
        return self.turn_TR[self.start - self.oldest :]

    def entry_turns(self, first: int, n_entries: int, ratio: int) -> Tensor:
        """Turns [C, R/2] of entries `first, first + 1, ...`: of their first tokens."""
        low = first * ratio - self.oldest
        return self.turn_TR[low : low + n_entries * ratio : ratio]
