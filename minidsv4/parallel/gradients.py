"""Gradients of one process, from those that the ranks of a group have found."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch import distributed as dist

from minidsv4.parallel.experts import SpreadExperts
from minidsv4.parallel.launch import contact

BUCKET = 1 << 22  # numbers summed in one message: each message has its latency, each number its copy


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
    found = [parameter for parameter, found in zip(shared, have_gradient(shared, group)) if found]
    for parameter in found:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in buckets([parameter.grad for parameter in found]):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        with contact(group.rank(), "summing gradients"):
            dist.all_reduce(flat, group=group)
        for gradient, summed in zip(bucket, flat.split([gradient.numel() for gradient in bucket])):
            gradient.copy_(summed.view_as(gradient))


def buckets(gradients: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one type that are summed in one message, of at most BUCKET numbers; a larger one goes alone."""
    bucket: list[Tensor] = []
    for gradient in sorted(gradients, key=lambda gradient: str(gradient.dtype)):
        n_numbers = sum(other.numel() for other in [*bucket, gradient])
        if bucket and (gradient.dtype != bucket[0].dtype or n_numbers > BUCKET):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
