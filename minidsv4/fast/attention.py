"""Core attention and the indexer's loss in blocks of queries: O(T) time and memory.

B batch, T queries, S tokens of the window, H heads, K head width, C compressed entries, P picked entries. No score
outside the band of a block is ever computed, and nothing of a block is kept for the gradient: it computes the weights
anew, by the same function.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from minidsv4.fast.function import FastFunction, cached, first_derivative_only
from minidsv4.fast.products import linear
from minidsv4.ops import teacher, upcast
from minidsv4.visibility import Visibility

BLOCK = 64  # queries at a time: small enough that scores and gathered entries stay in the processor's cache
SCORES_AT_ONCE = 1 << 18  # of one head each: a long text takes fewer queries at a time, so that memory stays flat


def attend(query_BTHK: Tensor, window_BSK: Tensor, entries_BCK: Tensor, sees: Visibility, sinks_H: Tensor) -> Tensor:
    """`ops.attend` in blocks: 3 times as fast at 256 tokens, 16 times at 1,024, and in memory that grows with T."""
    return Attend.run(query_BTHK, window_BSK, entries_BCK, sinks_H, without_idle_picks(sees))


def without_idle_picks(sees: Visibility) -> Visibility:
    """The same without picks where they name every entry: reading all is then cheaper than gathering them."""
    if sees.picks_BTP is None or sees.picks_BTP.shape[2] < sees.n_entries:
        return sees
    return sees._replace(picks_BTP=None)


class QueryBlock(NamedTuple):
    """One block of queries, scaled, and what it can reach.

    far  compressed entries: [B, C, K], or [B, T, P, K] where each query has picks of its own
    """

    query_BTHK: Tensor
    near_BSK: Tensor
    far: Tensor
    sees: Visibility


class Attend(FastFunction):
    """`attend` block by block."""

    @staticmethod
    def forward(ctx, query_BTHK, window_BSK, entries_BCK, sinks_H, sees: Visibility) -> Tensor:
        out_BTHK = torch.empty_like(query_BTHK)
        n_read = 1 + sees.window + (sees.n_entries if sees.picks_BTP is None else sees.picks_BTP.shape[2])
        size = min(BLOCK, max(8, SCORES_AT_ONCE // (n_read * query_BTHK[:, 0, :, 0].numel())))
        for first in range(0, sees.n_queries, size):
            block = cut_block(query_BTHK, window_BSK, entries_BCK, sees, first, size)
            near, far = weights(block, upcast(sinks_H))
            out_BTHK[:, first : first + size] = mix(near, block.near_BSK, far, block.far)
        ctx.save_for_backward(query_BTHK, window_BSK, entries_BCK, sinks_H)
        ctx.sees = sees
        return out_BTHK

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad_BTHK: Tensor):
        query_BTHK, window_BSK, entries_BCK, sinks_H = saved = ctx.saved_tensors
        sees, scale = ctx.sees, query_BTHK.shape[-1] ** -0.5
        d_query, d_window, d_entries, d_sinks = (torch.zeros_like(upcast(x)) for x in saved)
        for first in range(0, sees.n_queries, BLOCK):
            block = cut_block(query_BTHK, window_BSK, entries_BCK, sees, first, BLOCK)
            near, far = weights(block, upcast(sinks_H))
            grad = upcast(grad_BTHK[:, first : first + BLOCK])
            near_pull, far_pull = pull(near, block.near_BSK, grad), pull(far, block.far, grad)
            delta = near_pull.sum(-1, keepdim=True) + far_pull.sum(-1, keepdim=True)  # softmax's row term
            d_near_score = near_pull.addcmul_(near, delta, value=-1)
            d_far_score = far_pull.addcmul_(far, delta, value=-1)
            d_near = back(near, d_near_score, block.near_BSK, block.query_BTHK, grad)
            d_far = back(far, d_far_score, block.far, block.query_BTHK, grad)
            d_block = mix(d_near_score, block.near_BSK, d_far_score, block.far)
            d_query[:, first : first + BLOCK] = d_block.mul_(scale)
            stop = window_BSK.shape[1] - sees.n_queries + first + block.sees.n_queries
            d_window[:, stop - block.sees.n_window : stop] += d_near
            add_entries(d_entries, d_far, block.sees.picks_BTP)
            sink_share = 1 - near.sum(-1, keepdim=True) - far.sum(-1, keepdim=True)
            d_sinks -= (sink_share * delta).sum((0, 1, 3))
        return *(d.to(x.dtype) for d, x in zip((d_query, d_window, d_entries, d_sinks), saved)), None


def cut_block(
    query_BTHK: Tensor, window_BSK: Tensor, entries_BCK: Tensor, sees: Visibility, first: int, size: int
) -> QueryBlock:
    """The queries `first .. first + size - 1`, the tokens in their reach, and their compressed entries."""
    stop = min(first + size, sees.n_queries)
    part = sees.part(first, stop)
    newest = window_BSK.shape[1] - (sees.n_queries - stop)
    near_BSK = upcast(window_BSK[:, newest - part.n_window : newest])
    query = upcast(query_BTHK[:, first:stop]) * query_BTHK.shape[-1] ** -0.5
    far, part = cut_entries(entries_BCK, part)
    return QueryBlock(query, near_BSK, far, part)


def cut_entries(entries_BCK: Tensor, part: Visibility) -> tuple[Tensor, Visibility]:
    """What a block reads of the entries: those that its newest query may see, or each query's picks, gathered."""
    if part.picks_BTP is None:
        part = part._replace(n_entries=part.n_visible(part.n_queries - 1))
        return upcast(entries_BCK[:, : part.n_entries]), part
    gathered = [F.embedding(picks_TP, entries_CK) for picks_TP, entries_CK in zip(part.picks_BTP, entries_BCK)]
    return upcast(torch.stack(gathered) if len(gathered) > 1 else gathered[0][None]), part


