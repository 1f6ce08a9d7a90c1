"""Residual streams in compiled loops: reading, writing and Sinkhorn, with their gradients.

B batch, T tokens, N streams, D width; i old stream, j new stream.
"""

import torch
from torch import Tensor

from minidsv4.fast import FAST
from minidsv4.fast.compiled.numba_loops import DTYPES, loops
from minidsv4.fast.compiled.threads import with_threads
from minidsv4.fast.function import FastFunction, first_derivative_only
from minidsv4.fast.readers import gradient_of_later, handed_on, next_reader


def known(*tensors: Tensor) -> bool:
    """Whether the loops know these: one type of theirs, on the CPU."""
    return all(x.dtype == tensors[0].dtype and x.dtype in DTYPES and x.device.type == "cpu" for x in tensors)


def new_like(tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """Room for tensors of these shapes."""
    return [torch.empty(x.shape, dtype=x.dtype) for x in tensors]


def rows(*tensors: Tensor) -> list:
    """Tensors [B, T, ...] as arrays of B T tokens."""
    return [x.detach().contiguous().flatten(0, 1).numpy() for x in tensors]


def collapse(streams_BTND: Tensor, pre_BTN: Tensor) -> Tensor:
    """`ops.collapse` in one pass forwards and one backwards."""
    if not known(streams_BTND, pre_BTN):
        return FAST.collapse(streams_BTND, pre_BTN)
    return next_reader(Collapse, streams_BTND, pre_BTN)


class Collapse(FastFunction):
    """`collapse`; it keeps what it is given."""

    @staticmethod
    def forward(ctx, streams_BTND: Tensor, pre_BTN: Tensor) -> tuple[Tensor, Tensor]:
        handed = streams_BTND.detach()
        out_BTD = handed.new_empty(*pre_BTN.shape[:2], handed.shape[-1])
        ctx.save_for_backward(handed, pre_BTN)
        ctx.set_materialize_grads(False)
        with_threads(loops("streams_loops").collapse_share, rows(handed, pre_BTN, out_BTD))
        return out_BTD, handed

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad_BTD: Tensor | None, d_later: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if grad_BTD is None:
            return d_later, None
        given = ctx.saved_tensors
        gradients, later = new_like(given), gradient_of_later(d_later, given[0])
        with_threads(loops("streams_loops").collapse_back_share, rows(grad_BTD, *given, later, *gradients))
        return tuple(gradients)


def write(streams_BTND: Tensor, y_BTD: Tensor, post_BTN: Tensor, carry_BTij: Tensor) -> Tensor:
    """`ops.write` in one pass forwards and one backwards."""
    given = y_BTD, post_BTN, carry_BTij
    if not known(streams_BTND, *given):
        return FAST.write(streams_BTND, *given)
    return Write.run(handed_on(streams_BTND), *given)


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
    if not known(logits_BTij):
        return FAST.sinkhorn(logits_BTij, iterations, eps)
    return Sinkhorn.run(logits_BTij, iterations, eps)


class Sinkhorn(FastFunction):
    """`sinkhorn`; it keeps the logits alone."""

    @staticmethod
    def forward(ctx, logits_BTij: Tensor, iterations: int, eps: float) -> Tensor:
        ctx.save_for_backward(logits_BTij)
        ctx.numbers = 2 * iterations - 1, logits_BTij.new_tensor(eps).numpy()[()]
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
