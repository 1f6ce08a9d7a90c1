"""`record(model)`: every intermediate of a forward pass, caught by hooks on the one model there is.

B batch, T tokens, S tokens attended to, H heads, C compressed entries, P picked entries, N streams, E experts. What is
recorded are inputs and outputs of the model's own modules; weights and scores are computed from them by the model's
own functions, in dense form with zeros where nothing is seen. For short texts: dense means T x T.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from minidsv4.config import LayerKind
from minidsv4.model.attend import BLOCK, Attend, cut_block, weights
from minidsv4.model.block import Block
from minidsv4.model.compressor import Compressor, Pool, slot_shares
from minidsv4.model.hyper_connection import HyperConnection, Mix
from minidsv4.model.indexer import Indexer, index_scores
from minidsv4.model.losses import watch
from minidsv4.model.moe import Routed, Router
from minidsv4.model.norm import precise

_WATCHED = (Attend, Block, Compressor, HyperConnection, Indexer, Pool, Router)


class LayerRecord:
    """What one layer did in one call. Each property is a tensor (or named tuple of tensors), detached."""

    def __init__(self, block: Block, calls: dict[torch.nn.Module, tuple[tuple, object]]):
        self.block, self.calls, self.kind = block, calls, block.attn.kind

    def _call(self, module: torch.nn.Module) -> tuple[tuple, object]:
        if module not in self.calls:
            raise ValueError(f"record: this {self.kind.name} layer did not run that part in the recorded call")
        return self.calls[module]

    @property
    def streams_BTND(self) -> Tensor:
        """The residual streams after the layer."""
        return self._call(self.block)[1]

    @property
    def mixes(self) -> tuple[Mix, Mix]:
        """The mHC coefficients of the attention site and of the expert site."""
        return self._call(self.block.hc_attn)[1], self._call(self.block.hc_ffn)[1]

    @property
    def routed(self) -> Routed:
        """Experts picked, their weights, the score of every expert."""
        return self._call(self.block.ffn.gate)[1]

    @property
    def attended_BTHK(self) -> Tensor:
        """The output of core attention, before it is turned back."""
        return self._call(self.block.attn.attend)[1]

    @property
    def entries_BCK(self) -> Tensor:
        """All finished compressed entries (CSA and HCA layers)."""
        return self._call(self.block.attn.compressor)[1]

    @property
    def picks_BTP(self) -> Tensor:
        """What the indexer picked (CSA layers); a pick at or beyond `visible_T` stands for none."""
        return self._call(self.block.attn.indexer)[1]

    @property
    def visible_T(self) -> Tensor:
        """How many compressed entries each query may see."""
        return self._call(self.block.attn.attend)[0][2].visible_T

    @torch.no_grad()
    def slot_shares(self, index: bool = False) -> Tensor:
        """What part of each entry every pooled slot gives [B, C, S, K]; of the indexer's keys if `index`."""
        attn = self.block.attn
        (_, gates_BCSK, bias_SK), _ = self._call((attn.indexer if index else attn).compressor.pool)
        return slot_shares(gates_BCSK, bias_SK)

    @torch.no_grad()
    def index_scores(self) -> Tensor:
        """The indexer's score of every entry [B, T, C]; -inf where the query may not look."""
        indexer = self.block.attn.indexer
        (x_BTD, latent_BTQ, _, angles, visible_T), _ = self._call(indexer)
        keys_BCZ = self._call(indexer.compressor)[1]
        stop = angles.first + len(angles.turn_TR)
        query_BTUZ, weight_BTU = indexer.queries(x_BTD, latent_BTQ, angles.at(stop - x_BTD.shape[1], stop))
        score_BTC = index_scores(query_BTUZ, weight_BTU, keys_BCZ)
        hidden = torch.arange(score_BTC.shape[2]) >= visible_T[:, None]
        return score_BTC.masked_fill(hidden, -torch.inf)

    @torch.no_grad()
    def weights(self) -> tuple[Tensor, Tensor]:
        """Weights over window tokens [B, T, H, S] and compressed entries [B, T, H, C]; the sink has the rest."""
        (query_BTHK, near, far, sinks_H), _ = self._call(self.block.attn.attend)
        n_batch, n_tokens, n_heads, _ = query_BTHK.shape
        near_BTHS = query_BTHK.new_zeros(n_batch, n_tokens, n_heads, near.entries_BSK.shape[1])
        far_BTHC = query_BTHK.new_zeros(n_batch, n_tokens, n_heads, far.entries_BCK.shape[1])
        past = near_BTHS.shape[3] - n_tokens
        for start in range(0, n_tokens, BLOCK):
            query, near_BSK, seen_TS, cut = cut_block(query_BTHK, near, far, start)
            p_near, p_far = weights(query, near_BSK, seen_TS, cut, precise(sinks_H))
            stop = start + query.shape[1]
            near_BTHS[:, start:stop, :, past + stop - near_BSK.shape[1] : past + stop] = p_near
            if cut.picks_BTP is None:
                far_BTHC[:, start:stop, :, : p_far.shape[3]] = p_far
            else:
                far_BTHC[:, start:stop].scatter_(3, cut.picks_BTP[:, :, None].expand_as(p_far), p_far)
        return near_BTHS, far_BTHC


class Record:
    """`record[layer]` is what that layer did in the last call; `record.kinds` names the layers."""

    def __init__(self, model: torch.nn.Module):
        self.kinds: list[LayerKind] = [block.attn.kind for block in model.layers]
        self._model, self._seen = model, []

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, layer: int) -> LayerRecord:
        calls = {module: (inputs, output) for module, inputs, output in self._seen}
        if not calls:
            raise ValueError("record: nothing was recorded yet; call model(ids) inside the with block")
        return LayerRecord(self._model.layers[layer], calls)


@contextmanager
def record(model: torch.nn.Module) -> Iterator[Record]:
    """`with record(model) as rec: model(ids)` keeps what the last call did in `rec[layer]`, without gradients."""
    recorded = Record(model)
    with torch.no_grad(), watch(model, *_WATCHED) as recorded._seen:
        yield recorded
