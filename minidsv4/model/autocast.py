"""`torch.autocast`: linear layers and experts run in 16 bits.

What is computed in float32 in a 16-bit model stays in float32.

E experts, F expert width, D width.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from minidsv4.ops import Ops, upcast


def autocasting() -> bool:
    """Whether this is inside of `torch.autocast`, on the CPU or on a GPU."""
    return torch._C._is_any_autocast_enabled()


def exact(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`operation` in the types of its arguments, inside of `torch.autocast` too."""

    @functools.wraps(operation)
    def call(*arguments: Any) -> Tensor:
        device = device_of(arguments[0])
        if not autocasting() or not torch.is_autocast_enabled(device):
            return operation(*arguments)
        with torch.autocast(device, enabled=False):
            return operation(*arguments)

    return call


def device_of(argument: Tensor | tuple) -> str:
    """The kind of device that an operation's first tensor is on."""
    first = argument
    while isinstance(first, tuple):
        first = first[0]
    return first.device.type


@exact
def linear(x: Tensor, weight: Tensor) -> Tensor:
    """`x weight^T`, in float32 at least."""
    return F.linear(upcast(x), upcast(weight))


@functools.lru_cache(maxsize=64)
def exact_but_for_experts(table: Ops) -> Ops:
    """The table whose operations autocast leaves alone, but for experts.

    These get 16 bits, as linear layers do.
    """
    run = exact(table.experts)

    def experts(
        x: Tensor,
        picked: Tensor,
        weight: Tensor,
        w13_EFD: Tensor,
        w2_EDF: Tensor,
        limit: float,
    ) -> Tensor:
        low = x.dtype
        if low != torch.float64:
            low = torch.get_autocast_dtype(x.device.type)
        return run(x.to(low), picked, weight, w13_EFD.to(low), w2_EDF.to(low), limit)

    return Ops(*map(exact, table))._replace(experts=experts)
