"""The indexer's choice in parts: no [T, C] matrix of scores is ever whole.

B batch, T queries, U index heads, Z index width, C compressed entries, P picked entries, S entries of one part.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from minidsv4 import ops
from minidsv4.fast.attention import BLOCK
from minidsv4.ops import upcast
from minidsv4.visibility import Visibility

SCORES_AT_ONCE = 1 << 20  # chosen among at a time
HEAD_SCORES_AT_ONCE = 1 << 17  # of which a score is the sum: they stay in the processor's cache
GROUP = 4  # neighbours whose maximum decides whether they are looked at, when there are many


def top_entries(query_BTUZ: Tensor, weight_BTU: Tensor, keys_BCZ: Tensor, sees: Visibility, k: int) -> Tensor:
    """`ops.top_entries` in blocks of queries and stretches of entries, with a running choice: linear memory."""
    n_entries = keys_BCZ.shape[1]
    if n_entries <= k:
        return first_entries(n_entries, weight_BTU)
    picks = []
    for first in range(0, weight_BTU.shape[1], BLOCK):
        stop = min(first + BLOCK, weight_BTU.shape[1])
        queries = query_BTUZ[:, first:stop], weight_BTU[:, first:stop]
        picks.append(best_of_stretches(*queries, keys_BCZ, sees.part(first, stop), k))
    return torch.cat(picks, dim=1)


def first_entries(n: int, weight_BTU: Tensor) -> Tensor:
    """The entries 0 .. n - 1 for every query [B, T, n]."""
    return torch.arange(n, device=weight_BTU.device).expand(*weight_BTU.shape[:2], n)


def best_of_stretches(query_BTUZ: Tensor, weight_BTU: Tensor, keys_BCZ: Tensor, sees: Visibility, k: int) -> Tensor:
    """The picks of one block of queries: the best of a stretch of entries and of the best so far, again and again."""
    n_reach = sees.n_visible(sees.n_queries - 1)
    if n_reach <= k:
        return first_entries(k, weight_BTU)
    best, index = None, None
    stretch = max(k, SCORES_AT_ONCE // weight_BTU[:, :, 0].numel())
    for low in range(0, n_reach, stretch):
        score = scores_in_parts(query_BTUZ, weight_BTU, keys_BCZ[:, low : min(low + stretch, n_reach)])
        hide(score, sees, low)
        entry = torch.arange(low, low + score.shape[-1], device=score.device).expand_as(score)
        if best is not None:
            score, entry = torch.cat([best, score], dim=-1), torch.cat([index, entry], dim=-1)
        place = stable_topk(score, k)
        best, index = score.gather(-1, place), entry.gather(-1, place)
    return index


def hide(score_BTS: Tensor, sees: Visibility, low: int) -> None:
    """Set the scores to -inf of the entries `low, low + 1, ...` that a query may not read."""
    n_known = max(sees.n_visible(0) - low, 0) if sees.document_BT is None else 0  # which all queries may read
    if n_known >= score_BTS.shape[-1]:
        return
    entry = torch.arange(low + n_known, low + score_BTS.shape[-1], device=score_BTS.device)
    hidden = ~sees.visible(entry[None, None])
    score_BTS[..., n_known:] += torch.zeros_like(hidden, dtype=score_BTS.dtype).masked_fill_(hidden, -torch.inf)


def index_scores(query_BTUZ: Tensor, weight_BTU: Tensor, keys_BSZ: Tensor) -> Tensor:
    """`ops.index_scores` as two batched products, with the ReLU in place."""
    dots = torch.bmm(upcast(query_BTUZ).flatten(1, 2), upcast(keys_BSZ).mT)
    heads = dots.relu_().view(-1, weight_BTU.shape[-1], dots.shape[-1])
    return torch.bmm(upcast(weight_BTU).flatten(0, 1)[:, None], heads).view(*weight_BTU.shape[:2], -1)


def scores_in_parts(query_BTUZ: Tensor, weight_BTU: Tensor, keys_BSZ: Tensor) -> Tensor:
    """`index_scores` of so few keys at a time that the scores of the single heads stay in the processor's cache."""
    n_keys = max(1, min(HEAD_SCORES_AT_ONCE, SCORES_AT_ONCE) // weight_BTU.numel())
    parts = [index_scores(query_BTUZ, weight_BTU, keys) for keys in keys_BSZ.split(n_keys, dim=1)]
    return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]


def stable_topk(score: Tensor, k: int) -> Tensor:
    """`ops.stable_topk` without sorting: `torch.topk`, and a count of the ties at its edge.

    score    [..., S]; -inf may be placed anywhere, it is never read
    returns  [..., min(k, S)], integers
    """
    n_entries, k = score.shape[-1], min(k, score.shape[-1])
    if k == n_entries:
        return torch.arange(k, device=score.device).expand_as(score)
    if n_entries >= 3 * GROUP * k:
        candidates = members(stable_topk(F.max_pool1d(score, GROUP), k), n_entries)
        return candidates.gather(-1, stable_topk(score.gather(-1, candidates), k))
    top = score.topk(k, dim=-1, sorted=False)
    edge = top.values.amin(-1, keepdim=True)
    if edge.isnan().any():
        return ops.stable_topk(score, k)
    taken = score >= edge
    places = taken.nonzero()[:, -1]
    if len(places) > top.indices.numel():  # of those at the edge some find no room
        above, at_edge = score > edge, score == edge
        room = k - above.sum(-1, keepdim=True)
        places = (above | (at_edge & (at_edge.cumsum(-1) <= room))).nonzero()[:, -1]
    return places.view_as(top.indices)


def members(groups: Tensor, n_entries: int) -> Tensor:
    """Places in these groups of neighbours, and of the last few entries that fill no group; ascending.

    The best k groups by their largest values hold the best k values: each of those groups has one at least as good as
    any outside, and at a lower place if as good.
    """
    inside = torch.arange(GROUP, device=groups.device)
    rest = torch.arange(n_entries // GROUP * GROUP, n_entries, device=groups.device)
    inner = (groups[..., None] * GROUP + inside).flatten(-2)
    return torch.cat([inner, rest.expand(*groups.shape[:-1], -1)], dim=-1)
