"""Core attention: one softmax over the window, the compressed entries and a sink, with keys that are the values.

B batch, T queries, S window entries, H heads, K head width, C compressed entries, P picked entries.
Report section 2.3, equations (19), (26) and (27). Released name: `attn_sink`.
Queries are taken in blocks, so that no score outside the band of a block is ever computed: O(T) time and memory.
Nothing of a block is kept for the gradient: it computes the weights anew, by the same function.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minidsv4.model.norm import precise

BLOCK = 64  # queries at a time: small enough that scores and gathered entries stay in the processor's cache
SCORES_AT_ONCE = 1 << 18  # of one head each: a long text takes fewer queries at a time, so that memory stays flat


class Near(NamedTuple):
    """Window entries: `entries_BSK` are the last S tokens up to the newest; a query sees `window` of them.

    first_BT  the place in S from which each query's document begins; None where all is one document
    """

    entries_BSK: Tensor
    window: int
    first_BT: Tensor | None = None


class Far(NamedTuple):
    """Compressed entries: query t may see the first `visible_T[t]`, of these only `picks_BTP` where picks are given.

    first_BT  the first entry of each query's document; None where all is one document
    """

    entries_BCK: Tensor
    visible_T: Tensor
    picks_BTP: Tensor | None
    first_BT: Tensor | None = None


class Attend(nn.Module):
    """`softmax([q . near, q . far, sink]) @ [near, far, 0]` for every query and head; eqs. (19), (26), (27).

    query_BTHK  already scaled by K^-0.5
    sinks_H     logit of an entry whose value is zero
    returns     [B, T, H, K], dtype of the queries
    """

    def forward(self, query_BTHK: Tensor, near: Near, far: Far, sinks_H: Tensor) -> Tensor:
        return BlockAttention.apply(query_BTHK, near.entries_BSK, far.entries_BCK, sinks_H, near, far)


class BlockAttention(torch.autograd.Function):
    """`Attend` block by block; `near` and `far` hold the two tensors of entries once more, with who sees what."""

    @staticmethod
    def forward(ctx, query_BTHK, near_BSK, far_BCK, sinks_H, near: Near, far: Far) -> Tensor:
        out_BTHK = torch.empty_like(query_BTHK)
        n_read = 1 + near.window + (far_BCK.shape[1] if far.picks_BTP is None else far.picks_BTP.shape[2])
        size = min(BLOCK, max(8, SCORES_AT_ONCE // (n_read * query_BTHK[:, 0, :, 0].numel())))
        for start in range(0, query_BTHK.shape[1], size):
            query, near_block, seen, far_block = cut_block(query_BTHK, near, far, start, size)
            p_near, p_far = weights(query, near_block, seen, far_block, precise(sinks_H))
            out_BTHK[:, start : start + size] = _mix(p_near, near_block, p_far, far_block.entries_BCK)
        ctx.save_for_backward(query_BTHK, near_BSK, far_BCK, sinks_H, out_BTHK)
        ctx.near, ctx.far = near._replace(entries_BSK=None), far._replace(entries_BCK=None)
        return out_BTHK

    @staticmethod
    def backward(ctx, grad_BTHK: Tensor):
        query_BTHK, near_BSK, far_BCK, sinks_H, out_BTHK = saved = ctx.saved_tensors
        near, far = ctx.near._replace(entries_BSK=near_BSK), ctx.far._replace(entries_BCK=far_BCK)
        d_query, d_near, d_far, d_sinks = (torch.zeros_like(precise(x)) for x in saved[:4])
        for start in range(0, query_BTHK.shape[1], BLOCK):
            query, near_block, seen, far_block = cut_block(query_BTHK, near, far, start)
            p_near, p_far = weights(query, near_block, seen, far_block, precise(sinks_H))
            grad, out = (precise(x[:, start : start + BLOCK]) for x in (grad_BTHK, out_BTHK))
            pull = (grad * out).sum(-1, keepdim=True)  # the mean of the weights' gradients, which softmax takes out
            d_score_near, d_near_block = _back(p_near, near_block, query, grad, pull)
            d_score_far, d_far_block = _back(p_far, far_block.entries_BCK, query, grad, pull)
            d_query[:, start : start + BLOCK] = _mix(d_score_near, near_block, d_score_far, far_block.entries_BCK)
            stop = near_BSK.shape[1] - query_BTHK.shape[1] + start + query.shape[1]
            d_near[:, stop - near_block.shape[1] : stop] += d_near_block
            _add_far(d_far, d_far_block, far_block.picks_BTP)
            left = 1 - p_near.sum(-1, keepdim=True) - p_far.sum(-1, keepdim=True)  # the sink's share
            d_sinks -= (left * pull).sum((0, 1, 3))
        return *(d.to(x.dtype) for d, x in zip((d_query, d_near, d_far, d_sinks), saved)), None, None


def cut_block(query_BTHK: Tensor, near: Near, far: Far, start: int, size=0) -> tuple[Tensor, Tensor, Tensor, Far]:
    """One block of queries and what it can reach: its window band, who sees what in it, its entries."""
    n_queries, n_near = query_BTHK.shape[1], near.entries_BSK.shape[1]
    stop, past = min(start + (size or BLOCK), n_queries), n_near - n_queries
    low = max(0, past + start - near.window + 1)
    seen = _band(stop - start, past + stop - low, near.window, query_BTHK.device)
    if near.first_BT is not None:
        place_S = torch.arange(low, past + stop, device=query_BTHK.device)
        seen = seen & (place_S >= near.first_BT[:, start:stop, None])
    parts = query_BTHK[:, start:stop], near.entries_BSK[:, low : past + stop]
    return *map(precise, parts), seen, _cut_far(far, start, stop)


@functools.lru_cache(maxsize=64)  # all blocks but the first and the last have the same
def _band(n_queries: int, n_near: int, window: int, device: torch.device) -> Tensor:
    """Which of `n_near` tokens, the last being the newest query's own, each query sees: [T, S]."""
    place_T, place_S = torch.arange(n_near - n_queries, n_near, device=device), torch.arange(n_near, device=device)
    age_TS = place_T[:, None] - place_S  # tokens between query and source; negative is the future
    return (age_TS >= 0) & (age_TS < window)


