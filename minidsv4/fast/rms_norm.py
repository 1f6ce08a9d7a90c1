"""RMSNorm with a gradient written by hand, in passes over what is in the processor's cache.

T tokens (or heads of tokens), D width.
"""

import torch
from torch import Tensor

from minidsv4.fast.function import FastFunction, first_derivative_only
from minidsv4.fast.parts import parts
from minidsv4.ops import upcast

SMALLEST = 1e-10  # of a weight by which the output is divided


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """`ops.rms_norm` that keeps one tensor and one number a row; torch keeps three tensors."""
    return RMSNorm.run(x, weight, eps, torch.is_grad_enabled())


def divides(weight: Tensor) -> bool:
    """Whether what was multiplied by this weight can be had back by division."""
    return bool(weight.abs().amin() > SMALLEST)


class RMSNorm(FastFunction):
    """`rms_norm`: `w n`, `n = x s`, `s = (mean(x^2) + eps)^-1/2`; `dx = s (w g - n mean(w g n))` and `dw = sum g n`.

    Where no weight is 0 it keeps its output, which the next product keeps as well, and `n` is that over `w`.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, eps: float, learning: bool) -> Tensor:
        wide = upcast(x)
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        out = wide * scale
        out = (out if weight is None else out.mul_(upcast(weight))).to(x.dtype)
        whole = learning and weight is not None and wide.dtype == x.dtype
        ctx.divides = whole and divides(weight)
        ctx.save_for_backward(out if ctx.divides else x, weight, scale)
        return out

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        kept, weight, scale = ctx.saved_tensors
        grads, rows, scales = (part.reshape(-1, part.shape[-1]) for part in (grad, kept, scale))
        gain = scales.new_ones(rows.shape[-1]) if weight is None else upcast(weight)
        d_x, d_gain = torch.empty_like(rows), torch.zeros_like(gain)
        for part in parts(rows):
            normed = rows[part] / gain if ctx.divides else rows[part] * scales[part]
            pull = upcast(grads[part])
            along = pull * normed
            d_gain += along.sum(0)
            mean = (along @ gain)[:, None] / len(gain)
            pull = pull if weight is None else pull * gain
            d_x[part] = normed.mul_(mean).neg_().add_(pull).mul_(scales[part])
        return d_x.view_as(kept), None if weight is None else d_gain.to(weight.dtype), None, None
