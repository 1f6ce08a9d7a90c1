"""SwiGLU with a gradient written by hand: of all that is computed in between nothing is kept.

T tokens, F expert width.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from minidsv4 import ops
from minidsv4.fast.function import FastFunction, first_derivative_only
from minidsv4.fast.parts import parts
from minidsv4.ops import upcast


def swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    """`ops.swiglu` that keeps its two inputs alone; autograd keeps five tensors."""
    return SwiGLU.run(gate, up, limit)


class SwiGLU(FastFunction):
    """`swiglu`; its gradient computes it anew."""

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor, limit: float) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.limit = limit
        return ops.swiglu(gate, up, limit)

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        rows = [x.reshape(-1, x.shape[-1]) for x in (*ctx.saved_tensors, grad)]
        d_gate, d_up = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in rows[:2])
        for part in parts(d_gate):
            gate, up, pull = (x[part] for x in rows)
            swiglu_with_gradients(gate, up, ctx.limit, pull, d_gate[part], d_up[part])
        return d_gate.view_as(grad), d_up.view_as(grad), None


def swiglu_with_gradients(gate: Tensor, up: Tensor, limit: float, pull: Tensor, d_gate: Tensor, d_up: Tensor) -> Tensor:
    """`ops.swiglu`, and into `d_gate` and `d_up` the gradients that `pull` on it gives; 0 beyond the clamps."""
    gate, up = upcast(gate), upcast(up)
    low_gate, low_up = gate.clamp(max=limit), up.clamp(-limit, limit)
    silu = F.silu(low_gate)
    slope = torch.ops.aten.silu_backward(pull * low_up, low_gate)
    edge = above(limit, gate.dtype)  # a clamp lets its limit pass
    d_gate.copy_(torch.ops.aten.hardtanh_backward(slope, gate, -torch.inf, edge))
    d_up.copy_(torch.ops.aten.hardtanh_backward(pull * silu, up, -edge, edge))
    return silu.mul_(low_up)


def inner_rows(raw_TF: Tensor, weight_TA: Tensor, limit: float) -> Tensor:
    """What an expert's second product reads [T, F]: `weight swiglu(gate, up)`, from gates beside ups [T, 2 F].

    weight_TA  one weight a token, [T, 1]
    """
    return ops.swiglu(*raw_TF.chunk(2, dim=-1), limit).mul_(weight_TA)


def inner_rows_back(raw_TF: Tensor, weight_TA: Tensor, limit: float, pull_TF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`inner_rows` once more, and the gradients of `raw` and of `weight` [T] that `pull` on it gives."""
    d_raw_TF = torch.empty_like(raw_TF)
    halves = raw_TF.chunk(2, -1), d_raw_TF.chunk(2, -1)
    inner_TF = swiglu_with_gradients(*halves[0], limit, pull_TF * weight_TA, *halves[1])
    d_weight_T = torch.linalg.vecdot(pull_TF, inner_TF)
    return inner_TF.mul_(weight_TA), d_raw_TF, d_weight_T


class Inner(NamedTuple):
    """What happens to a token between the two products of an expert, and its gradient."""

    rows: Callable[..., Tensor]
    back: Callable[..., tuple[Tensor, Tensor, Tensor]]


INNER = Inner(inner_rows, inner_rows_back)


@functools.cache
def above(limit: float, dtype: torch.dtype) -> float:
    """The next number of this type."""
    both = torch.tensor([limit, torch.inf], dtype=dtype, device="cpu")
    return torch.nextafter(*both).item()
