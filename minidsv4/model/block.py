"""One block: attention and experts, each read from and written back to the residual streams by an mHC site.

B batch, T tokens, N streams, D width. Report section 2, figure 2. Released names: `layers.N.{attn, ffn, attn_norm,
ffn_norm, hc_attn_*, hc_ffn_*}`.
"""

from torch import Tensor, nn

from minidsv4.config import Config, LayerKind, Routing
from minidsv4.model.attention import ATTENTION
from minidsv4.model.cache import LayerMemory
from minidsv4.model.hyper_connection import HyperConnection, collapse, write
from minidsv4.model.moe import MoE
from minidsv4.model.norm import RMSNorm
from minidsv4.model.rope import Angles


class Block(nn.Module):
    """`streams -> read -> norm -> attention -> write -> read -> norm -> experts -> write -> streams`."""

    def __init__(self, config: Config, kind: LayerKind, routing: Routing):
        super().__init__()
        self.attn, self.ffn = ATTENTION[kind](config), MoE(config, routing)
        self.attn_norm, self.ffn_norm = (RMSNorm(config.hidden_size, config.rms_norm_eps) for _ in range(2))
        self.hc_attn, self.hc_ffn = HyperConnection(config), HyperConnection(config)

    def forward(self, streams_BTND: Tensor, ids_BT: Tensor, start: int, memory: LayerMemory, angles: Angles) -> Tensor:
        """The streams [B, T, N, D] after this block; positions begin at `start`, `memory` takes the tokens in."""
        mix = self.hc_attn(streams_BTND)
        x = self.attn_norm(collapse(streams_BTND, mix.pre_BTN))
        streams_BTND = write(streams_BTND, self.attn(x, start, memory, angles), mix)
        mix = self.hc_ffn(streams_BTND)
        x = self.ffn_norm(collapse(streams_BTND, mix.pre_BTN))
        return write(streams_BTND, self.ffn(x, ids_BT), mix)
