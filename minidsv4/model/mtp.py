"""Multi-token prediction: one more block reads the streams and the next token, and predicts the one after.

B batch, T tokens, N streams, D width. Report section 2.1, as in DeepSeek-V3 but on four streams. Released names:
`mtp.0.{e_proj, h_proj, enorm, hnorm, norm, hc_head_*}` and those of a block. Embedding and head are the model's.
"""

from torch import Tensor, nn

from minidsv4.config import Config, LayerKind, Routing
from minidsv4.model.block import Block
from minidsv4.model.cache import LayerMemory
from minidsv4.model.hyper_connection import HeadCollapse
from minidsv4.model.norm import RMSNorm
from minidsv4.model.rope import Angles


class MTP(Block):
    """`E_proj norm(next token) + H_proj norm(stream)` for every stream, then a block (window, learned router)."""

    def __init__(self, config: Config):
        super().__init__(config, LayerKind.WINDOW, Routing.LEARNED)
        width = config.hidden_size
        self.e_proj, self.h_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.enorm, self.hnorm, self.norm = (RMSNorm(width, config.rms_norm_eps) for _ in range(3))
        self.hc_head = HeadCollapse(config)

    def forward(
        self, streams_BTND: Tensor, next_BTD: Tensor, ids_BT: Tensor, start: int, memory: LayerMemory, angles: Angles
    ):
        """The block's own streams [B, T, N, D]; position i knows token i + 1 and is to predict token i + 2.

        streams_BTND  the model's streams after its last block, not collapsed
        next_BTD      embeddings of the tokens one place later
        """
        mixed = self.e_proj(self.enorm(next_BTD))[:, :, None] + self.h_proj(self.hnorm(streams_BTND))
        return super().forward(mixed, ids_BT, start, memory, angles)
