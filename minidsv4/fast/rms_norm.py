"""RMSNorm with a gradient written by hand, in passes over what is in the processor's cache.

T tokens (or heads of tokens), D width.
"""

import torch
from torch import Tensor

from minidsv4.fast.function import FastFunction, first_derivative_only
from minidsv4.fast.parts import parts
from minidsv4.ops import upcast


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """`ops.rms_norm` that keeps its input and one number a row; torch keeps two more tensors of the input's size."""
    return RMSNorm.run(x, weight, eps)


class RMSNorm(FastFunction):
    """`rms_norm`: `w n`, `n = x s`, `s = (mean(x^2) + eps)^-1/2`; `dx = s (w g - n mean(w g n))` and `dw = sum g n`."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        wide = upcast(x)
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        out = wide * scale
        return (out if weight is None else out.mul_(upcast(weight))).to(x.dtype)

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        grads, xs, scales = (part.reshape(-1, part.shape[-1]) for part in (grad, x, scale))
        ones = scales.new_ones(x.shape[-1])
        gain = ones if weight is None else upcast(weight)
        d_x, d_gain = torch.empty_like(xs), torch.zeros_like(gain)
        for part in parts(xs):
            normed = xs[part] * scales[part]
            pull = upcast(grads[part])
            along = pull * normed
            d_gain += along.sum(0)
            mean = (along @ gain)[:, None] / len(gain)
            pull = pull if weight is None else pull * gain
            d_x[part] = normed.mul_(mean).neg_().add_(pull).mul_(scales[part])
        return d_x.view_as(x), None if weight is None else d_gain.to(weight.dtype), None
