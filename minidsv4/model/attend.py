"""Core attention: one softmax over the window, the compressed entries and a sink, with keys that are the values.

B batch, T queries, S window entries, H heads, K head width, C compressed entries, P picked entries.
Report section 2.3, equations (19), (26) and (27). Released name: `attn_sink`.
Queries are taken in blocks, so that no score outside the band of a block is ever computed: O(T) time and memory.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minidsv4.model.norm import precise

BLOCK = 64  # queries at a time: small enough that scores and gathered entries stay in the processor's cache


class Near(NamedTuple):
    """Window entries: `entries_BSK` are the last S tokens up to the newest; a query sees `window` of them."""

    entries_BSK: Tensor
    window: int


class Far(NamedTuple):
    """Compressed entries: query t may see the first `visible_T[t]`, of these only `picks_BTP` where picks are given."""

    entries_BCK: Tensor
    visible_T: Tensor
    picks_BTP: Tensor | None


class Attend(nn.Module):
    """`softmax([q . near, q . far, sink]) @ [near, far, 0]` for every query and head; eqs. (19), (26), (27).

    query_BTHK  already scaled by K^-0.5
    sinks_H     logit of an entry whose value is zero
    returns     [B, T, H, K], dtype of the queries
    """

    def forward(self, query_BTHK: Tensor, near: Near, far: Far, sinks_H: Tensor) -> Tensor:
        blocks = []
        for start in range(0, query_BTHK.shape[1], BLOCK):
            query, near_BSK, seen, far_block = cut_block(query_BTHK, near, far, start)
            p_near, p_far = weights(query, near_BSK, seen, far_block, precise(sinks_H))
            blocks.append(_mix(p_near, near_BSK) + _mix(p_far, far_block.entries_BCK))
        return torch.cat(blocks, dim=1).to(query_BTHK.dtype)


def cut_block(query_BTHK: Tensor, near: Near, far: Far, start: int) -> tuple[Tensor, Tensor, Tensor, Far]:
    """One block of queries and what it can reach: its window band, who sees what in it, its entries."""
    n_queries, n_near = query_BTHK.shape[1], near.entries_BSK.shape[1]
    stop, past = min(start + BLOCK, n_queries), n_near - n_queries
    low = max(0, past + start - near.window + 1)
    place_S = torch.arange(low, past + stop, device=query_BTHK.device)
    age_TS = place_S[past + start - low :, None] - place_S  # tokens between query and source; negative is the future
    seen_TS = (age_TS >= 0) & (age_TS < near.window)
    near_BSK = precise(near.entries_BSK[:, low : past + stop])
    return precise(query_BTHK[:, start:stop]), near_BSK, seen_TS, _cut_far(far, start, stop)


def _cut_far(far: Far, start: int, stop: int) -> Far:
    visible = far.visible_T[start:stop]
    if far.picks_BTP is None:
        return Far(precise(far.entries_BCK[:, : int(visible[-1])]), visible, None)
    picks = far.picks_BTP[:, start:stop]
    gathered = [F.embedding(picks_TP, entries_CK) for picks_TP, entries_CK in zip(picks, far.entries_BCK)]
    return Far(precise(torch.stack(gathered) if len(gathered) > 1 else gathered[0][None]), visible, picks)


def weights(query_BTHK: Tensor, near_BSK: Tensor, seen_TS: Tensor, far: Far, sinks_H: Tensor) -> tuple[Tensor, Tensor]:
    """Attention weights of one block over its window band and its compressed entries; the sink takes the rest.

    far.entries_BCK  [B, C, K], or gathered [B, T, P, K] where picks are given
    returns          [B, T, H, S] and [B, T, H, C or P]; each row sums to 1 minus the sink's share
    """
    score_near, score_far = _scores(query_BTHK, near_BSK), _scores(query_BTHK, far.entries_BCK)
    if query_BTHK.shape[1] > 1:  # a single query sees the whole band and all the entries it was cut
        score_near = score_near.masked_fill(~seen_TS[:, None], -torch.inf)
    if far.picks_BTP is not None or far.visible_T[0] < score_far.shape[-1]:  # otherwise every query sees all of them
        index_CP = torch.arange(score_far.shape[-1], device=seen_TS.device) if far.picks_BTP is None else far.picks_BTP
        hidden = index_CP >= far.visible_T[:, None]  # [T, C] or [B, T, P]
        score_far = score_far.masked_fill(hidden.unsqueeze(-2), -torch.inf)
    sink = sinks_H[:, None].expand(*score_near.shape[:-1], 1)
    share = torch.cat([score_near, score_far, sink], dim=-1).softmax(dim=-1)  # eq. (27)
    n_near = near_BSK.shape[1]
    return share[..., :n_near], share[..., n_near:-1]


def _scores(query_BTHK: Tensor, entries: Tensor) -> Tensor:
    """Dot products with entries that all queries share [B, S, K], or that each query has of its own [B, T, P, K]."""
    if entries.ndim == 4:
        return query_BTHK @ entries.mT
    return (query_BTHK.flatten(1, 2) @ entries.mT).unflatten(1, query_BTHK.shape[1:3])


def _mix(share_BTHS: Tensor, entries: Tensor) -> Tensor:
    """Entries weighted by their share: the values are the keys."""
    if entries.ndim == 4:
        return share_BTHS @ entries
    return (share_BTHS.flatten(1, 2) @ entries).unflatten(1, share_BTHS.shape[1:3])
