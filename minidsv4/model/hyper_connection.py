"""Manifold-constrained hyper-connections (mHC): N residual streams and their mixing.

B batch, T tokens, N streams, D width; i old stream, j new stream. Report section 2.2,
equations (1)-(8). Released names: `hc_attn_{fn, base, scale}`, `hc_ffn_{...}`,
`hc_head_{...}`. Coefficients are computed in float32 at least.
"""

import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from minidsv4.config import Config
from minidsv4.model.layer import Layer

# alpha of the mHC paper; the biases below are ours, V4's are not disclosed
GATE_AT_START = 0.01
DIAGONAL_AT_START = 4.0  # softmax of (4, 0, 0, 0): a stream keeps 95% of itself


class Mix(NamedTuple):
    """Coefficients of a site for every token.

    `pre` reads, `post` writes, `carry` mixes streams; the released code calls it comb.
    """

    pre_BTN: Tensor
    post_BTN: Tensor
    carry_BTij: Tensor


class HyperConnection(Layer):
    """One mHC site: how a sub-layer reads the streams and how it is written back.

    Eqs. (3)-(8).
    """

    float32 = ("fn", "base", "scale")

    def __init__(self, config: Config):
        super().__init__()
        n = config.hc_mult
        self.streams = n
        self.eps = config.hc_eps
        self.rms_eps = config.rms_norm_eps
        self.iterations = config.hc_sinkhorn_iters
        # rows: pre, post, carry row by row
        self.fn = nn.Parameter(torch.zeros((2 + n) * n, n * config.hidden_size))
        carry = rearrange(DIAGONAL_AT_START * torch.eye(n), "i j -> (i j)")
        self.base = nn.Parameter(torch.cat([read_bias(n), torch.zeros(n), carry]))
        # gates of pre, post, carry
        self.scale = nn.Parameter(torch.full((3,), GATE_AT_START))

    def forward(self, streams_BTND: Tensor) -> Mix:
        """The mix of each token, from all of its streams."""
        n = self.streams
        rows = (n, n, n * n)  # of pre, post, carry
        logits = self.ops.stream_logits(streams_BTND, self.fn, self.rms_eps)
        pre, post, carry = logits.split(rows, dim=-1)
        pre_bias, post_bias, carry_bias = self.base.to(logits.dtype).split(rows)
        pre_gate, post_gate, carry_gate = self.scale.to(logits.dtype)
        # eqs. (3), (6); eps is the released code's
        pre_BTN = (pre_gate * pre + pre_bias).sigmoid() + self.eps
        post_BTN = 2 * (post_gate * post + post_bias).sigmoid()  # eqs. (4), (7)
        carry_logits = carry_gate * carry + carry_bias  # eq. (5)
        carry_BTij = rearrange(carry_logits, "b t (i j) -> b t i j", i=n)
        carry_BTij = self.ops.sinkhorn(carry_BTij, self.iterations, self.eps)  # eq. (8)
        return Mix(pre_BTN, post_BTN, carry_BTij)


def read_bias(n_streams: int) -> Tensor:
    """Logits [N] whose sigmoid is 1/N (nearly 1 for a single stream)."""
    return torch.full((n_streams,), -math.log(max(n_streams - 1, 0.02)))


class HeadCollapse(Layer):
    """The last read: streams to one vector, by sigmoid gates, without Sinkhorn."""

    float32 = ("fn", "base", "scale")

    def __init__(self, config: Config):
        super().__init__()
        n = config.hc_mult
        self.eps = config.hc_eps
        self.rms_eps = config.rms_norm_eps
        self.fn = nn.Parameter(torch.zeros(n, n * config.hidden_size))
        self.base = nn.Parameter(read_bias(n))
        self.scale = nn.Parameter(torch.full((1,), GATE_AT_START))

    def forward(self, streams_BTND: Tensor) -> Tensor:
        """What the head reads [B, T, D], before the last norm."""
        logits_BTN = self.ops.stream_logits(streams_BTND, self.fn, self.rms_eps)
        scale = self.scale.to(logits_BTN.dtype)
        bias = self.base.to(logits_BTN.dtype)
        gate_BTN = (scale * logits_BTN + bias).sigmoid() + self.eps
        return self.ops.collapse(streams_BTND, gate_BTN)
