"""The lightning indexer: scores every compressed entry cheaply and keeps the best k for each query.

B batch, T queries, U index heads, Z index width, C entries, P picked entries. Report section 2.3.1, equations
(13)-(17). Released names: `indexer.{wq_b, weights_proj}`, `indexer.compressor.*`. A top-k has no gradient, so the
forward runs without one; what teaches the indexer is a loss of its own (`losses.py`).
"""

import torch
from torch import Tensor, nn

from minidsv4.config import Config, LayerKind
from minidsv4.model.attend import BLOCK
from minidsv4.model.cache import CompressorMemory
from minidsv4.model.compressor import OverlapCompressor
from minidsv4.model.norm import precise
from minidsv4.model.rope import Angles, rotate

SCORES_AT_ONCE = 1 << 20  # head scores held at a time: no [T, C] matrix is ever whole


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
        queries = [part.split(BLOCK, dim=1) for part in (query_BTUZ, weight_BTU)]
        visible, first = visible_T.split(BLOCK), angles.first_entry(self.compressor.ratio)
        firsts = [None] * len(visible) if first is None else first[:, :, None].split(BLOCK, dim=1)
        return torch.cat([self.pick(*q, keys_BCZ, *seen) for *q, seen in zip(*queries, zip(visible, firsts))], dim=1)

    def queries(self, x_BTD: Tensor, latent_BTQ: Tensor, turn_TR: Tensor) -> tuple[Tensor, Tensor]:
        """Index queries and head weights; eqs. (14), (15). The positive factor Z^-0.5 U^-0.5 sits in the weights."""
        query_BTUZ = self.wq_b(latent_BTQ).unflatten(-1, (self.heads, -1))
        weight_BTU = precise(self.weights_proj(x_BTD)) * (self.width * self.heads) ** -0.5
        return self.finish(rotate(query_BTUZ, turn_TR[:, None])), weight_BTU

    def pick(self, query_BTUZ: Tensor, weight_BTU: Tensor, keys_BCZ: Tensor, visible_T: Tensor, first=None) -> Tensor:
        """The best entries of one block of queries, scored a stretch of entries at a time; eqs. (16), (17)."""
        n_batch, n_tokens = weight_BTU.shape[:2]
        best, index = None, None
        stretch = max(self.n_picked, SCORES_AT_ONCE // (n_batch * n_tokens * self.heads))
        n_reachable = max(int(visible_T[-1]), min(self.n_picked, keys_BCZ.shape[1]))  # as many picks in every block
        if n_reachable <= self.n_picked:
            return torch.arange(n_reachable, device=keys_BCZ.device).expand(n_batch, n_tokens, -1)
        for low in range(0, n_reachable, stretch):
            keys = keys_BCZ[:, low : min(low + stretch, n_reachable)]
            entry_C = torch.arange(low, low + keys.shape[1], device=keys.device)
            score = index_scores(query_BTUZ, weight_BTU, keys)
            if low + keys.shape[1] > visible_T[0] or first is not None:  # elsewhere every query sees all of them
                hidden = entry_C >= visible_T[:, None]
                hidden = hidden if first is None else hidden | (entry_C < first)
                score += torch.zeros_like(hidden, dtype=score.dtype).masked_fill_(hidden, -torch.inf)
            if best is not None:
                score, entry_C = torch.cat([best, score], dim=-1), torch.cat([index, entry_C.expand_as(score)], dim=-1)
            place = stable_topk(score, self.n_picked)
            best, index = score.gather(-1, place), entry_C.expand_as(score).gather(-1, place)
        return index


def angles_start(memory: CompressorMemory, ratio: int, n_new: int) -> int:
    """Position of the first new token, told from what the compressor holds after it took them in."""
    return len(memory.entries) * ratio + len(memory.open) - n_new


def index_scores(query_BTUZ: Tensor, weight_BTU: Tensor, keys_BSZ: Tensor) -> Tensor:
    """`sum_u w[t, u] relu(q[t, u] . k[s])` [B, T, S] for a stretch of keys; eq. (16). float32 at least."""
    dots = precise(query_BTUZ).flatten(1, 2) @ precise(keys_BSZ).mT
    heads_BTUS = dots.relu_().unflatten(1, (-1, weight_BTU.shape[-1]))
    return (weight_BTU[:, :, None] @ heads_BTUS)[:, :, 0]


def stable_topk(score: Tensor, k: int) -> Tensor:
    """Places of the k largest values of the last axis, ascending; among equal values the lower place wins.

    score    [..., S]; -inf may be placed anywhere, it is never read
    returns  [..., min(k, S)], integers
    """
    n_entries, k = score.shape[-1], min(k, score.shape[-1])
    if k == n_entries:
        return torch.arange(k, device=score.device).expand_as(score)
    top = score.topk(k + 1, dim=-1)
    edge, next_best = top.values[..., k - 1 : k], top.values[..., k:]
    if not ((edge == next_best) & edge.isfinite()).any():
        return top.indices[..., :k].sort(-1).values
    above = score > edge
    room = k - above.sum(-1, keepdim=True)
    at_edge = score == edge
    taken = above | (at_edge & (at_edge.cumsum(-1) <= room))
    return taken.nonzero()[:, -1].view_as(top.indices[..., :k])
