"""The lightning indexer: cheap scores of all entries; each query keeps the best k.

B batch, T queries, U index heads, Z index width, C entries, P picked entries. Report
section 2.3.1, equations (13)-(17). Released names: `indexer.{wq_b, weights_proj}`,
`indexer.compressor.*`. A top-k has no gradient, so the forward runs without one; what
teaches the indexer is a loss of its own, `ops.index_loss`.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from minidsv4.config import Config, LayerKind
from minidsv4.model.cache import CompressorMemory
from minidsv4.model.compressor import OverlapCompressor
from minidsv4.model.layer import Layer
from minidsv4.model.rope import Positions
from minidsv4.ops import upcast
from minidsv4.visibility import Visibility


def hadamard_signs(width: int) -> Tensor:
    """The Walsh-Hadamard matrix of 1 and -1.

    It is the identity where `width` is no power of two.
    """
    signs = torch.ones(1, 1)
    while len(signs) < width:
        above = torch.cat([signs, signs], dim=1)
        below = torch.cat([signs, -signs], dim=1)
        signs = torch.cat([above, below], dim=0)
    return signs if len(signs) == width else torch.eye(width)


class Hadamard(nn.Module):
    """The last axis times the orthonormal Walsh-Hadamard matrix.

    On queries and keys alike it leaves every score as it is, and spreads outliers
    before both go to 4 bits.
    """

    signs: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("signs", hadamard_signs(width), persistent=False)
        self.scale = 1.0 if width & (width - 1) else width**-0.5

    def reset_constants(self) -> None:
        """Fill the matrix anew: it follows from the width, and is in no checkpoint."""
        self.signs.copy_(hadamard_signs(len(self.signs)))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.signs * self.scale


class KeyCompressor(OverlapCompressor):
    """The indexer's keys: entries of width Z, stored times the Hadamard matrix."""

    def __init__(self, config: Config):
        width = config.index_head_dim
        ratio = config.ratio_of(LayerKind.CSA)
        super().__init__(config.hidden_size, width, ratio, config.rms_norm_eps)
        self.hadamard = Hadamard(width)

    def stored(self, entries_BCK: Tensor) -> Tensor:
        """Keys [B, C, Z] as the memory holds them."""
        return self.hadamard(entries_BCK)


class Indexer(Layer):
    """`I[t, c] = sum_u w[t, u] relu(q[t, u] . k[c])`, and its k best entries.

    Eqs. (13)-(17).
    """

    def __init__(self, config: Config):
        super().__init__()
        inner = config.index_n_heads * config.index_head_dim
        self.heads = config.index_n_heads
        self.n_picked = config.index_topk
        self.scale = inner**-0.5
        self.wq_b = nn.Linear(config.q_lora_rank, inner, bias=False)
        self.weights_proj = nn.Linear(config.hidden_size, self.heads, bias=False)
        self.hadamard = Hadamard(config.index_head_dim)
        self.compressor = KeyCompressor(config)

    @torch.no_grad()
    def forward(
        self,
        x_BTD: Tensor,
        latent_BTQ: Tensor,
        positions: Positions,
        memory: CompressorMemory,
        sees: Visibility,
    ) -> Tensor:
        """`picks_BTP`: the entries that each query is to read, ascending; eq. (17)."""
        keys_BCZ = self.compressor(x_BTD, positions, memory)
        query_BTUZ, weight_BTU = self.queries(x_BTD, latent_BTQ, positions)
        n_picked = self.n_picked
        return self.ops.top_entries(query_BTUZ, weight_BTU, keys_BCZ, sees, n_picked)

    def queries(
        self,
        x_BTD: Tensor,
        latent_BTQ: Tensor,
        positions: Positions,
    ) -> tuple[Tensor, Tensor]:
        """Index queries [B, T, U, Z], and the weights of their heads; eqs. (14), (15).

        The weights [B, T, U] come times (U Z)^-0.5.
        """
        query = self.wq_b(latent_BTQ)
        query_BTUZ = rearrange(query, "b t (u z) -> b t u z", u=self.heads)
        turn_TUR = rearrange(positions.turns(), "t r -> t 1 r")
        turned_BTUZ = self.ops.rotate(query_BTUZ, turn_TUR)
        # a folder in float16 holds these weights in a wider type
        x_BTD = x_BTD.to(self.weights_proj.weight.dtype)
        weight_BTU = upcast(self.weights_proj(x_BTD)) * self.scale
        return self.hadamard(turned_BTUZ), weight_BTU
