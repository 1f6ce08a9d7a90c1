"""Residual streams: the mHC operations as few large passes.

B batch, T tokens, N streams, D width; i old stream, j new stream.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from minidsv4.fast.function import FastFunction, cached, first_derivative_only
from minidsv4.ops import upcast


def stream_logits(streams_BTND: Tensor, fn: Tensor, eps: float) -> Tensor:
    """`ops.stream_logits` with the norm applied after the product, on (2 + N) N numbers a token instead of N D."""
    flat = upcast(streams_BTND).flatten(2)
    mean_square = torch.linalg.vector_norm(flat, dim=-1, keepdim=True).square() / flat.shape[-1]
    return F.linear(flat, upcast(fn)) * (mean_square + eps).rsqrt()


def collapse(streams_BTND: Tensor, pre_BTN: Tensor) -> Tensor:
    """`ops.collapse` as one batched product, 1.9 times as fast at 2,048 tokens."""
    streams = upcast(streams_BTND).contiguous()  # the first ones are one vector seen N times
    read = pre_BTN.flatten(0, 1)[:, None] @ streams.flatten(0, 1)
    return read.view(*pre_BTN.shape[:2], -1).to(streams_BTND.dtype)


def write(streams_BTND: Tensor, y_BTD: Tensor, post_BTN: Tensor, carry_BTij: Tensor) -> Tensor:
    """`ops.write` as one batched product with the rest added in place, 2 to 3.5 times as fast at 2,048 tokens."""
    carried = carry_BTij.mT @ upcast(streams_BTND).contiguous()
    return carried.addcmul_(post_BTN[..., None], upcast(y_BTD)[:, :, None]).to(streams_BTND.dtype)


def sinkhorn(logits_BTij: Tensor, iterations: int, eps: float) -> Tensor:
    """`ops.sinkhorn` with tokens last and in place: 3.9 times as fast at 512 tokens, 9.3 times at 8,192."""
    n = logits_BTij.shape[-1]
    flat = logits_BTij.reshape(-1, n * n).T.reshape(n, n, -1)
    mix = Sinkhorn.run(flat, iterations, eps)
    return mix.view(n * n, -1).T.contiguous().view(logits_BTij.shape)


class Sinkhorn(FastFunction):
    """`sinkhorn` of matrices [old, new, tokens]; its backward computes the iterates anew and keeps the logits alone."""

    @staticmethod
    def forward(ctx, logits: Tensor, iterations: int, eps: float) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.axes, ctx.eps = [0] + [1, 0] * (iterations - 1), eps
        matrix, with_ones, sums = _over_ones(logits.softmax(dim=1), eps)
        total, before = torch.empty_like(matrix), torch.empty_like(matrix)
        for number, axis in enumerate(ctx.axes):
            if number % 8 == 5:
                before.copy_(matrix)
            matrix.div_(torch.mm(sums[axis], with_ones, out=total))
            if number % 8 == 6 and torch.equal(matrix, before):
                break  # a round that changed no bit: every later one would compute the same again
        return matrix.view_as(logits)

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        share, grad = ctx.saved_tensors[0].softmax(dim=1), grad.flatten(0, 1).clone()
        matrix, with_ones, sums = _over_ones(share, ctx.eps)
        totals = []
        for axis in ctx.axes:
            totals.append(sums[axis] @ with_ones)
            matrix.div_(totals[-1])
        for axis in reversed(ctx.axes):
            total = totals.pop()
            grad.sub_(sums[axis][:, :-1] @ (grad * matrix)).div_(total)
            matrix.mul_(total)  # the iterate before this one
        grad = grad.view_as(share)
        return share * (grad - (grad * share).sum(1, keepdim=True)), None, None


def _over_ones(share: Tensor, eps: float) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """`share + eps` as [N N, tokens], the same memory with a row of ones below, and the sums that go with it."""
    with_ones = torch.cat([(share + eps).flatten(0, 1), share.new_ones(1, share.shape[2])])
    return with_ones[:-1], with_ones, _sums(len(share), eps, share.dtype, share.device)


@cached
def _sums(n: int, eps: float, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Two matrices [N N, N N + 1] that sum a flattened [old, new] over the old streams and over the new ones, plus eps.

    A product with zeros, ones and eps is one small kernel where a sum and the adding of eps are two.
    """
    one, ones = torch.eye(n, dtype=dtype, device=device), torch.ones(n, n, dtype=dtype, device=device)
    small = one.new_full((n * n, 1), eps)
    over_old = torch.cat([torch.kron(ones, one), small], 1)
    over_new = torch.cat([torch.kron(one, ones), small], 1)
    return over_old, over_new
