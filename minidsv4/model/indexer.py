"""The lightning indexer: scores every compressed entry cheaply and keeps the best k for each query.

B batch, T queries, U index heads, Z index width, C entries, P picked entries. Report section 2.3.1, equations
(13)-(17). Released names: `indexer.{wq_b, weights_proj}`, `indexer.compressor.*`. A top-k has no gradient, so the
forward runs without one; what teaches the indexer is a loss of its own (`losses.py`).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minidsv4.config import Config, LayerKind
from minidsv4.model.attend import BLOCK
from minidsv4.model.cache import CompressorMemory
from minidsv4.model.compressor import OverlapCompressor
from minidsv4.model.norm import precise
from minidsv4.model.rope import Angles, rotate

SCORES_AT_ONCE = 1 << 20  # chosen among at a time: no [T, C] matrix is ever whole
HEAD_SCORES_AT_ONCE = 1 << 17  # of which a score is the sum
GROUP = 4  # entries of which the best one speaks for all when there are many


def hadamard_signs(width: int) -> Tensor:
    """The Walsh-Hadamard matrix of 1 and -1, exact in every dtype; the identity where `width` is no power of two.

    On queries and keys alike, scaled to be orthonormal, it leaves every score as it is, and spreads outliers before
    both go to 4 bits. The released width is 128.
    """
    signs = torch.ones(1, 1)
    while len(signs) < width:
        signs = torch.cat([torch.cat([signs, signs], 1), torch.cat([signs, -signs], 1)], 0)
    return signs if len(signs) == width else torch.eye(width)


class Hadamard(nn.Module):
    """Turn the last axis by the orthonormal Walsh-Hadamard matrix."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("signs", hadamard_signs(width), persistent=False)
        self.scale = 1.0 if width & (width - 1) else width**-0.5

    def reset_constants(self) -> None:
        """Fill the matrix anew: it follows from the width, so no checkpoint holds it."""
        self.signs.copy_(hadamard_signs(len(self.signs)))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.signs * self.scale


