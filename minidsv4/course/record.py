"""`record(model)`: every intermediate of a forward pass, caught from the one model there is.

B batch, T tokens, S tokens of the window, H heads, C compressed entries, P picked entries, N streams, E experts. What
is recorded are inputs and outputs of the model's own modules and operations; weights and scores are computed from them
by `ops`, in dense form with zeros where nothing is seen. For short texts: dense means T x T.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from minidsv4 import ops
from minidsv4.config import LayerKind
from minidsv4.model.block import Block
from minidsv4.model.compressor import Compressor
from minidsv4.model.hyper_connection import HyperConnection, Mix
from minidsv4.model.indexer import Indexer
from minidsv4.model.layer import Call, watch
from minidsv4.model.moe import Routed, Router
from minidsv4.visibility import Visibility

MODULES = (Block, Compressor, HyperConnection, Indexer, Router)


class LayerRecord:
    """What one layer did in one call. Each property is a tensor (or named tuple of tensors), detached."""

    def __init__(self, block: Block, calls: dict[str, list[Call]]):
        self.block = block
        self.calls = calls
        self.kind = block.attn.kind

    def _call(self, module: nn.Module, operation: str = "module") -> tuple[tuple, object]:
        """Inputs and output of the last call of this module, or of this operation by it."""
        for caller, inputs, output in reversed(self.calls[operation]):
            if caller is module:
                return inputs, output
        raise ValueError(f"record: this {self.kind.name} layer did not run that part in the recorded call")

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
        return self._call(self.block.attn, "attend")[1]

    @property
    def entries_BCK(self) -> Tensor:
        """All finished compressed entries (CSA and HCA layers)."""
        return self._call(self.block.attn.compressor)[1]

    @property
    def picks_BTP(self) -> Tensor:
        """What the indexer picked (CSA layers); a pick at or beyond `visible_T` stands for none."""
        return self._call(self.block.attn.indexer)[1]

    @property
    def sees(self) -> Visibility:
        """Who sees what in the layer's attention."""
        return self._call(self.block.attn, "attend")[0][3]

    @property
    def visible_T(self) -> Tensor:
        """How many compressed entries each query may see."""
        return self.sees.visible_counts()

    @torch.no_grad()
    def slot_weights(self, index: bool = False) -> Tensor:
        """What part of each entry every pooled slot gives [B, C, S, K]; of the indexer's keys if `index`."""
        attn = self.block.attn
        compressor = attn.indexer.compressor if index else attn.compressor
        (_, gates_BCSK, bias_SK), _ = self._call(compressor, "pool")
        return ops.slot_weights(gates_BCSK, bias_SK)

    @torch.no_grad()
    def index_scores(self) -> Tensor:
        """The indexer's score of every entry [B, T, C]; -inf where the query may not look."""
        (query_BTUZ, weight_BTU, keys_BCZ, sees, _), _ = self._call(self.block.attn.indexer, "top_entries")
        score_BTC = ops.index_scores(query_BTUZ, weight_BTU, keys_BCZ)
        return score_BTC.masked_fill(~sees.entry_map(), -torch.inf)

    @torch.no_grad()
    def weights(self) -> tuple[Tensor, Tensor]:
        """Weights over window tokens [B, T, H, S] and compressed entries [B, T, H, C]; the sink has the rest."""
        attended, _ = self._call(self.block.attn, "attend")
        n_window = self.sees.n_window
        weight_BTHS = ops.attention_weights(*attended)
        return weight_BTHS[..., :n_window], weight_BTHS[..., n_window:]


class Record:
    """`record[layer]` is what that layer did in the last call; `record.kinds` names the layers."""

    def __init__(self, model: nn.Module, calls: dict[str, list[Call]]):
        self.kinds: list[LayerKind] = [block.attn.kind for block in model.layers]
        self._model = model
        self._calls = calls

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, layer: int) -> LayerRecord:
        if not any(self._calls.values()):
            raise ValueError("record: nothing was recorded yet; call model(ids) inside the with block")
        return LayerRecord(self._model.layers[layer], self._calls)


@contextmanager
def record(model: nn.Module) -> Iterator[Record]:
    """`with record(model) as rec: model(ids)` keeps what the last call did in `rec[layer]`, without gradients."""
    with (
        torch.no_grad(),
        watch(model, *MODULES) as modules,
        watch(model, "attend") as attended,
        watch(model, "pool") as pooled,
        watch(model, "top_entries") as chosen,
    ):
        yield Record(model, {"module": modules, "attend": attended, "pool": pooled, "top_entries": chosen})
