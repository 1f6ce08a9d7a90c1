"""Even ranks: an expert-parallel layer takes as long as its fullest rank, so hot experts are repeated and packed.

E experts, A active experts, V vocabulary. EPLB (deepseek-ai/EPLB) with its global policy, which fits V4: it has no
limit on the ranks that a token may visit, hence no groups. Loads are what is expected of the coming batches; how to
foresee them is not part of it. Nothing here moves a weight: a placement says which expert each slot of a rank holds.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minidsv4.train.balance import max_violation


def slowdown(rank_load: Tensor) -> float:
    """Time of a layer over that with even ranks, all else equal: `1 + MaxVio` of the ranks."""
    return 1 + max_violation(rank_load)


@dataclass(frozen=True)
class Placement:
    """Which expert each slot holds.

    experts  integers [ranks, slots of a rank]; an expert that occurs n times gets 1/n of its load in each
    """

    experts: Tensor

    def copies(self) -> Tensor:
        """How often each expert is held [E]."""
        return self.experts.flatten().bincount()

    def seats(self) -> tuple[int, ...]:
        """The slot of each expert, ranks one after the other, as `Layout` wants it.

        raises  ValueError where an expert has more than one
        """
        if (self.copies() > 1).any():
            raise ValueError(f"seats: expert {int(self.copies().argmax())} has several slots; place it without copies")
        return tuple(self.experts.flatten().argsort().tolist())

    def rank_loads(self, load_E: Tensor) -> Tensor:
        """Load of each rank, its sum being that of the experts.

        raises  ValueError for loads of another number of experts
        """
        copies_E = self.copies()
        if len(load_E) != len(copies_E):
            raise ValueError(f"rank_loads: there are {len(load_E)} loads for {len(copies_E)} placed experts")
        return (load_E.double() / copies_E)[self.experts].sum(dim=1)


def place(load_E: Tensor, n_ranks: int, n_redundant: int = 0) -> Placement:
    """EPLB: `n_redundant` copies for the hottest experts, then all packed onto the ranks, equally many on each.

    load_E   expected load of each expert [E], 0 or more
    returns  Placement with (E + n_redundant) / n_ranks slots a rank; one rank may hold two copies of an expert
    raises   ValueError for loads below 0, fewer than no copies, or slots that the ranks cannot share evenly
    """
    copies_E = replicate_experts(load_E, len(load_E) + n_redundant)
    held = torch.arange(len(load_E)).repeat_interleave(copies_E)
    if n_ranks < 1 or len(held) % n_ranks:
        raise ValueError(f"place: {n_ranks} ranks cannot share {len(held)} slots evenly; the number must divide them")
    rank = balanced_packing((load_E.double() / copies_E)[held], n_ranks, len(held) // n_ranks)
    return Placement(held[rank.argsort(stable=True)].unflatten(0, (n_ranks, -1)))


def replicate_experts(load_E: Tensor, n_slots: int) -> Tensor:
    """How many slots each expert gets: one each, every further one to the expert with most load a copy.

    returns  integers [E], summing to n_slots; of equally loaded experts the first is served first
    raises   ValueError for loads below 0 or fewer slots than experts
    """
    if not (load_E >= 0).all():
        raise ValueError("replicate_experts: a load counts tokens, it is 0 or more")
    if n_slots < len(load_E):
        raise ValueError(f"replicate_experts: n_slots = {n_slots} cannot hold {len(load_E)} experts")
    load_E, copies_E = load_E.double(), torch.ones(len(load_E), dtype=torch.int64)
    for _ in range(n_slots - len(load_E)):
        copies_E[(load_E / copies_E).argmax()] += 1
    return copies_E


def balanced_packing(load: Tensor, n_packs: int, most: int | None = None) -> Tensor:
    """The pack of each item: heaviest first, each to the lightest pack with room.

    Packs then differ by no more than the heaviest item. It is a rule of thumb: a lucky order can be a little better.

    load     weight of each item [items]
    most     items in a pack; None is any number
    returns  integers [items]; of equal items, and of equal packs, the first goes first
    raises   ValueError for no pack, and where `most` leaves no room for all
    """
    room = len(load) if most is None else most
    if n_packs < 1 or room * n_packs < len(load):
        raise ValueError(
            f"balanced_packing: n_packs = {n_packs} of at most {room} cannot hold {len(load)} items; raise one"
        )
    pack = torch.empty(len(load), dtype=torch.int64)
    held = [0] * n_packs
    weight = [0.0] * n_packs
    for item in load.double().argsort(descending=True, stable=True).tolist():
        lightest = min((p for p in range(n_packs) if held[p] < room), key=weight.__getitem__)
        pack[item] = lightest
        held[lightest] += 1
        weight[lightest] += load[item].item()
    return pack


def table_loads(table_VA: Tensor, frequency_V: Tensor, n_experts: int) -> Tensor:
    """Load of each expert of a hash layer [E]: known before the first batch, since its table is fixed.

    table_VA     the experts of each token id
    frequency_V  how often each id occurs
    """
    visits = frequency_V.double().repeat_interleave(table_VA.shape[1])
    return torch.zeros(n_experts, dtype=torch.float64).index_add_(0, table_VA.flatten(), visits)
