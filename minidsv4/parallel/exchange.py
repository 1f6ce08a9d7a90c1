"""What ranks exchange within a graph: rows by an all-to-all, and sums; gradients take the way back.

All ranks call each of them, forwards and backwards, in the same order.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minidsv4.parallel.transport import Handle, Transport
from minidsv4.parallel.wire import Wire


@dataclass
class AllToAll:
    """One all-to-all of rows; in backward their gradients come the same way back."""

    transport: Transport
    sent: list[int]
    received: list[int]
    wire: Wire
    gradient_wire: Wire
    handle: Handle | None = None
    out: Tensor | None = None

    def start(self, rows: Tensor) -> Tensor:
        """Send; the rows returned have their numbers after `wait`."""
        self.handle = self.transport.issue(self.wire.pack(rows), self.sent, self.received)
        self.out = rows.new_empty(sum(self.received), rows.shape[1])
        return self.out

    @torch.no_grad()
    def wait(self) -> Tensor:
        out = self.out.copy_(self.wire.unpack(self.handle.wait(), like=self.out))
        self.handle = self.out = None  # else a tensor, its backward and this object would keep each other alive
        return out

    def reverse(self) -> "AllToAll":
        return AllToAll(self.transport, self.received, self.sent, self.gradient_wire, self.gradient_wire)


class Exchange(torch.autograd.Function):
    """An all-to-all, begun but not awaited; that of the gradient has the counts swapped."""

    @staticmethod
    def forward(ctx, rows: Tensor, all_to_all: AllToAll) -> Tensor:
        ctx.all_to_all = all_to_all
        return all_to_all.start(rows)

    @staticmethod
    def backward(ctx, grad: Tensor):
        _check_first_derivative()
        reverse = ctx.all_to_all.reverse()
        reverse.start(grad)
        return reverse.wait(), None


class Summed(torch.autograd.Function):
    """The sum of all ranks' tensors; each rank's gradient is that of the sum already, as all compute the same loss."""

    @staticmethod
    def forward(ctx, x: Tensor, transport: Transport) -> Tensor:
        return transport.all_reduce(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad, None


class SummedBackward(torch.autograd.Function):
    """A tensor that all ranks have alike and use for different things: its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, x: Tensor, transport: Transport) -> Tensor:
        ctx.transport = transport
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        _check_first_derivative()
        return ctx.transport.all_reduce(grad), None


def _check_first_derivative() -> None:
    """Refuse to build a graph of a backward: its sends would not be in it, and terms would be missing."""
    if torch.is_grad_enabled():
        raise ValueError("parallel: what ranks exchange has first derivatives only; leave create_graph=False")
