"""What all parts share: a table of operations, and calls to watch."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from minidsv4.fast import FAST
from minidsv4.model.autocast import autocasting, exact_but_for_experts
from minidsv4.ops import Ops
from minidsv4.stored_types import Stored


class Layer(Stored):
    """A module that computes by `self.ops`; `Model.use` gives a model another table.

    table  the operations; `ops` is the same but under `torch.autocast`
    """

    table: Ops = FAST

    @property
    def ops(self) -> Ops:
        """The operations; under `torch.autocast` those that keep to their types."""
        return exact_but_for_experts(self.table) if autocasting() else self.table

    @ops.setter
    def ops(self, table: Ops) -> None:
        self.table = table


class RMSNorm(Layer):
    """`weight * x / sqrt(mean(x^2) + eps)` over the last axis. Report section 2.3.3."""

    float32 = ("weight",)

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.rms_norm(x, self.weight, self.eps)


@contextmanager
def wrapped(
    layers: list[Layer],
    name: str,
    wrap: Callable[[Layer, Callable], Callable],
) -> Iterator[None]:
    """Inside, these layers call `wrap(layer, operation)` for the operation `name`."""
    before = [layer.table for layer in layers]
    try:
        for layer in layers:
            operation = wrap(layer, getattr(layer.table, name))
            layer.ops = layer.table._replace(**{name: operation})
        yield
    finally:
        for layer, table in zip(layers, before):
            layer.ops = table


Call = tuple[nn.Module, tuple, Any]


@contextmanager
def watch(model: nn.Module, *kinds: type | str) -> Iterator[list[Call]]:
    """Collect `(module, its inputs, its output)` of every call, in order.

    kinds  types of modules whose calls are wanted, and names of operations: then the
           module is the one that calls
    """
    seen: list[Call] = []

    def watched(layer: Layer, operation: Callable) -> Callable:
        def call(*arguments: object) -> object:
            output = operation(*arguments)
            seen.append((layer, arguments, output))
            return output

        return call

    def note(module: nn.Module, inputs: tuple, output: object) -> None:
        seen.append((module, inputs, output))

    with ExitStack() as stack:
        for kind in kinds:
            if isinstance(kind, str):
                parts = model.modules()
                layers = [part for part in parts if isinstance(part, Layer)]
                stack.enter_context(wrapped(layers, kind, watched))
            else:
                for module in model.modules():
                    if isinstance(module, kind):
                        stack.callback(module.register_forward_hook(note).remove)
        yield seen
