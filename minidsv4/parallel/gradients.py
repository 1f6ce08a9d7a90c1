"""Gradients of one process, from those that the ranks of a group have found."""

from collections.abc import Sequence

import torch
from torch import distributed as dist
from torch import nn

from minidsv4.parallel.experts import SpreadExperts
from minidsv4.parallel.launch import contact


def have_gradient(parameters: Sequence[nn.Parameter], group: dist.ProcessGroup | None = None) -> list[bool]:
    """Whether each parameter has a gradient on any rank; all ranks call it with the same ones."""
    group = group or dist.group.WORLD
    device = parameters[0].device if parameters else None
    found = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32, device=device)
    with contact(group.rank(), "comparing gradients"):
        dist.all_reduce(found, dist.ReduceOp.MAX, group=group)
    return found.bool().tolist()


def sum_gradients(model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Sum the gradients of what all ranks hold, as each saw other tokens; with "allreduce" they are equal.

    A parameter that no rank has a gradient of has none afterwards, as in one process; one that some ranks have none of
    counts as zero there.
    """
    group = group or dist.group.WORLD
    spread = {id(p) for module in model.modules() if isinstance(module, SpreadExperts) for p in module.parameters()}
    shared = [p for p in model.parameters() if id(p) not in spread and p.requires_grad]
    for parameter, found in zip(shared, have_gradient(shared, group)):
        if not found:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        with contact(group.rank(), "summing gradients"):
            dist.all_reduce(parameter.grad, group=group)
