"""Residual streams in compiled loops: reading, writing and Sinkhorn, with their gradients.

B batch, T tokens, N streams, D width; i old stream, j new stream.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minidsv4.fast import FAST
from minidsv4.fast.compiled.numba_loops import DTYPES, loops
from minidsv4.fast.compiled.threads import with_threads
from minidsv4.fast.function import FastFunction, first_derivative_only


def known(*tensors: Tensor) -> bool:
    """Whether the loops know these: one type of theirs, on the CPU."""
    return all(x.dtype == tensors[0].dtype and x.dtype in DTYPES and x.device.type == "cpu" for x in tensors)


def shaped(tensors: Sequence[Tensor], *shapes: tuple[int, ...]) -> bool:
    """Whether tensors have these shapes: a loop looks at the first one's and does not broadcast."""
    return all(x.shape == torch.Size(shape) for x, shape in zip(tensors, shapes, strict=True))


def new_like(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Contiguous tensors of the shapes and types of these, not filled."""
    return [torch.empty(x.shape, dtype=x.dtype) for x in tensors]


def rows(*tensors: Tensor) -> list:
    """Tensors [B, T, ...] as arrays of B T tokens."""
    return [x.detach().contiguous().flatten(0, 1).numpy() for x in tensors]


def collapse(streams_BTND: Tensor, pre_BTN: Tensor) -> Tensor:
    """`ops.collapse` in one pass forwards and one backwards."""
    alike = known(streams_BTND, pre_BTN) and shaped((pre_BTN,), streams_BTND.shape[:3])
    return (Collapse.run if alike else FAST.collapse)(streams_BTND, pre_BTN)


class Collapse(FastFunction):
    """`collapse`; it keeps what it is given."""

    @staticmethod
    def forward(ctx, streams_BTND: Tensor, pre_BTN: Tensor) -> Tensor:
        ctx.save_for_backward(streams_BTND, pre_BTN)
        out_BTD = pre_BTN.new_empty(*pre_BTN.shape[:2], streams_BTND.shape[-1])
        with_threads(loops("streams_loops").collapse_share, rows(streams_BTND, pre_BTN, out_BTD))
        return out_BTD

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad_BTD: Tensor) -> tuple[Tensor, ...]:
        given = ctx.saved_tensors
        gradients = new_like(given)
        with_threads(loops("streams_loops").collapse_back_share, rows(grad_BTD, *given, *gradients))
        return tuple(gradients)


def write(streams_BTND: Tensor, y_BTD: Tensor, post_BTN: Tensor, carry_BTij: Tensor) -> Tensor:
    """`ops.write` in one pass forwards and one backwards."""
    given = streams_BTND, y_BTD, post_BTN, carry_BTij
    *tokens, n_streams, width = streams_BTND.shape
    shapes = (*tokens, width), (*tokens, n_streams), (*tokens, n_streams, n_streams)
    alike = known(*given) and shaped(given[1:], *shapes)
    return (Write.run if alike else FAST.write)(*given)


class Write(FastFunction):
    """`write`; it keeps what it is given."""

    @staticmethod
    def forward(ctx, *given: Tensor) -> Tensor:
        ctx.save_for_backward(*given)
        out = new_like(given[:1])
        with_threads(loops("streams_loops").write_share, rows(*given, *out))
        return out[0]

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad_BTND: Tensor) -> tuple[Tensor, ...]:
        given = ctx.saved_tensors
        gradients = new_like(given)
        with_threads(loops("streams_loops").write_back_share, rows(grad_BTND, *given, *gradients))
        return tuple(gradients)


def sinkhorn(logits_BTij: Tensor, iterations: int, eps: float) -> Tensor:
    """`ops.sinkhorn` of many tokens at a time, in registers."""
    if not known(logits_BTij) or logits_BTij.shape[-1] != logits_BTij.shape[-2]:
        return FAST.sinkhorn(logits_BTij, iterations, eps)
    return Sinkhorn.run(logits_BTij, iterations, eps)


class Sinkhorn(FastFunction):
    """`sinkhorn`; it keeps the logits alone."""

    @staticmethod
    def forward(ctx, logits_BTij: Tensor, iterations: int, eps: float) -> Tensor:
        ctx.save_for_backward(logits_BTij)
        ctx.numbers = max(1, 2 * iterations - 1), logits_BTij.new_tensor(eps).numpy()[()]
        out = new_like((logits_BTij,))
        with_threads(loops("streams_loops").sinkhorn_share, rows(logits_BTij, *out), *ctx.numbers)
        return out[0]

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad_BTij: Tensor) -> tuple[Tensor, None, None]:
        logits = ctx.saved_tensors
        gradients = new_like(logits)
        with_threads(loops("streams_loops").sinkhorn_back_share, rows(*logits, grad_BTij, *gradients), *ctx.numbers)
        return gradients[0], None, None
