"""Which pair of token and expert goes to which rank, in which wave and in which order. Counting only: nothing is sent.

T tokens of one rank, A active experts, E experts. Each rank owns equally many experts, cut into waves; an expert's seat
says whose it is: seat s is place `s mod (E / ranks)` of rank `s // (E / ranks)`. Report section 3.1.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Experts on ranks and in waves.

    seats   the seat of each expert, all different; empty is expert e on seat e
    raises  ValueError where experts cannot be shared out evenly, or a wave would have no expert
    """

    n_experts: int
    n_ranks: int
    waves: int = 1
    seats: tuple[int, ...] = ()

    def __post_init__(self):
        n_experts, n_ranks = self.n_experts, self.n_ranks
        if n_experts % n_ranks:
            raise ValueError(f"experts: {n_experts} cannot be shared out evenly to {n_ranks} ranks; a multiple can")
        if not 1 <= self.waves <= self.n_local:
            raise ValueError(f"waves = {self.waves}: a rank has {self.n_local} experts, so 1 .. {self.n_local} waves")
        if self.seats and sorted(self.seats) != list(range(n_experts)):
            raise ValueError(f"seats: {n_experts} experts sit on the seats 0 .. {n_experts - 1}, one on each")

    @property
    def n_local(self) -> int:
        """Experts of one rank."""
        return self.n_experts // self.n_ranks

    @cached_property
    def seat_E(self) -> Tensor:
        """The seat of each expert."""
        return torch.tensor(self.seats) if self.seats else torch.arange(self.n_experts)

    def experts_of(self, rank: int) -> Tensor:
        """The experts of a rank, in the order of their seats."""
        return self.seat_E.argsort()[rank * self.n_local : (rank + 1) * self.n_local]

    @cached_property
    def bounds(self) -> list[int]:
        """Where waves begin and end: wave w has the places `bounds[w]` to `bounds[w + 1]` of every rank."""
        return [wave * self.n_local // self.waves for wave in range(self.waves + 1)]

    def wave_counts(self, counts: Tensor) -> list[Tensor]:
        """The columns of each wave, of counts by rank and place."""
        return [counts[:, start:stop] for start, stop in zip(self.bounds, self.bounds[1:])]


class Plan(NamedTuple):
    """The way of one rank's pairs; pair `t A + a` is pick a of token t.

    by_expert  pairs sorted by expert, those of one expert by token; picks of -1 are left out
    to_send    of these, the order in which they leave: by wave, then rank, then place
    counts     how many go to each rank and place [ranks, E / ranks]
    """

    by_expert: Tensor
    to_send: Tensor
    counts: Tensor

    @property
    def slots(self) -> Tensor:
        """Where each pair's result belongs, in the order in which results return."""
        return self.by_expert[self.to_send]


def plan(picked_TA: Tensor, layout: Layout) -> Plan:
    """The way of the pairs of one rank's tokens.

    picked_TA  experts 0 .. E - 1; -1 for none
    raises     ValueError for another number
    """
    picked = picked_TA.flatten()
    if len(picked) and not -1 <= picked.min() <= picked.max() < layout.n_experts:
        wrong = picked.max() if picked.max() >= layout.n_experts else picked.min()
        known = f"0 .. {layout.n_experts - 1}, and -1 for none"
        raise ValueError(f"picked: {int(wrong)} is no expert; they are {known}")
    expert, by_expert = picked.sort(stable=True)
    n_none = int((picked < 0).sum())
    seat = layout.seat_E.to(picked.device)[expert[n_none:]]
    rank, place = seat // layout.n_local, seat % layout.n_local
    wave_ends = torch.tensor(layout.bounds[1:], device=place.device)
    wave = torch.bucketize(place, wave_ends, right=True)
    sort_key = (wave * layout.n_ranks + rank) * layout.n_local + place
    to_send = sort_key.argsort(stable=True)
    by_seat = seat.bincount(minlength=layout.n_experts)
    counts = by_seat.view(layout.n_ranks, layout.n_local)
    return Plan(by_expert[n_none:], to_send, counts)