def weights(block: QueryBlock, sinks_H: Tensor) -> tuple[Tensor, Tensor]:
    """`ops.attention_weights` of one block: over its tokens [B, T, H, S] and its entries [B, T, H, C or P]."""
    query_BTHK, near_BSK, far, sees = block
    n_near, n_far = near_BSK.shape[1], far.shape[-2]
    score = query_BTHK.new_empty(*query_BTHK.shape[:3], n_near + n_far + 1)
    score_near, score_far, score_sink = score.split((n_near, n_far, 1), dim=-1)
    put_scores(score_near, query_BTHK, near_BSK)
    put_scores(score_far, query_BTHK, far)
    score_sink.copy_(sinks_H[:, None])
    one_document = sees.document_BT is None
    if sees.n_queries > 1 or not one_document:  # a single query sees all the tokens that it was cut
        hide(score_near, ~(band(sees) if one_document else sees.token_map()))
    n_known = sees.n_visible(0) if one_document and sees.picks_BTP is None else 0  # which all queries may read
    if n_known < n_far:
        hide(score_far[..., n_known:], ~reads(sees, n_known))
    share = score.softmax(dim=-1)  # eq. (27)
    return share[..., :n_near], share[..., n_near:-1]


def reads(sees: Visibility, low: int = 0) -> Tensor:
    """Whether each query reads its gathered picks [B, T, P], or the entries from `low` on [1 or B, T, C - low]."""
    if sees.picks_BTP is not None:
        return sees.visible(sees.picks_BTP)
    return sees.visible(torch.arange(low, sees.n_entries, device=sees.device)[None, None])


def band(sees: Visibility) -> Tensor:
    """`token_map` of a row of one document, kept from block to block: it depends on distances alone."""
    return _band(sees.n_queries, sees.window, sees.n_window, sees.device)


@cached
def _band(n_queries: int, window: int, n_window: int, device: torch.device) -> Tensor:
    return Visibility(0, n_queries, window, n_window, device).token_map()


def hide(score_BTHS: Tensor, hidden: Tensor) -> None:
    """Give the hidden of each query, in all heads, a weight of exactly 0; several times faster than filling them."""
    score_BTHS.add_(hidden.unsqueeze(-2), alpha=torch.finfo(score_BTHS.dtype).min)


