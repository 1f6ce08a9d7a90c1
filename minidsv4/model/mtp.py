"""Multi-token prediction: one more block predicts the token after the next.

B batch, T tokens, N streams, D width. Report section 2.1, as in DeepSeek-V3 but on N
streams. Released names: `mtp.0.{e_proj, h_proj, enorm, hnorm, norm, hc_head_*}` and
those of a block. Embedding and head are the model's.
"""

from einops import rearrange
from torch import Tensor, nn

from minidsv4.config import Config, LayerKind, Routing
from minidsv4.model.block import Block
from minidsv4.model.cache import LayerMemory
from minidsv4.model.hyper_connection import HeadCollapse
from minidsv4.model.layer import RMSNorm
from minidsv4.model.rope import Positions


class MTP(Block):
    """`E_proj norm(next token) + H_proj norm(stream)` for each stream, then a block."""

    def __init__(self, config: Config):
        super().__init__(config, LayerKind.WINDOW, Routing.LEARNED)
        width = config.hidden_size
        self.e_proj = nn.Linear(width, width, bias=False)
        self.h_proj = nn.Linear(width, width, bias=False)
        self.enorm = RMSNorm(width, config.rms_norm_eps)
        self.hnorm = RMSNorm(width, config.rms_norm_eps)
        self.norm = RMSNorm(width, config.rms_norm_eps)
        self.hc_head = HeadCollapse(config)

    def draft(
        self,
        streams_BTND: Tensor,
        next_BTD: Tensor,
        ids_BT: Tensor,
        positions: Positions,
        memory: LayerMemory,
    ) -> Tensor:
        """The block's streams [B, T, N, D].

        Position i reads token i + 1 and predicts token i + 2.

        streams_BTND  the model's streams after its last block, not collapsed
        next_BTD      embeddings of the tokens one place later
        """
        next_BTND = rearrange(self.e_proj(self.enorm(next_BTD)), "b t d -> b t 1 d")
        mixed_BTND = next_BTND + self.h_proj(self.hnorm(streams_BTND))
        return self(mixed_BTND, ids_BT, positions, memory)
