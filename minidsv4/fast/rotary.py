"""Partial RoPE as one complex product in place, with a gradient written by hand.

R rotary part, K vector width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from minidsv4.fast.function import FastFunction
from minidsv4.ops import upcast


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """`ops.rotate` on one copy of `x`; its gradient is turned back, also on one copy, and nothing of `x` is kept."""
    by_hand = x.requires_grad and not turn.requires_grad
    return Rotate.run(x, turn) if by_hand else turned(x, turn)


class Rotate(FastFunction):
    """`rotate`; its gradient is the rotation by the conjugate, which has a gradient itself."""

    @staticmethod
    def forward(ctx, x: Tensor, turn: Tensor) -> Tensor:
        ctx.turn = turn
        return turned(x, turn)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return rotate(grad, ctx.turn.conj()), None


def turned(x: Tensor, turn: Tensor) -> Tensor:
    """`ops.rotate`: pairs are read as complex numbers where they lie, and multiplied in place."""
    if x.shape[-1] % 2:  # only pairs at even places can be read as complex numbers
        return turned(F.pad(x, (1, 0)), turn)[..., 1:]
    copy = upcast(x).clone(memory_format=torch.contiguous_format)
    pairs = torch.view_as_complex(copy.view(*copy.shape[:-1], -1, 2))
    pairs[..., -turn.shape[-1] :].mul_(turn)
    return copy.to(x.dtype)
