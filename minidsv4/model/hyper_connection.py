"""Manifold-constrained hyper-connections (mHC): N residual streams, mixed by a nearly doubly stochastic matrix.

B batch, T tokens, N streams, D width; i old stream, j new stream. Report section 2.2, equations (1)-(8). Released
names: `hc_attn_{fn, base, scale}`, `hc_ffn_{...}`, `hc_head_{...}`. Coefficients are computed in float32 at least.
"""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minidsv4.config import Config
from minidsv4.model.norm import precise

GATE_AT_START = 0.01  # alpha of the mHC paper; the biases below are ours, V4's are not disclosed
DIAGONAL_AT_START = 4.0  # softmax of (4, 0, 0, 0): a stream keeps 95% of itself


class Mix(NamedTuple):
    """The coefficients of one site for every token: read `pre`, write `post`, carry over `carry` [old, new]."""

    pre_BTN: Tensor
    post_BTN: Tensor
    carry_BTNN: Tensor


class HyperConnection(nn.Module):
    """One site: reads the streams into one vector for a sub-layer, and writes its output back; eqs. (1)-(8)."""

    def __init__(self, config: Config):
        super().__init__()
        n, self.eps, self.rms_eps = config.hc_mult, config.hc_eps, config.rms_norm_eps
        self.streams, self.iterations = n, config.hc_sinkhorn_iters
        self.fn = nn.Parameter(torch.empty((2 + n) * n, n * config.hidden_size))  # rows: pre, post, carry row by row
        carry = DIAGONAL_AT_START * torch.eye(n).flatten()
        self.base = nn.Parameter(torch.cat([even_read(n), torch.zeros(n), carry]))
        self.scale = nn.Parameter(torch.full((3,), GATE_AT_START))  # gates of pre, post, carry

    def forward(self, streams_BTND: Tensor) -> Mix:
        """The mix of each token, from all of its streams."""
        n = self.streams
        rows = (n, n, n * n)  # of pre, post, carry
        raw = stream_logits(streams_BTND, self.fn, self.rms_eps).split(rows, dim=-1)
        parts = zip(precise(self.base).split(rows), raw, precise(self.scale).unbind())
        pre, post, carry = (torch.addcmul(bias, part, gate) for bias, part, gate in parts)  # eqs. (2)-(5)
        carry = sinkhorn(carry.view(-1, n * n).T.view(n, n, -1), self.iterations, self.eps)  # eq. (8)
        carry = carry.view(n * n, -1).T.contiguous().view(*pre.shape, n)
        # eqs. (6) and (7); the eps is the released code's
        return Mix(pre.sigmoid() + self.eps, 2 * post.sigmoid(), carry)


def even_read(n: int) -> Tensor:
    """Logits [N] whose sigmoid is 1/N (nearly 1 for a single stream)."""
    return torch.full((n,), -math.log(max(n - 1, 0.02)))


def stream_logits(streams_BTND: Tensor, fn: Tensor, eps: float) -> Tensor:
    """`rms_norm(all streams as one vector) @ fn.T`; the norm is applied after the product, on a few numbers."""
    flat = precise(streams_BTND).flatten(2)
    mean_square = torch.linalg.vector_norm(flat, dim=-1, keepdim=True).square() / flat.shape[-1]
    return F.linear(flat, precise(fn)) * (mean_square + eps).rsqrt()


def sinkhorn(logits: Tensor, iterations: int, eps: float) -> Tensor:
    """Alternate column and row normalisation of positive matrices, columns first and last; eq. (8).

    logits   [old, new, tokens]: one matrix for each token
    returns  the same shape; each column (new stream) sums to 1 within 2 eps, each row nearly
    """
    return Sinkhorn.apply(logits, iterations, eps)


