"""A model's weights as the compiled pass reads them, where they lie, and where that is.

B batch, K entry width, V vocabulary.
"""

from itertools import chain
from typing import TYPE_CHECKING

import torch
from numpy import ndarray
from torch import Tensor, nn

from minidsv4.fast.compiled import tuples
from minidsv4.fast.compiled.numba_loops import DTYPES
from minidsv4.fast.released import check_released

if TYPE_CHECKING:  # the model stands above this room: it is handed in
    from minidsv4.model.block import Block
    from minidsv4.model.model import Model


class Places:
    """Where a model's tensors lie and which parts it has.

    Looking again follows no tensor and no part but to ask a tensor where it lies: between two steps of a model that
    fills the processor's cache all of them are far away, and each costs a wait for memory.
    """

    def __init__(self, model: "Model"):
        owners = [owner for m in model.modules() for owner in (m._modules, m._parameters, m._buffers)]
        self.owners = [owner for owner in owners if owner]
        self.owned = list(chain.from_iterable(map(dict.values, self.owners)))  # kept, so that no other has their id
        self.tensors = [x for x in self.owned if isinstance(x, Tensor)]
        self.ids, self.addresses = self.identities(), self.lying()

    def identities(self) -> list[int]:
        """The id of every tensor and part."""
        return list(map(id, chain.from_iterable(map(dict.values, self.owners))))

    def lying(self) -> list[int]:
        """The address of every tensor; the arrays of the loops keep the memory, so nothing new can lie there."""
        return list(map(Tensor.data_ptr, self.tensors))

    def changed(self) -> bool:
        """Whether a tensor lies elsewhere or a part is another one."""
        return self.identities() != self.ids or self.lying() != self.addresses


class Weights:
    """Reads a model's weights into the tuples that the loops take."""

    def __init__(self, model: "Model"):
        self.model, self.config = model, model.config
        self.empty = array(model.embed.weight)[:0, :0]  # a matrix that a layer does not have

    def sizes(self):
        """The config's numbers."""
        config = self.config
        attention = config.sliding_window, config.num_attention_heads, config.o_groups
        chosen = config.index_n_heads, config.index_topk, config.num_experts_per_tok
        streams = config.hc_sinkhorn_iters, config.rms_norm_eps, config.hc_eps
        scales = float(config.routed_scaling_factor), float(config.swiglu_limit)
        return tuples.Sizes(*attention, *chosen, *streams, *scales)

    def no_compressor(self):
        """The cache of a compressor that a layer does not have."""
        return tuples.CompressorCache(*[self.empty] * 4)

    def layer(self, block: "Block") -> tuples.Layer:
        """One block's."""
        attn = block.attn
        freqs_R = array(self.model.positions(0, 1)[attn.kind].frequencies_R)
        attended = tuples.Remembering(array(attn.attn_sink), freqs_R, *self.slots(attn), self.signs(attn))
        outputs = array(attn.wo_a.weight), array(attn.wo_b.weight)
        leaving = tuples.Leaving(
            *outputs, self.site(block.hc_ffn), array(block.ffn_norm.weight), self.experts(block.ffn)
        )
        return tuples.Layer(self.entering(block, freqs_R), attended, leaving)

    def entering(self, block: "Block", freqs_R: ndarray) -> tuples.Entering:
        """What one block makes of the streams, with empty places for the parts that its kind does not have."""
        attn, indexer = block.attn, getattr(block.attn, "indexer", None)
        shared = [array(getattr(attn, name).weight) for name in ("wq_a", "q_norm", "wq_b", "wkv", "kv_norm")]
        main, keys = compressors(attn)
        series = [self.matrices(part, "wkv", "wgate") for part in (main, keys)]
        index = [*self.matrices(indexer, "wq_b", "weights_proj"), self.signs(attn)]
        start = self.site(block.hc_attn), array(block.attn_norm.weight), freqs_R
        return tuples.Entering(*start, *shared, *series[0], *index, *series[1], keys.ratio if keys else 0)

    def matrices(self, part: nn.Module | None, *names: str) -> list[ndarray]:
        """Matrices of a part, empty where there is none."""
        return [self.empty if part is None else array(getattr(part, name).weight) for name in names]

    def signs(self, attn: nn.Module) -> ndarray:
        """The indexer's Hadamard matrix."""
        indexer = getattr(attn, "indexer", None)
        return self.empty if indexer is None else array(indexer.hadamard.signs)

    def slots(self, attn: nn.Module) -> list[ndarray]:
        """Position biases and norm of the compressor of entries, then of that of the indexer's keys."""
        found = []
        for part in compressors(attn):
            nothing = self.empty, self.empty.reshape(-1)
            found += nothing if part is None else (array(part.ape), array(part.norm.weight))
        return found

    def site(self, site: nn.Module) -> tuples.Site:
        """One hyper-connection's, or the head's."""
        return tuples.Site(array(site.fn), array(site.base), array(site.scale))

    def experts(self, ffn: nn.Module) -> tuples.Experts:
        """Router, shared and routed experts."""
        bias_E = getattr(ffn.gate, "bias", torch.empty(0, dtype=self.model.embed.weight.dtype))
        table_VA = getattr(ffn.gate, "tid2eid", torch.empty(0, 0, dtype=torch.int64))
        shared, routed = ffn.shared_experts, ffn.experts
        weights = ffn.gate.weight, bias_E, table_VA, shared.w1.weight, shared.w2.weight, shared.w3.weight
        return tuples.Experts(*(array(weight) for weight in (*weights, routed.w13, routed.w2)))


def compressors(attn: nn.Module) -> list:
    """The compressor of entries and that of the indexer's keys, None where the layer has none."""
    return [getattr(attn, "compressor", None), getattr(getattr(attn, "indexer", None), "compressor", None)]


def array(tensor: Tensor) -> ndarray:
    """The same memory, as NumPy sees it."""
    return tensor.detach().numpy()


def refuse_what_is_not_released(model: "Model", option: str) -> None:
    """Raise ValueError unless every part is what `Model` builds and runs, on the CPU, contiguous, of one precision."""
    check_released(model, option, "the loops", "run the model")
    dtype = model.embed.weight.dtype
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.device.type != "cpu":
            raise ValueError(f"{option}: {name} is on {tensor.device}; the loops run on the CPU: model.cpu() brings it")
        if tensor.is_floating_point() and (tensor.dtype not in DTYPES or tensor.dtype != dtype):
            raise ValueError(f"{option}: {name} is {tensor.dtype}; the loops know float32 or float64, one for all")
        if not tensor.is_contiguous():
            raise ValueError(f"{option}: {name} has strides {tensor.stride()}; its rows should follow each other")