def put_scores(score_BTHS: Tensor, query_BTHK: Tensor, entries: Tensor) -> None:
    """Dot products with entries that all queries share [B, S, K], or that each query has of its own [B, T, P, K]."""
    if entries.ndim == 4:
        score_BTHS.copy_(query_BTHK @ entries.mT)
    else:
        # not `linear`: oneDNN keeps 0.3 MB for every new number of entries
        torch.bmm(query_BTHK.flatten(1, 2), entries.mT, out=score_BTHS.flatten(1, 2))


def mix(near_BTHS: Tensor, near_BSK: Tensor, far: Tensor, far_entries: Tensor) -> Tensor:
    """Entries weighted by their share, near and far ones: the values are the keys."""
    parts = [linear(share_THS.flatten(0, 1), near_SK.T) for share_THS, near_SK in zip(near_BTHS, near_BSK)]
    mixed = torch.stack(parts).view(*near_BTHS.shape[:3], -1)
    axes = (1, 2) if far_entries.ndim == 3 else (0, 1)
    flat = mixed.flatten(*axes)
    return torch.baddbmm(flat, far.flatten(*axes), far_entries.flatten(0, -3), out=flat).view_as(mixed)


def pull(share_BTHS: Tensor, entries: Tensor, grad_BTHK: Tensor) -> Tensor:
    """Each share times its gradient: the gradient of the scores but for softmax's row term."""
    d_share = torch.empty_like(share_BTHS)
    put_scores(d_share, grad_BTHK, entries)
    return d_share.mul_(share_BTHS)


def back(share_BTHS: Tensor, d_score_BTHS: Tensor, entries: Tensor, query_BTHK: Tensor, grad_BTHK: Tensor) -> Tensor:
    """The gradient of the entries, which are keys and values at once."""
    axes = (1, 2) if entries.ndim == 3 else (0, 1)
    d_flat, share, query, grad = (x.flatten(*axes) for x in (d_score_BTHS, share_BTHS, query_BTHK, grad_BTHK))
    d_entries = torch.bmm(d_flat.mT, query).baddbmm_(share.mT, grad)  # as keys, and as values
    return d_entries.view_as(entries)


def add_entries(d_entries_BCK: Tensor, d_far: Tensor, picks_BTP: Tensor | None) -> None:
    """Add the gradient of one block's entries to that of all entries."""
    if picks_BTP is None:
        d_entries_BCK[:, : d_far.shape[1]] += d_far
        return
    for d_CK, d_TPK, picks_TP in zip(d_entries_BCK, d_far, picks_BTP):
        d_CK.index_add_(0, picks_TP.flatten(), d_TPK.flatten(0, 1))


def index_loss(attended: tuple, indexed: tuple) -> Tensor:
    """`ops.index_loss` in blocks of queries, over each query's picks alone."""
    query_BTHK, window_BSK, entries_BCK, sees, sinks_H = attended
    query_BTUZ, weight_BTU, keys_BCZ = indexed
    sees = without_idle_picks(sees)
    nats = upcast(weight_BTU).new_zeros(())
    n_reading = 0
    for first in range(0, sees.n_queries, BLOCK):
        with torch.no_grad():
            block = cut_block(query_BTHK, window_BSK, entries_BCK, sees, first, BLOCK)
            target = teacher(weights(block, upcast(sinks_H))[1])
        if target.shape[-1] == 0:
            continue
        part = slice(first, first + BLOCK)
        keys, _ = cut_entries(keys_BCZ, sees.part(first, first + block.sees.n_queries))
        read = reads(block.sees).expand_as(target)
        score = scores_of_read(query_BTUZ[:, part], weight_BTU[:, part], keys)
        score = score.masked_fill(~read, torch.finfo(score.dtype).min)
        nats = nats + F.kl_div(score.log_softmax(-1), target, reduction="sum")
        n_reading += int(read.any(-1).sum())
    return nats / max(n_reading, 1)


def scores_of_read(query_BTUZ: Tensor, weight_BTU: Tensor, keys: Tensor) -> Tensor:
    """Index scores [B, T, C or P] of keys that all queries share [B, C, Z], or of each query's own [B, T, P, Z]."""
    shared = keys.ndim == 3
    pattern = "btuz,bcz->btuc" if shared else "btuz,btcz->btuc"
    dots = torch.einsum(pattern, upcast(query_BTUZ), keys).relu()
    return torch.einsum("btu,btuc->btc", upcast(weight_BTU), dots)
