"""A model's shapes without its numbers: what is read from a file need not be drawn first."""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

LARGEST_CONSTANT = 2**16  # numbers; a larger tensor of zeros is a parameter
Built = TypeVar("Built", bound=nn.Module)


class _Shapes(TorchFunctionMode):
    """Parameters are made on the meta device, and `torch.nn.init` gives each back as it is."""

    def __torch_function__(
        self, function: Callable, types: Any, arguments: tuple = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(named or {})
        if getattr(function, "__module__", None) == "torch.nn.init":
            return named["tensor"] if "tensor" in named else arguments[0]
        if function is torch.empty or (function is torch.zeros and size_of(*arguments) > LARGEST_CONSTANT):
            named["device"] = "meta"
        return function(*arguments, **named)


def size_of(*sizes: Any) -> int:
    """Numbers in a tensor of these sizes, which stand one by one or in one list."""
    return math.prod(sizes if isinstance(sizes[0], int) else sizes[0])


def unfilled(build: Callable[..., Built], *arguments: Any) -> Built:
    """The module that `build(*arguments)` makes, on the meta device: shapes, and no memory for numbers.

    The constants that it computes from its sizes are computed as always, and dropped: on the meta device torch would
    run each of their operations, and each draw, in Python, for which it imports its compiler: that takes a second.
    """
    with _Shapes():
        return build(*arguments).to("meta")
