"""Hybrid attention: a window in every layer, with compressed entries picked (CSA) or all of them (HCA) beside it.

B batch, T tokens, D width, Q query rank, H heads, K head width, G output groups, O rank per group. Report section
2.3, equations (13), (18)-(27). Released names: `attn.{wq_a, q_norm, wq_b, wkv, kv_norm, wo_a, wo_b, attn_sink}`.
"""

import torch
from torch import Tensor, nn

from minidsv4.config import Config, LayerKind
from minidsv4.model.attend import Attend, Far, Near
from minidsv4.model.cache import LayerMemory
from minidsv4.model.compressor import Compressor, OverlapCompressor
from minidsv4.model.indexer import Indexer
from minidsv4.model.norm import RMSNorm, unit_rms
from minidsv4.model.rope import Angles, rotate


class WindowAttention(nn.Module):
    """One key-value head whose values are its keys, over the last W tokens."""

    kind = LayerKind.WINDOW

    def __init__(self, config: Config):
        super().__init__()
        self.window, self.eps, self.heads = config.sliding_window, config.rms_norm_eps, config.num_attention_heads
        self.groups, self.scale = config.o_groups, config.head_dim**-0.5
        width, rank, inner = config.hidden_size, config.q_lora_rank, config.num_attention_heads * config.head_dim
        self.wq_a, self.q_norm = nn.Linear(width, rank, bias=False), RMSNorm(rank, self.eps)
        self.wq_b = nn.Linear(rank, inner, bias=False)
        self.wkv, self.kv_norm = nn.Linear(width, config.head_dim, bias=False), RMSNorm(config.head_dim, self.eps)
        self.wo_a = nn.Linear(inner // self.groups, self.groups * config.o_lora_rank, bias=False)
        self.wo_b = nn.Linear(self.groups * config.o_lora_rank, width, bias=False)
        self.attn_sink = nn.Parameter(torch.zeros(self.heads))
        self.attend, self.finish = Attend(), nn.Identity()  # finish: done to a window entry before it is remembered

    def forward(self, x_BTD: Tensor, start: int, memory: LayerMemory, angles: Angles) -> Tensor:
        """Attention output [B, T, D] of the tokens at positions `start ..`; `memory` takes them in."""
        turn_TR = angles.at(start, start + x_BTD.shape[1])
        latent_BTQ = self.q_norm(self.wq_a(x_BTD))  # eqs. (13), (24)
        query = self.wq_b(latent_BTQ).unflatten(-1, (self.heads, -1))  # eqs. (18), (25)
        query_BTHK = rotate(unit_rms(query, self.eps), turn_TR[:, None])
        entry_BTK = self.finish(rotate(self.kv_norm(self.wkv(x_BTD)), turn_TR))
        near_BSK = memory.window.append(entry_BTK)
        oldest = start + x_BTD.shape[1] - near_BSK.shape[1]
        near = Near(near_BSK, self.window, angles.begin_from(oldest))
        far = self.far(x_BTD, latent_BTQ, start, memory, angles)
        out_BTHK = self.attend(query_BTHK * self.scale, near, far, self.attn_sink)
        memory.window.keep(self.window)
        return self.project(rotate(out_BTHK, turn_TR[:, None].conj()))  # values carry their position: turn it back

    def far(self, x_BTD: Tensor, latent_BTQ: Tensor, start: int, memory: LayerMemory, angles: Angles) -> Far:
        """No compressed entries."""
        return Far(memory.window.view()[:, :0], visible_entries(x_BTD, start, ratio=1 << 62), None)

    def project(self, out_BTHK: Tensor) -> Tensor:
        """Heads in G groups, each to O channels, all of them to the model width."""
        weight_GOK = self.wo_a.weight.unflatten(0, (self.groups, -1))
        latent = torch.einsum("btgk,gok->btgo", out_BTHK.flatten(2).unflatten(2, (self.groups, -1)), weight_GOK)
        return self.wo_b(latent.flatten(2))


class HCAttention(WindowAttention):
    """Heavily compressed: every finished entry of M' tokens is read."""

    kind = LayerKind.HCA
    compressor_class = Compressor

    def __init__(self, config: Config):
        super().__init__(config)
        sizes = (config.hidden_size, config.head_dim, config.ratio_of(self.kind), config.rms_norm_eps)
        self.compressor = self.compressor_class(*sizes)

    def far(self, x_BTD: Tensor, latent_BTQ: Tensor, start: int, memory: LayerMemory, angles: Angles) -> Far:
        """All finished entries; query t sees those whose last token is at or before t."""
        entries_BCK = self.compressor(x_BTD, memory.main, angles)
        ratio = self.compressor.ratio
        return Far(entries_BCK, visible_entries(x_BTD, start, ratio), None, angles.first_entry(ratio))


class CSAttention(HCAttention):
    """Compressed sparse: overlapped entries of M tokens, of which the indexer picks the best k for each query."""

    kind = LayerKind.CSA
    compressor_class = OverlapCompressor

    def __init__(self, config: Config):
        super().__init__(config)
        self.indexer = Indexer(config)

    def far(self, x_BTD: Tensor, latent_BTQ: Tensor, start: int, memory: LayerMemory, angles: Angles) -> Far:
        """Of the finished entries those that the indexer picks, eq. (17)."""
        every = super().far(x_BTD, latent_BTQ, start, memory, angles)
        picks_BTP = self.indexer(x_BTD, latent_BTQ, memory.index, angles, every.visible_T)
        return every._replace(picks_BTP=picks_BTP) if picks_BTP.shape[2] < every.entries_BCK.shape[1] else every


def visible_entries(x_BTD: Tensor, start: int, ratio: int) -> Tensor:
    """How many compressed entries each query may see: `floor((t + 1) / M)`, so a window that ends at t is visible at t.

    The report prints `floor(t / M)`; the released code counts the query's own token, as here.
    """
    return torch.arange(start + 1, start + 1 + x_BTD.shape[1], device=x_BTD.device) // ratio


ATTENTION = {LayerKind.WINDOW: WindowAttention, LayerKind.CSA: CSAttention, LayerKind.HCA: HCAttention}
