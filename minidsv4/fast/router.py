"""The router's scores with a gradient written by hand.

B batch, T tokens, D width, E experts.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from minidsv4.fast.function import FastFunction, first_derivative_only
from minidsv4.ops import EXP_IS_SOFTPLUS, upcast


def affinities(x_BTD: Tensor, weight_ED: Tensor) -> Tensor:
    """`ops.affinities` in two passes instead of eight: only its gradient looks for logits far below zero."""
    return SqrtSoftplus.run(F.linear(upcast(x_BTD), upcast(weight_ED)))


class SqrtSoftplus(FastFunction):
    """`sqrt(softplus(z))`; its slope `sigmoid(z) / (2 sqrt(softplus(z)))` tends to `exp(z / 2) / 2` and so to 0.

    The sigmoid is the slope of torch's softplus, which is 1 above 20.
    """

    @staticmethod
    def forward(ctx, logit: Tensor) -> Tensor:
        root = F.softplus(logit).sqrt_()
        ctx.save_for_backward(logit, root)
        return root

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad: Tensor) -> Tensor:
        logit, root = ctx.saved_tensors
        slope = torch.ops.aten.softplus_backward(root.reciprocal(), logit, beta=1.0, threshold=20.0)
        slope = torch.where(logit < EXP_IS_SOFTPLUS, torch.exp(logit / 2), slope)
        return grad * slope / 2


def routing_weights(score_BTE: Tensor, picked_BTA: Tensor, scale: float) -> Tensor:
    """`ops.routing_weights`; a sum of torch costs a decoding step less than one of einops."""
    chosen_BTA = score_BTE.gather(-1, picked_BTA)
    return scale * chosen_BTA / (chosen_BTA.sum(-1, keepdim=True) + 1e-20)
