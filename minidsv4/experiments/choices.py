"""Ablations of who reads which entries, as tables of operations: from the same weights, without a change of the model.

T queries, C entries, P picked entries. `CSA` is the model as it is. The others take away the indexer's choice (as many
entries at random, or the newest), CSA's entries, or those of CSA and HCA.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from minidsv4.ops import Ops
from minidsv4.visibility import Visibility


def as_it_is(ops: Ops) -> Ops:
    """The table itself."""
    return ops


def at_random(ops: Ops) -> Ops:
    """The indexer's picks are replaced by as many visible entries at random."""
    return ops._replace(top_entries=random_entries)


def newest(ops: Ops) -> Ops:
    """The indexer's picks are replaced by the newest visible entries."""
    return ops._replace(top_entries=newest_entries)


def hca_only(ops: Ops) -> Ops:
    """CSA layers read their window alone."""
    return _reading(ops, lambda sees: sees.picks_BTP is None)


def window_only(ops: Ops) -> Ops:
    """All layers read their window alone."""
    return _reading(ops, lambda sees: False)


CHOICES: dict[str, Callable[[Ops], Ops]] = {
    "CSA": as_it_is,
    "random": at_random,
    "newest": newest,
    "HCA": hca_only,
    "window": window_only,
}


def random_entries(query_BTUZ: Tensor, _weight_BTU: Tensor, keys_BCZ: Tensor, sees: Visibility, k: int) -> Tensor:
    """`picks_BTP`: of each k-th part of the visible entries one at random, the same in every run."""
    k = min(k, keys_BCZ.shape[1])
    generator = torch.Generator().manual_seed(sees.start)
    share = torch.rand(*query_BTUZ.shape[:2], k, generator=generator)
    visible_T1 = sees.visible_counts()[:, None]
    first = torch.arange(k)
    low_TP, high_TP = first * visible_T1 // k, (first + 1) * visible_T1 // k
    picks_BTP = low_TP + (share * (high_TP - low_TP)).long()
    return torch.where(visible_T1 >= k, picks_BTP, first)  # who sees fewer gets hidden ones, as in `ops.top_entries`


def newest_entries(query_BTUZ: Tensor, _weight_BTU: Tensor, keys_BCZ: Tensor, sees: Visibility, k: int) -> Tensor:
    """`picks_BTP`: the last k of the visible entries."""
    k = min(k, keys_BCZ.shape[1])
    first_T1 = (sees.visible_counts()[:, None] - k).clamp(min=0)
    return (first_T1 + torch.arange(k)).expand(len(query_BTUZ), -1, -1)


def _reading(ops: Ops, reads: Callable[[Visibility], bool]) -> Ops:
    """A table in which only the layers of which `reads` is true read their entries."""

    def attend(
        query_BTHK: Tensor, window_BSK: Tensor, entries_BCK: Tensor, sees: Visibility, sinks_H: Tensor
    ) -> Tensor:
        if not reads(sees):
            entries_BCK, sees = entries_BCK[:, :0], sees._replace(n_entries=0, picks_BTP=None)
        return ops.attend(query_BTHK, window_BSK, entries_BCK, sees, sinks_H)

    return ops._replace(attend=attend, top_entries=newest_entries)
