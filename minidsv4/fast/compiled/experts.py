"""SwiGLU and the experts around it, with its many small passes as one compiled loop.

T tokens, F expert width.
"""

import numpy as np
import torch
from torch import Tensor

from minidsv4.fast import FAST
from minidsv4.fast.compiled.numba_loops import loops
from minidsv4.fast.compiled.streams import known
from minidsv4.fast.compiled.threads import with_threads
from minidsv4.fast.experts import experts as sorted_experts
from minidsv4.fast.function import FastFunction, first_derivative_only
from minidsv4.fast.swiglu import INNER, Inner


def swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    """`ops.swiglu` in one pass forwards and one backwards.

    16 bits and other devices than the CPU go the way of `FAST`.

    raises  ValueError: numba is missing
    """
    alike = known(gate, up) and gate.shape == up.shape
    return SwiGLU.run(gate, up, limit) if alike else FAST.swiglu(gate, up, limit)


def experts(x: Tensor, picked: Tensor, weight: Tensor, w13_EFD: Tensor, w2_EDF: Tensor, limit: float) -> Tensor:
    """`ops.experts` sorted as in `FAST`, with the loops of `swiglu`; a token alone goes the way of `FAST`."""
    given = x, picked, weight, w13_EFD, w2_EDF, limit
    many = weight.numel() > weight.shape[-1]
    return sorted_experts(*given, INNER_IN_LOOPS) if many and known(x, w13_EFD, w2_EDF) else FAST.experts(*given)


def arrays(*tensors: Tensor) -> list[np.ndarray]:
    """Tensors [..., F] as arrays of rows."""
    return [x.detach().contiguous().view(-1, x.shape[-1]).numpy() for x in tensors]


class SwiGLU(FastFunction):
    """`swiglu`; it keeps what it is given."""

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor, limit: float) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.limit = limit
        out = torch.empty(gate.shape, dtype=gate.dtype)
        gates, ups, outs = arrays(gate, up, out)
        with_threads(loops("swiglu_loops").fill, [gates, ups, ones(outs), outs], 0, outs.dtype.type(limit))
        return out

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        d_gate, d_up = torch.empty(gate.shape, dtype=gate.dtype), torch.empty(up.shape, dtype=up.dtype)
        gates, ups, pulls, d_gates, d_ups = arrays(gate, up, grad, d_gate, d_up)
        spare = np.empty_like(pulls), ones(pulls)  # the output once more, and gradients of weights
        per_token = [gates, ups, ones(pulls), pulls, spare[0], d_gates, d_ups, spare[1]]
        with_threads(loops("swiglu_loops").fill_back, per_token, 0, pulls.dtype.type(ctx.limit))
        return d_gate, d_up, None


def ones(rows: np.ndarray) -> np.ndarray:
    """A weight of 1 for each row."""
    return np.ones(len(rows), rows.dtype)


def inner_rows(raw_TF: Tensor, weight_TA: Tensor, limit: float) -> Tensor:
    """`fast.swiglu.inner_rows`."""
    if not known(raw_TF, weight_TA):
        return INNER.rows(raw_TF, weight_TA, limit)
    width = raw_TF.shape[1] // 2
    out_TF = raw_TF.new_empty(len(raw_TF), width)
    raw, weight, out = (x.numpy() for x in (raw_TF, weight_TA.flatten(), out_TF))
    with_threads(loops("swiglu_loops").fill, [raw, raw, weight, out], width, out.dtype.type(limit))
    return out_TF


def inner_rows_back(raw_TF: Tensor, weight_TA: Tensor, limit: float, pull_TF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`fast.swiglu.inner_rows_back`."""
    if not known(raw_TF, weight_TA, pull_TF):
        return INNER.back(raw_TF, weight_TA, limit, pull_TF)
    width, d_raw_TF, d_weight_T = raw_TF.shape[1] // 2, torch.empty_like(raw_TF), weight_TA.new_empty(len(raw_TF))
    inner_TF = torch.empty_like(pull_TF)
    raw, weight, pull, inner = (x.numpy() for x in (raw_TF, weight_TA.flatten(), pull_TF, inner_TF))
    d_raw, d_weight = d_raw_TF.numpy(), d_weight_T.numpy()
    per_token = [raw, raw, weight, pull, inner, d_raw, d_raw, d_weight]
    with_threads(loops("swiglu_loops").fill_back, per_token, width, inner.dtype.type(limit))
    return inner_TF, d_raw_TF, d_weight_T


INNER_IN_LOOPS = Inner(inner_rows, inner_rows_back)
