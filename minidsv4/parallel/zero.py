"""Hybrid ZeRO for Muon: each rank keeps the momentum of some whole matrices, moves them, and tells the others.

E experts, F expert width, D width. Report section 3.5.1. Every rank holds all weights and the gradients of its own
part of the batch. A matrix must be whole to be orthogonalised, so none is cut: dense ones are shared out by weight,
heaviest first, and the experts' lie in one long vector that splits evenly. What AdamW moves may be cut anywhere.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from minidsv4.ops import upcast
from minidsv4.parallel.balance import balanced_packing
from minidsv4.parallel.gradients import have_gradient
from minidsv4.parallel.launch import contact
from minidsv4.train.muon import WHOLE, Muon, ParameterSpec, parameter_specs, split_matrices


class Item(NamedTuple):
    """What belongs to one rank: a matrix of a parameter, or a stretch of the numbers of one that AdamW moves.

    parts  as in `ParameterSpec`
    where  (which part, which matrix of its stack), or (first number, number after the last)
    """

    name: str
    parameter: nn.Parameter
    parts: tuple[int, ...] | None
    where: tuple[int, int]

    def of(self, tensor: Tensor) -> Tensor:
        """Its piece of the parameter or of the gradient, as a view."""
        first, second = self.where
        if self.parts is None:
            return tensor.reshape(-1)[first:second]
        return split_matrices(tensor, self.parts)[first][second]

    @property
    def is_expert(self) -> bool:
        """Whether it comes from the stacked matrices of the experts."""
        return self.parameter.ndim == 3

    def gradient(self) -> Tensor:
        """Its gradient, flat; zeros where there is none."""
        gradient = self.parameter.grad
        return self.of(torch.zeros_like(self.parameter) if gradient is None else gradient).flatten()

    @property
    def size(self) -> int:
        """How many numbers."""
        return self.of(self.parameter).numel()


def padding(loads: Sequence[int]) -> float:
    """What is added to the whole when every share is filled up to the largest: `shares * largest / sum - 1`."""
    return len(loads) * max(loads) / max(1, sum(loads)) - 1


@dataclass(frozen=True)
class Shares:
    """Who owns what. Dense matrices have a cap of shares; ranks beyond it own, and compute, the same ones again."""

    dense: list[list[Item]]
    experts: list[list[Item]]
    numbers: list[list[Item]]

    def owned(self, rank: int) -> list[Item]:
        """The items of a rank, experts first."""
        return [*self.experts[rank], *self.dense[rank % len(self.dense)], *self.numbers[rank]]

    def report(self) -> str:
        """Three lines to read: how many matrices a rank has, and what padding costs."""
        lines = []
        for name, shares in (("dense", self.dense), ("experts", self.experts), ("AdamW", self.numbers)):
            counts, loads = [len(share) for share in shares], [sum(item.size for item in share) for share in shares]
            what = "stretches" if name == "AdamW" else "matrices"
            n = f"{min(counts)} to {max(counts)}" if min(counts) != max(counts) else f"{max(counts)}"
            lines.append(f"{name:8}{len(shares)} shares of {n} {what}, padding {padding(loads):.1%}")
        return "\n".join(lines)


def share_out(model: nn.Module, n_ranks: int, cap: int | None = None, most: int | None = None) -> Shares:
    """Share out a model's parameters.

    cap     most shares of the dense matrices; None is one for each rank
    most    most dense matrices in a share; None is any number
    raises  ValueError for fewer than one rank or share, or where `most` leaves no room
    """
    if n_ranks < 1 or (cap is not None and cap < 1):
        raise ValueError(f"share_out: n_ranks = {n_ranks}, cap = {cap} share nothing out; both count from 1")
    found = parameter_specs(model)
    dense = [item for spec in found if spec.parts and spec.parameter.ndim == 2 for item in _matrices(spec)]
    n_shares = min(n_ranks, cap or n_ranks)
    share = balanced_packing(torch.tensor([item.size for item in dense]), n_shares, most).tolist()
    experts = experts_in_order(found)
    each = -(-len(experts) // n_ranks)  # rounded up: the last ranks may have fewer, or none
    return Shares(
        [[item for item, of in zip(dense, share) if of == number] for number in range(n_shares)],
        [experts[rank * each : (rank + 1) * each] for rank in range(n_ranks)],
        [_stretches(found, rank, n_ranks) for rank in range(n_ranks)],
    )


def experts_in_order(found: Sequence[ParameterSpec]) -> list[Item]:
    """All down matrices of all experts and layers, then all up, then all gate: one vector of equally large matrices."""
    stacks = [item for spec in found if spec.parts and spec.parameter.ndim == 3 for item in _matrices(spec)]
    down = [item for item in stacks if item.parts == WHOLE]
    gate, up = ([item for item in stacks if item.parts != WHOLE and item.where[0] == part] for part in (0, 1))
    return down + up + gate


def _matrices(spec: ParameterSpec) -> list[Item]:
    """The single matrices of a parameter, part by part."""
    stacks = split_matrices(spec.parameter, spec.parts)
    where = [(part, matrix) for part, stack in enumerate(stacks) for matrix in range(len(stack))]
    return [Item(spec.name, spec.parameter, spec.parts, spot) for spot in where]


def _stretches(found: Sequence[ParameterSpec], rank: int, n_ranks: int) -> list[Item]:
    """A rank's part of the numbers of every parameter that AdamW moves."""
    items = []
    for name, parameter, parts in found:
        start, stop = (parameter.numel() * end // n_ranks for end in (rank, rank + 1))
        if parts is None and start < stop:
            items.append(Item(name, parameter, None, (start, stop)))
    return items


def round_stochastically(x: Tensor, noise: Tensor) -> Tensor:
    """float32 to bfloat16, up or down so that the mean over the noise is `x` itself, exactly.

    The 16 bits that bfloat16 drops are how far `x` lies on the way to the next number; noise added to them carries
    over just as often.

    x      any float dtype, taken as float32
    noise  integers of 0 .. 65535, the same shape, each as likely as any other
    """
    bits = x.float().contiguous().view(torch.int32) + noise.to(torch.int32)
    return (bits & -65536).view(torch.float32).bfloat16()


class ShardedMuon:
    """`Muon` over the ranks of a group. All ranks call `step` together; where one has no gradient it counts as zero.

    model    the same weights on every rank; stays on its device and in its dtype from here on
    group    of torch.distributed
    cap      most shares of the dense matrices
    rounded  experts' gradients travel as bfloat16, stochastically rounded: half the bytes, and no bias
    seed     of the rounding
    options  of `Muon`
    """

    def __init__(
        self,
        model: nn.Module,
        group: dist.ProcessGroup,
        rate: float,
        cap: int | None = None,
        rounded: bool = True,
        seed: int = 0,
        **options,
    ):
        self.group, self.rank, self.n_ranks, self.rounded = group, group.rank(), group.size(), rounded
        self.parameters = list(model.parameters())
        self.shares = share_out(model, self.n_ranks, cap)
        self.owned = [self.shares.owned(rank) for rank in range(self.n_ranks)]
        self.generator = torch.Generator().manual_seed(seed * self.n_ranks + self.rank)
        # Parameters that are views of the model's: what moves them moves the model.
        self.mine = [nn.Parameter(item.of(item.parameter.detach())) for item in self.owned[self.rank]]
        own = [
            ParameterSpec(item.name, view, item.parts and WHOLE) for item, view in zip(self.owned[self.rank], self.mine)
        ]
        self.optimizer = Muon(own, rate, **options)

    @torch.no_grad()
    def step(self) -> None:
        """Average the gradients of what this rank owns, move it, and take in what the others moved."""
        found = have_gradient(self.parameters, self.group)
        learning = {id(parameter) for parameter, some in zip(self.parameters, found) if some}
        for item, view, gradient in zip(self.owned[self.rank], self.mine, self.average()):
            view.grad = gradient.view_as(view) if id(item.parameter) in learning else None
        self.optimizer.step()
        self.spread()

    def average(self) -> list[Tensor]:
        """Gradients of this rank's items, flat, each the mean over the ranks."""
        others = [[item for item in owned if not item.is_expert] for owned in self.owned]
        return [*self._average(self.shares.experts, self.rounded), *self._average(others, rounded=False)]

    def _average(self, shares: list[list[Item]], rounded: bool) -> list[Tensor]:
        """Everyone sends everyone its share, who sums in float32 at least; a ring would round at every hop."""
        sizes = [[item.size for item in share] for share in shares]
        gradients = torch.cat([item.gradient() for share in shares for item in share])
        sent = gradients
        if rounded:
            sent = round_stochastically(gradients, torch.randint(1 << 16, gradients.shape, generator=self.generator))
        counts = [sum(share) for share in sizes]
        got = sent.new_empty(self.n_ranks * counts[self.rank])
        with contact(self.rank, "sending gradients"):
            dist.all_to_all_single(got, sent, [counts[self.rank]] * self.n_ranks, counts, group=self.group)
        mean = functools.reduce(torch.add, upcast(got).chunk(self.n_ranks)) / self.n_ranks
        return list(mean.to(gradients.dtype).split(sizes[self.rank]))

    def spread(self) -> None:
        """Every rank's moved weights reach every model, in buckets filled up to the largest."""
        bucket = torch.cat([view.detach().flatten() for view in self.mine])
        sizes = [[item.size for item in owned] for owned in self.owned]
        longest = max(map(sum, sizes))
        buckets = [bucket.new_empty(longest) for _ in self.owned]
        with contact(self.rank, "sending weights"):
            dist.all_gather(buckets, F.pad(bucket, (0, longest - len(bucket))), group=self.group)
        for owned, share, bucket in zip(self.owned, sizes, buckets):
            for item, numbers in zip(owned, bucket[: sum(share)].split(share)):
                weight = item.of(item.parameter.detach())
                weight.copy_(numbers.view_as(weight))
