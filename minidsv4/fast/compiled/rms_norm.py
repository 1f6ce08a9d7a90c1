"""RMSNorm in compiled loops, one pass forwards and one backwards.

T tokens (or heads of tokens), D width.
"""

import numpy as np
import torch
from torch import Tensor

from minidsv4.fast import FAST
from minidsv4.fast.compiled.experts import arrays
from minidsv4.fast.compiled.numba_loops import loops
from minidsv4.fast.compiled.streams import known, shaped
from minidsv4.fast.compiled.threads import with_threads
from minidsv4.fast.function import FastFunction, first_derivative_only
from minidsv4.fast.one_token import alone
from minidsv4.fast.rms_norm import divides


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """`ops.rms_norm` in loops. A token alone, 16 bits and other devices than the CPU go the way of `FAST`.

    raises  ValueError: numba is missing
    """
    gain = x.new_ones(x.shape[-1:]) if weight is None else weight
    if alone(x) or not (known(x, gain) and shaped((gain,), x.shape[-1:])):
        return FAST.rms_norm(x, weight, eps)
    return RMSNorm.run(x, gain, eps, torch.is_grad_enabled())


class RMSNorm(FastFunction):
    """`rms_norm`; it keeps its output where no weight is 0, and otherwise what it was given, as that of `FAST` does."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float, learning: bool) -> Tensor:
        out, scale = torch.empty(x.shape, dtype=x.dtype), x.new_empty(x.shape[:-1])
        xs, outs = arrays(x, out)
        gain = weight.detach().contiguous().numpy()
        with_threads(loops("norm_loops").norm_share, [xs, scale.view(-1).numpy(), outs], gain, xs.dtype.type(eps))
        ctx.divides = learning and divides(weight)
        ctx.save_for_backward(out if ctx.divides else x, weight, scale)
        return out

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        kept, weight, scale = ctx.saved_tensors
        d_x = torch.empty(kept.shape, dtype=kept.dtype)
        n_shares = min(torch.get_num_threads(), scale.numel())
        d_weight = weight.new_zeros(n_shares, len(weight))  # each share of the rows has its own
        one, scales = torch.ones_like(weight), scale.view(-1).numpy()
        inverse, times = (one / weight, np.ones_like(scales)) if ctx.divides else (one, scales)
        per_row = [*arrays(grad, kept), scales, times, *arrays(d_x), d_weight.numpy()]
        gains = [x.detach().contiguous().numpy() for x in (weight, inverse)]
        with_threads(loops("norm_loops").norm_back_share, per_row, *gains)
        return d_x, d_weight.sum(0), None, None
