"""Vocabulary head and cross-entropy in one, for a few tokens at a time: all logits together never exist.

T tokens, D width, V vocabulary.
"""

import torch
from torch import Tensor

from minidsv4.fast.function import FastFunction, first_derivative_only
from minidsv4.fast.products import linear, put_over_rows
from minidsv4.ops import NO_TARGET, upcast

TOKENS = 256  # whose logits exist at one time


def cross_entropy(hidden_TD: Tensor, head_VD: Tensor, target_T: Tensor) -> Tensor:
    """`ops.cross_entropy` in memory that does not grow with T x V."""
    return CrossEntropy.run(hidden_TD, head_VD, target_T, torch.is_grad_enabled())


class CrossEntropy(FastFunction):
    """Both gradients, up to the factor that comes from above, are computed along with the loss, in float32 at least."""

    @staticmethod
    def forward(ctx, hidden_TD: Tensor, head_VD: Tensor, target_T: Tensor, learning: bool) -> Tensor:
        head = upcast(head_VD)
        known = (target_T != NO_TARGET).to(head.dtype)[:, None]
        share = known / known.sum().clamp(min=1)
        target = target_T.clamp(min=0)[:, None]
        d_hidden = torch.empty(hidden_TD.shape, dtype=head.dtype, device=head.device)
        d_head = torch.zeros_like(head)
        nats = head.new_zeros(())
        for first in range(0, len(hidden_TD), TOKENS):
            part = slice(first, first + TOKENS)
            hidden = upcast(hidden_TD[part])
            log_p = linear(hidden, head).log_softmax(-1)
            nats -= (log_p.gather(1, target[part]) * share[part]).sum()
            if learning:
                slope = log_p.exp_().scatter_add_(1, target[part], -torch.ones_like(share[part]))
                torch.mul(linear(slope, head.T), share[part], out=d_hidden[part])
                put_over_rows(d_head, slope, hidden * share[part], beta=1)
        ctx.save_for_backward(d_hidden, d_head)
        ctx.dtypes = hidden_TD.dtype, head_VD.dtype
        return nats

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad: Tensor):
        d_hidden, d_head = ctx.saved_tensors
        hidden_dtype, head_dtype = ctx.dtypes
        return (grad * d_hidden).to(hidden_dtype), (grad * d_head).to(head_dtype), None, None
