"""Operations that read the same tensor one after another, and its one gradient, which grows on the way back.

autograd gives the gradient of each reader a tensor of its own and adds them up afterwards: for residual streams, which
a site reads three times, that is two more tensors and two more passes over memory. Here a reader hands what it read on
to the next one, as a second output. Then the gradient of all later readers comes back to it, and it adds its own where
that is written.

A reader to whom nothing was handed reads the tensor itself, so that operations may be called alone and in any order.
What one hands on is kept as long as the tensor that was read. So nothing that leads to it in the graph may hold that
tensor: its node keeps what it hands on, and a leaf, which its node does hold, is not handed on.
"""

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from minidsv4.fast.function import FastFunction

_handed_on = WeakTensorKeyDictionary()  # by the tensor that was read


def first_reader(function: type[FastFunction], x: Tensor, *given) -> Tensor:
    """The first output of a function of `x`, whose second output is `x` for the next reader."""
    return _read(function, x, x, *given)


def next_reader(function: type[FastFunction], x: Tensor, *given) -> Tensor:
    """`first_reader` of `x` as its last reader handed it on."""
    return _read(function, x, handed_on(x), *given)


def handed_on(x: Tensor) -> Tensor:
    """`x` as its last reader handed it on; `x` itself where none did or no gradient is asked for."""
    return _handed_on.get(x, x) if torch.is_grad_enabled() else x


def _read(function: type[FastFunction], x: Tensor, read: Tensor, *given) -> Tensor:
    out, handed = function.run(read, *given)
    if x.grad_fn is not None and handed.requires_grad:
        _handed_on[x] = handed
    return out


def gradient_of_later(handed: Tensor | None, like: Tensor) -> Tensor:
    """The gradient that later readers gave, in the type of `like`; zeros of its shape where none did."""
    return like.new_zeros(()).expand(like.shape) if handed is None else handed.to(like.dtype)
