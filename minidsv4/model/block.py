"""One block: attention and experts; an mHC site reads and writes the residual streams.

B batch, T tokens, N streams, D width. Report section 2, figure 2. Released names:
`layers.N.{attn, ffn, attn_norm, ffn_norm, hc_attn_*, hc_ffn_*}`.
"""

from torch import Tensor

from minidsv4.config import Config, LayerKind, Routing
from minidsv4.model.attention import ATTENTION
from minidsv4.model.cache import LayerMemory
from minidsv4.model.hyper_connection import HyperConnection
from minidsv4.model.layer import Layer, RMSNorm
from minidsv4.model.moe import MoE
from minidsv4.model.rope import Positions


class Block(Layer):
    """Attention and experts, each as `collapse -> norm -> sub-layer -> write`."""

    def __init__(self, config: Config, kind: LayerKind, routing: Routing):
        super().__init__()
        self.attn = ATTENTION[kind](config)
        self.ffn = MoE(config, routing)
        self.attn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.ffn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hc_attn = HyperConnection(config)
        self.hc_ffn = HyperConnection(config)

    def forward(
        self,
        streams_BTND: Tensor,
        ids_BT: Tensor,
        positions: Positions,
        memory: LayerMemory,
    ) -> Tensor:
        """The streams [B, T, N, D] after it.

        `memory` holds the past and takes these tokens in.
        """
        mix = self.hc_attn(streams_BTND)
        x_BTD = self.ops.collapse(streams_BTND, mix.pre_BTN)  # eq. (1): A X
        y_BTD = self.attn(self.attn_norm(x_BTD), positions, memory)
        # eq. (1)
        streams_BTND = self.ops.write(streams_BTND, y_BTD, mix.post_BTN, mix.carry_BTij)

        mix = self.hc_ffn(streams_BTND)
        x_BTD = self.ops.collapse(streams_BTND, mix.pre_BTN)
        y_BTD = self.ffn(self.ffn_norm(x_BTD), ids_BT)
        return self.ops.write(streams_BTND, y_BTD, mix.post_BTN, mix.carry_BTij)