class Sinkhorn(torch.autograd.Function):
    """`sinkhorn` with a backward that computes the iterates anew: only the logits are kept for it."""

    @staticmethod
    def forward(ctx, logits: Tensor, iterations: int, eps: float) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.axes, ctx.eps = [0] + [1, 0] * (iterations - 1), eps
        matrix, under_it, sums = _over_ones(logits.softmax(dim=1), eps)
        total, before = torch.empty_like(matrix), torch.empty_like(matrix)
        for number, axis in enumerate(ctx.axes):
            if number % 8 == 5:
                before.copy_(matrix)
            matrix.div_(torch.mm(sums[axis], under_it, out=total))
            if number % 8 == 6 and torch.equal(matrix, before):
                break  # a round that changed no bit: every later one would compute the same again
        return matrix.view_as(logits)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        share, grad = ctx.saved_tensors[0].softmax(dim=1), grad.flatten(0, 1).clone()
        (matrix, under_it, sums), totals = _over_ones(share, ctx.eps), []
        for axis in ctx.axes:
            totals.append(sums[axis] @ under_it)
            matrix.div_(totals[-1])
        for axis in reversed(ctx.axes):
            total = totals.pop()
            grad.sub_(sums[axis][:, :-1] @ (grad * matrix)).div_(total)
            matrix.mul_(total)  # the iterate before this one
        grad = grad.view_as(share)
        return share * (grad - (grad * share).sum(1, keepdim=True)), None, None


def _over_ones(share: Tensor, eps: float) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """`share + eps` as [N N, tokens], the same memory with a row of ones below, and the sums that go with it."""
    under_it = torch.cat([(share + eps).flatten(0, 1), share.new_ones(1, share.shape[2])])
    return under_it[:-1], under_it, _sums(len(share), eps, share.dtype, share.device)


@functools.cache
def _sums(n: int, eps: float, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Two matrices [N N, N N + 1] that sum a flattened [old, new] over the old streams and over the new ones, plus eps.

    A product with zeros, ones and eps is one small kernel where a sum and the adding of eps are two.
    """
    one, ones = torch.eye(n, dtype=dtype, device=device), torch.ones(n, n, dtype=dtype, device=device)
    small = one.new_full((n * n, 1), eps)
    return tuple(torch.cat([pattern, small], 1) for pattern in (torch.kron(ones, one), torch.kron(one, ones)))


def collapse(streams_BTND: Tensor, pre_BTN: Tensor) -> Tensor:
    """The sub-layer's input `sum_n pre[n] stream[n]`; eq. (1), A X."""
    read = pre_BTN.flatten(0, 1)[:, None] @ precise(streams_BTND).flatten(0, 1)
    return read.view(*pre_BTN.shape[:2], -1).to(streams_BTND.dtype)


def write(streams_BTND: Tensor, y_BTD: Tensor, mix: Mix) -> Tensor:
    """New stream j is `post[j] y + sum_i carry[i, j] stream[i]`; eq. (1), with B = carry transposed."""
    carried = mix.carry_BTNN.mT @ precise(streams_BTND)
    return carried.addcmul_(mix.post_BTN[..., None], precise(y_BTD)[:, :, None]).to(streams_BTND.dtype)


class HeadCollapse(nn.Module):
    """The last read: streams to one vector for the vocabulary head, with sigmoid gates and no Sinkhorn."""

    def __init__(self, config: Config):
        super().__init__()
        n, self.eps, self.rms_eps = config.hc_mult, config.hc_eps, config.rms_norm_eps
        self.fn = nn.Parameter(torch.empty(n, n * config.hidden_size))
        self.base, self.scale = nn.Parameter(even_read(n)), nn.Parameter(torch.full((1,), GATE_AT_START))

    def forward(self, streams_BTND: Tensor) -> Tensor:
        gate = stream_logits(streams_BTND, self.fn, self.rms_eps) * precise(self.scale) + precise(self.base)
        return collapse(streams_BTND, gate.sigmoid() + self.eps)


def expand(x_BTD: Tensor, n_streams: int) -> Tensor:
    """Equal streams, plain copies."""
    return x_BTD[:, :, None].repeat(1, 1, n_streams, 1)
