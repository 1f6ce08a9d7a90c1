"""Hybrid attention: a window, and compressed entries, all (HCA) or picked ones (CSA).

B batch, T tokens, S tokens of the window, D width, Q query rank, H heads, K head width,
G output groups, O rank per group, C compressed entries. Report section 2.3, equations
(13), (18)-(27). Released names: `attn.{wq_a, q_norm, wq_b, wkv, kv_norm, wo_a, wo_b,
attn_sink}`. One key-value head serves all query heads, and its values are its keys.
"""

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from minidsv4.config import Config, LayerKind
from minidsv4.model.cache import LayerMemory
from minidsv4.model.compressor import Compressor, OverlapCompressor
from minidsv4.model.indexer import Indexer
from minidsv4.model.layer import Layer, RMSNorm
from minidsv4.model.rope import Positions
from minidsv4.visibility import Visibility


class WindowAttention(Layer):
    """Sliding-window attention: a query reads the last W tokens, its own included."""

    kind = LayerKind.WINDOW
    float32 = ("attn_sink",)

    def __init__(self, config: Config):
        super().__init__()
        width = config.hidden_size
        inner = config.num_attention_heads * config.head_dim
        latent = config.o_groups * config.o_lora_rank
        self.window = config.sliding_window
        self.eps = config.rms_norm_eps
        self.heads = config.num_attention_heads
        self.groups = config.o_groups
        self.wq_a = nn.Linear(width, config.q_lora_rank, bias=False)
        self.q_norm = RMSNorm(config.q_lora_rank, self.eps)
        self.wq_b = nn.Linear(config.q_lora_rank, inner, bias=False)
        self.wkv = nn.Linear(width, config.head_dim, bias=False)
        self.kv_norm = RMSNorm(config.head_dim, self.eps)
        self.attn_sink = nn.Parameter(torch.zeros(self.heads))
        self.wo_a = nn.Linear(inner // self.groups, latent, bias=False)
        self.wo_b = nn.Linear(latent, width, bias=False)

    def forward(
        self,
        x_BTD: Tensor,
        positions: Positions,
        memory: LayerMemory,
    ) -> Tensor:
        """Attention output [B, T, D].

        `memory` holds the past and takes these tokens in.
        """
        turn_TR = positions.turns()
        turn_THR = rearrange(turn_TR, "t r -> t 1 r")  # the same for all heads
        latent_BTQ = self.q_norm(self.wq_a(x_BTD))  # eqs. (13), (24)
        # eqs. (18), (25)
        query = rearrange(self.wq_b(latent_BTQ), "b t (h k) -> b t h k", h=self.heads)
        query_BTHK = self.ops.rotate(self.ops.rms_norm(query, None, self.eps), turn_THR)
        entry_BTK = self.ops.rotate(self.kv_norm(self.wkv(x_BTD)), turn_TR)
        window_BSK = memory.window.append(self.stored(entry_BTK))
        entries_BCK, sees = self.compressed(x_BTD, latent_BTQ, positions, memory)
        sink_H = self.attn_sink
        # eqs. (19), (26), (27)
        out_BTHK = self.ops.attend(query_BTHK, window_BSK, entries_BCK, sees, sink_H)
        memory.window.keep(self.window)
        # values were rotated as keys
        turned_back = self.ops.rotate(out_BTHK, turn_THR.conj())
        return self.project(turned_back)

    def compressed(
        self,
        x_BTD: Tensor,
        latent_BTQ: Tensor,
        positions: Positions,
        memory: LayerMemory,
    ) -> tuple[Tensor, Visibility]:
        """Entries [B, C, K], here none, and who sees what of them and the window."""
        window_BSK = memory.window.contents()
        sees = Visibility(
            start=positions.start,
            n_queries=positions.n_tokens,
            window=self.window,
            n_window=window_BSK.shape[1],
            device=x_BTD.device,
            document_BT=positions.document_BT,
        )
        return window_BSK[:, :0], sees

    def stored(self, entry_BTK: Tensor) -> Tensor:
        """Window entries as the memory holds them: as they are."""
        return entry_BTK

    def project(self, out_BTHK: Tensor) -> Tensor:
        """Grouped output projection.

        Each of G groups of heads goes to O channels, and these go to D.
        """
        grouped = rearrange(out_BTHK, "b t (g h) k -> b t g (h k)", g=self.groups)
        weight_GOK = rearrange(self.wo_a.weight, "(g o) k -> g o k", g=self.groups)
        latent = einsum(grouped, weight_GOK, "b t g k, g o k -> b t g o")
        return self.wo_b(rearrange(latent, "b t g o -> b t (g o)"))


class HCAttention(WindowAttention):
    """Heavily compressed attention (HCA): every query also reads all entries.

    Each of these is made of M' tokens.
    """

    kind = LayerKind.HCA
    compressor_class = Compressor

    def __init__(self, config: Config):
        super().__init__(config)
        width = config.hidden_size
        ratio = config.ratio_of(self.kind)
        self.compressor = self.compressor_class(width, config.head_dim, ratio, self.eps)

    def compressed(
        self,
        x_BTD: Tensor,
        latent_BTQ: Tensor,
        positions: Positions,
        memory: LayerMemory,
    ) -> tuple[Tensor, Visibility]:
        """All finished entries [B, C, K]."""
        _, sees = super().compressed(x_BTD, latent_BTQ, positions, memory)
        entries_BCK = self.compressor(x_BTD, positions, memory.main)
        n_entries = entries_BCK.shape[1]
        sees = sees._replace(ratio=self.compressor.ratio, n_entries=n_entries)
        return entries_BCK, sees


class CSAttention(HCAttention):
    """Compressed sparse attention (CSA): every query also reads k entries.

    An indexer picks them.
    """

    kind = LayerKind.CSA
    compressor_class = OverlapCompressor

    def __init__(self, config: Config):
        super().__init__(config)
        self.indexer = Indexer(config)

    def compressed(
        self,
        x_BTD: Tensor,
        latent_BTQ: Tensor,
        positions: Positions,
        memory: LayerMemory,
    ) -> tuple[Tensor, Visibility]:
        """All finished entries [B, C, K]; each query sees those picked for it."""
        entries_BCK, sees = super().compressed(x_BTD, latent_BTQ, positions, memory)
        picks_BTP = self.indexer(x_BTD, latent_BTQ, positions, memory.index, sees)
        return entries_BCK, sees._replace(picks_BTP=picks_BTP)


ATTENTION = {
    LayerKind.WINDOW: WindowAttention,
    LayerKind.CSA: CSAttention,
    LayerKind.HCA: HCAttention,
}