class Indexer(nn.Module):
    """Score `I[t, s] = sum_u w[t, u] relu(q[t, u] . k[s])`, then the k best visible entries; eqs. (13)-(17)."""

    def __init__(self, config: Config):
        super().__init__()
        self.heads, self.width, self.n_picked = config.index_n_heads, config.index_head_dim, config.index_topk
        self.block = BLOCK  # queries that pick together
        self.wq_b = nn.Linear(config.q_lora_rank, self.heads * self.width, bias=False)
        self.weights_proj = nn.Linear(config.hidden_size, self.heads, bias=False)
        self.finish = Hadamard(self.width)
        ratio = config.ratio_of(LayerKind.CSA)
        sizes = (config.hidden_size, self.width, ratio, config.rms_norm_eps)
        self.compressor = OverlapCompressor(*sizes, finish=self.finish)

    @torch.no_grad()
    def forward(self, x_BTD: Tensor, latent_BTQ: Tensor, memory: CompressorMemory, angles: Angles, visible_T: Tensor):
        """The entries each query may read: `picks_BTP`, ascending; a pick beyond `visible_T` stands for none."""
        keys_BCZ = self.compressor(x_BTD, memory, angles)
        start = angles_start(memory, self.compressor.ratio, x_BTD.shape[1])
        query_BTUZ, weight_BTU = self.queries(x_BTD, latent_BTQ, angles.at(start, start + x_BTD.shape[1]))
        queries = [part.split(self.block, dim=1) for part in (query_BTUZ, weight_BTU)]
        visible, first = visible_T.split(self.block), angles.first_entry(self.compressor.ratio)
        firsts = [None] * len(visible) if first is None else first[:, :, None].split(self.block, dim=1)
        return torch.cat([self.pick(*q, keys_BCZ, *seen) for *q, seen in zip(*queries, zip(visible, firsts))], dim=1)

    def queries(self, x_BTD: Tensor, latent_BTQ: Tensor, turn_TR: Tensor) -> tuple[Tensor, Tensor]:
        """Index queries and head weights; eqs. (14), (15). The positive factor Z^-0.5 U^-0.5 sits in the weights."""
        query_BTUZ = self.wq_b(latent_BTQ).unflatten(-1, (self.heads, -1))
        weight_BTU = precise(self.weights_proj(x_BTD)) * (self.width * self.heads) ** -0.5
        return self.finish(rotate(query_BTUZ, turn_TR[:, None])), weight_BTU

    def pick(self, query_BTUZ: Tensor, weight_BTU: Tensor, keys_BCZ: Tensor, visible_T: Tensor, first=None) -> Tensor:
        """The best entries of one block of queries, chosen from a stretch of entries at a time; eqs. (16), (17)."""
        n_batch, n_tokens = weight_BTU.shape[:2]
        best, index = None, None
        stretch = max(self.n_picked, SCORES_AT_ONCE // (n_batch * n_tokens))
        n_reachable = max(int(visible_T[-1]), min(self.n_picked, keys_BCZ.shape[1]))  # as many picks in every block
        if n_reachable <= self.n_picked:
            return torch.arange(n_reachable, device=keys_BCZ.device).expand(n_batch, n_tokens, -1)
        for low in range(0, n_reachable, stretch):
            score = scores_in_parts(query_BTUZ, weight_BTU, keys_BCZ[:, low : min(low + stretch, n_reachable)])
            hide(score, visible_T - low, None if first is None else first - low)
            entry_C = torch.arange(low, low + score.shape[-1], device=score.device)
            if best is not None:
                score, entry_C = torch.cat([best, score], dim=-1), torch.cat([index, entry_C.expand_as(score)], dim=-1)
            place = stable_topk(score, self.n_picked)
            best, index = score.gather(-1, place), entry_C.expand_as(score).gather(-1, place)
        return index


def hide(score_BTS: Tensor, visible_T: Tensor, first: Tensor | None) -> None:
    """Set scores to -inf of entries from `visible_T` on, and of those before `first` [B, T, 1]."""
    known = 0 if first is not None else max(int(visible_T[0]), 0)  # up to here every query sees all
    if known >= score_BTS.shape[-1]:
        return
    entry_S = torch.arange(known, score_BTS.shape[-1], device=score_BTS.device)
    hidden = entry_S >= visible_T[:, None]
    hidden = hidden if first is None else hidden | (entry_S < first)
    score_BTS[..., known:] += torch.zeros_like(hidden, dtype=score_BTS.dtype).masked_fill_(hidden, -torch.inf)


def angles_start(memory: CompressorMemory, ratio: int, n_new: int) -> int:
    """Position of the first new token, told from what the compressor holds after it took them in."""
    return len(memory.entries) * ratio + len(memory.open) - n_new


def index_scores(query_BTUZ: Tensor, weight_BTU: Tensor, keys_BSZ: Tensor) -> Tensor:
    """`sum_u w[t, u] relu(q[t, u] . k[s])` [B, T, S] for a stretch of keys; eq. (16). float32 at least."""
    dots = torch.bmm(precise(query_BTUZ).flatten(1, 2), precise(keys_BSZ).mT)
    heads = dots.relu_().view(-1, weight_BTU.shape[-1], dots.shape[-1])
    return torch.bmm(weight_BTU.flatten(0, 1)[:, None], heads).view(*weight_BTU.shape[:2], -1)


def scores_in_parts(query_BTUZ: Tensor, weight_BTU: Tensor, keys_BSZ: Tensor) -> Tensor:
    """`index_scores` of so few keys at a time that the scores of the single heads stay in the processor's cache."""
    n_keys = max(1, min(HEAD_SCORES_AT_ONCE, SCORES_AT_ONCE) // weight_BTU.numel())
    parts = [index_scores(query_BTUZ, weight_BTU, keys) for keys in keys_BSZ.split(n_keys, dim=1)]
    return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]


def stable_topk(score: Tensor, k: int) -> Tensor:
    """Places of the k largest values of the last axis, ascending; among equal values the lower place wins.

    score    [..., S]; -inf may be placed anywhere, it is never read
    returns  [..., min(k, S)], integers
    """
    n_entries, k = score.shape[-1], min(k, score.shape[-1])
    if k == n_entries:
        return torch.arange(k, device=score.device).expand_as(score)
    if n_entries >= 3 * GROUP * k:
        candidates = _members(stable_topk(F.max_pool1d(score, GROUP), k), n_entries)
        return candidates.gather(-1, stable_topk(score.gather(-1, candidates), k))
    top = score.topk(k, dim=-1, sorted=False)
    edge = top.values.amin(-1, keepdim=True)
    taken = score >= edge
    places = taken.nonzero()[:, -1]
    if len(places) > top.indices.numel():  # of those at the edge some find no room
        above, at_edge = score > edge, score == edge
        room = k - above.sum(-1, keepdim=True)
        places = (above | (at_edge & (at_edge.cumsum(-1) <= room))).nonzero()[:, -1]
    return places.view_as(top.indices)


def _members(groups: Tensor, n_entries: int) -> Tensor:
    """Places in these groups of neighbours, and of the last few entries that fill no group; ascending.

    The best k groups by their largest values hold the best k values: each of those groups has one at least as good as
    any outside, and at a lower place if as good.
    """
    inside = torch.arange(GROUP, device=groups.device)
    rest = torch.arange(n_entries // GROUP * GROUP, n_entries, device=groups.device)
    members = (groups[..., None] * GROUP + inside).flatten(-2)
    return torch.cat([members, rest.expand(*groups.shape[:-1], -1)], dim=-1)