def _cut_far(far: Far, start: int, stop: int) -> Far:
    visible, first = far.visible_T[start:stop], None if far.first_BT is None else far.first_BT[:, start:stop]
    if far.picks_BTP is None:
        return Far(precise(far.entries_BCK[:, : int(visible[-1])]), visible, None, first)
    picks = far.picks_BTP[:, start:stop]
    gathered = [F.embedding(picks_TP, entries_CK) for picks_TP, entries_CK in zip(picks, far.entries_BCK)]
    return Far(precise(torch.stack(gathered) if len(gathered) > 1 else gathered[0][None]), visible, picks, first)


def weights(query_BTHK: Tensor, near_BSK: Tensor, seen: Tensor, far: Far, sinks_H: Tensor) -> tuple[Tensor, Tensor]:
    """Attention weights of one block over its window band and its compressed entries; the sink takes the rest.

    seen             who sees what in the band: [T, S], or [B, T, S] where documents differ
    far.entries_BCK  [B, C, K], or gathered [B, T, P, K] where picks are given
    returns          [B, T, H, S] and [B, T, H, C or P]; each row sums to 1 minus the sink's share
    """
    n_near, n_far = near_BSK.shape[1], far.entries_BCK.shape[-2]
    score = query_BTHK.new_empty(*query_BTHK.shape[:3], n_near + n_far + 1)
    score_near, score_far, score_sink = score.split((n_near, n_far, 1), dim=-1)
    _put_scores(score_near, query_BTHK, near_BSK)
    _put_scores(score_far, query_BTHK, far.entries_BCK)
    score_sink.copy_(sinks_H[:, None])
    if query_BTHK.shape[1] > 1 or seen.ndim == 3:  # a single query sees the whole band that it was cut
        _hide(score_near, ~seen)
    n_known = 0 if far.picks_BTP is not None or far.first_BT is not None else int(far.visible_T[0])
    if n_known < n_far:  # all queries see the entries before
        _hide(score_far[..., n_known:], _hidden(far, n_known, n_far))
    share = score.softmax(dim=-1)  # eq. (27)
    return share[..., :n_near], share[..., n_near:-1]


def _hidden(far: Far, low: int, high: int) -> Tensor:
    """Which picks, or entries `low .. high - 1`, each query of a block may not see: [T, C], or [B, T, P or C]."""
    index_CP = torch.arange(low, high, device=far.visible_T.device) if far.picks_BTP is None else far.picks_BTP
    hidden = index_CP >= far.visible_T[:, None]
    return hidden if far.first_BT is None else hidden | (index_CP < far.first_BT[:, :, None])


def _hide(score_BTHS: Tensor, hidden: Tensor) -> None:
    """Give the hidden of each query, in all heads, a weight of exactly 0; several times faster than filling them."""
    score_BTHS.add_(hidden.unsqueeze(-2), alpha=torch.finfo(score_BTHS.dtype).min)


def _put_scores(score_BTHS: Tensor, query_BTHK: Tensor, entries: Tensor) -> None:
    """Dot products with entries that all queries share [B, S, K], or that each query has of its own [B, T, P, K]."""
    if entries.ndim == 4:
        score_BTHS.copy_(query_BTHK @ entries.mT)
    else:
        torch.bmm(query_BTHK.flatten(1, 2), entries.mT, out=score_BTHS.flatten(1, 2))


def _mix(near_BTHS: Tensor, near_BSK: Tensor, far: Tensor, far_entries: Tensor) -> Tensor:
    """Entries weighted by their share, near and far ones: the values are the keys."""
    mixed = torch.bmm(near_BTHS.flatten(1, 2), near_BSK).view(*near_BTHS.shape[:3], -1)
    axes = (1, 2) if far_entries.ndim == 3 else (0, 1)
    flat = mixed.flatten(*axes)
    return torch.baddbmm(flat, far.flatten(*axes), far_entries.flatten(0, -3), out=flat).view_as(mixed)


def _back(share_BTHS: Tensor, entries: Tensor, query_BTHK: Tensor, grad_BTHK: Tensor, pull: Tensor):
    """Gradients of the scores and of the entries, which are keys and values at once."""
    d_score = torch.empty_like(share_BTHS)
    _put_scores(d_score, grad_BTHK, entries)
    d_score.sub_(pull).mul_(share_BTHS)
    axes = (1, 2) if entries.ndim == 3 else (0, 1)
    d_flat, share, query, grad = (x.flatten(*axes) for x in (d_score, share_BTHS, query_BTHK, grad_BTHK))
    d_entries = torch.bmm(d_flat.mT, query).baddbmm_(share.mT, grad)  # as keys, and as values
    return d_score, d_entries.view_as(entries)


def _add_far(d_far_BCK: Tensor, d_entries: Tensor, picks_BTP: Tensor | None) -> None:
    """Add the gradient of one block's entries to that of all entries."""
    if picks_BTP is None:
        d_far_BCK[:, : d_entries.shape[1]] += d_entries
        return
    for d_CK, d_TPK, picks_TP in zip(d_far_BCK, d_entries, picks_BTP):
        d_CK.index_add_(0, picks_TP.flatten(), d_TPK.flatten(0, 1))
