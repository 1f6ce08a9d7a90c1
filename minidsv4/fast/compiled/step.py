"""`FusedStep`: a model's decoding step in compiled loops, on the model's own weights and the caller's own cache.

B batch, T tokens, D width, N streams, M tokens per entry, K entry width, S slots, V vocabulary; here B = T = 1. Eager
PyTorch spends the step of a small model on calling some hundreds of operations a layer; this is one call a layer. What
it is not: it takes no prompt, no second sequence and no GPU, gives no gradient, and runs no hook of a module.
"""

from itertools import chain
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor, nn

from minidsv4.config import LayerKind
from minidsv4.fast.compiled.numba_loops import DTYPES, loops
from minidsv4.fast.released import check_released

if TYPE_CHECKING:  # the model stands above this room: it is handed in
    from minidsv4.model.block import Block
    from minidsv4.model.cache import Cache, CompressorMemory, LayerMemory, Series
    from minidsv4.model.model import Model


class FusedStep:
    """`step(ids_BT, cache)` gives and does what `model(ids_BT, cache=cache)` does, for one token of one sequence.

    The weights are read where the model keeps them: a change in place counts at once, and so does a tensor or a part
    put in another's place, which every step looks for. Steps of both kinds, prefill and `restore` may follow each other
    in one cache. The first step on a machine compiles; later ones, in any process, read what it left.

    raises  ValueError: numba is missing, or the model is not on the CPU, in 16 bits, or holds parts of another make
    """

    def __init__(self, model: "Model"):
        self.model, self.kernels = model, loops()
        self.prepare()

    def prepare(self) -> None:
        """Look at the weights where they lie: at the start, and again when any lies elsewhere."""
        model, kernels = self.model, self.kernels
        refuse_what_is_not_released(model)
        self.places, weights = Places(model), Weights(model, kernels)
        self.sizes, self.nothing = weights.sizes(), weights.no_compressor()
        self.layers = [weights.layer(block) for block in model.layers]
        self.embed, self.head = array(model.embed.weight), array(model.head.weight)
        self.site, self.norm = weights.site(model.hc_head), array(model.norm.weight)

    def __call__(self, ids_BT: Tensor, cache: "Cache") -> Tensor:
        """Logits for the token after this one.

        ids_BT   [1, 1], an integer in 0 .. V - 1
        cache    what came before; takes the token in, and stays as it was if anything fails
        returns  [1, 1, V], dtype of the model
        raises   ValueError: more than one token or sequence, ids out of range, a cache of another model, a packed cache
        """
        self.check(ids_BT, cache)
        token, position = int(ids_BT), cache.n_tokens
        streams_ND = np.repeat(self.embed[token][None], self.model.config.hc_mult, axis=0)
        with cache.all_or_nothing():
            for layer, memory in zip(self.layers, cache.layers):
                self.kernels.block(streams_ND, token, position, layer, self.layer_cache(memory), self.sizes)
                self.forget(memory)
            cache.n_tokens += 1
        logits_V = self.kernels.logits(streams_ND, self.site, self.norm, self.head, self.sizes)
        return torch.from_numpy(logits_V)[None, None]

    def check(self, ids_BT: Tensor, cache: "Cache") -> None:
        """Refuse, before anything is touched, what cannot be run."""
        self.model.check(ids_BT, cache)
        if ids_BT.shape != (1, 1):
            raise ValueError(f"ids: shape {tuple(ids_BT.shape)} is more than one token; the fused step takes [1, 1]")
        if cache is None:
            raise ValueError("cache: the fused step continues a cache; give this model's new_cache()")
        if cache.precision != "model":
            held = f"cache: precision = {cache.precision!r} packs what it holds"
            raise ValueError(f"{held}, and the fused step reads numbers; run the model, or give it new_cache()")
        if self.places.changed():
            self.prepare()

    def layer_cache(self, memory: "LayerMemory"):
        """What one layer has cached, as arrays, with room for what this token adds."""
        memory.window.extend(1)
        compressors = [self.compressor_cache(part, memory.kind) for part in memory.compressors()]
        window_SK = rows(memory.window)[-self.model.config.sliding_window :]
        return self.kernels.LayerCache(window_SK, *compressors, *[self.nothing] * (2 - len(compressors)))

    def compressor_cache(self, memory: "CompressorMemory", kind: LayerKind):
        """What one compressor has cached, as arrays with room for this token and for what closes with it."""
        before_MK, ratio = rows(memory.previous), self.model.config.ratio_of(kind)
        after_MK = before_MK[:0]
        memory.open.extend(1)
        if len(memory.open) == ratio:
            memory.entries.extend(1)
            if kind is LayerKind.CSA:
                memory.previous.drop(len(memory.previous))
                memory.previous.extend(ratio)
                after_MK = rows(memory.previous)
        return self.kernels.CompressorCache(rows(memory.open), before_MK, after_MK, rows(memory.entries))

    def forget(self, memory: "LayerMemory") -> None:
        """Drop what has left the window, and the raw rows of a window that closed."""
        memory.window.keep(self.model.config.sliding_window)
        for part in memory.compressors():
            if len(part.open) == self.model.config.ratio_of(memory.kind):
                part.open.drop(len(part.open))


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

    def __init__(self, model: "Model", kernels: ModuleType):
        self.model, self.config, self.kernels = model, model.config, kernels
        self.empty = array(model.embed.weight)[:0, :0]  # a matrix that a layer does not have

    def sizes(self):
        """The config's numbers."""
        config = self.config
        return self.kernels.Sizes(
            *(config.num_attention_heads, config.o_groups, config.index_n_heads, config.index_topk),
            *(config.num_experts_per_tok, config.hc_sinkhorn_iters, config.rms_norm_eps, config.hc_eps),
            *(float(config.routed_scaling_factor), float(config.swiglu_limit)),
        )

    def no_compressor(self):
        """The cache of a compressor that a layer does not have."""
        return self.kernels.CompressorCache(*[self.empty] * 4)

    def layer(self, block: "Block"):
        """One block's."""
        sites = self.site(block.hc_attn), self.site(block.hc_ffn)
        norms = array(block.attn_norm.weight), array(block.ffn_norm.weight)
        return self.kernels.Layer(*sites, *norms, self.attention(block.attn), self.experts(block.ffn))

    def site(self, site: nn.Module):
        """One hyper-connection's, or the head's."""
        return self.kernels.Site(array(site.fn), array(site.base), array(site.scale))

    def attention(self, attn: nn.Module):
        """One attention layer's, with empty places for the parts that its kind does not have."""
        names = ("wq_a", "q_norm", "wq_b", "wkv", "kv_norm", "wo_a", "wo_b")
        shared = [array(getattr(attn, name).weight) for name in names]
        freqs_R = array(self.model.positions(0, 1)[attn.kind].frequencies_R)
        indexer = getattr(attn, "indexer", None)
        index = [self.empty] * 3
        if indexer is not None:
            index = [array(part) for part in (indexer.wq_b.weight, indexer.weights_proj.weight, indexer.hadamard.signs)]
        compressors = getattr(attn, "compressor", None), getattr(indexer, "compressor", None)
        main, keys = (self.compressor(part) for part in compressors)
        return self.kernels.Attention(*shared, array(attn.attn_sink), freqs_R, main, *index, keys)

    def compressor(self, part: nn.Module | None):
        """One compressor's."""
        if part is None:
            return self.kernels.Compressor(*[self.empty] * 3, self.empty.reshape(-1))
        weights = part.wkv.weight, part.wgate.weight, part.ape, part.norm.weight
        return self.kernels.Compressor(*(array(weight) for weight in weights))

    def experts(self, ffn: nn.Module):
        """Router, shared and routed experts."""
        bias_E = getattr(ffn.gate, "bias", torch.empty(0, dtype=self.model.embed.weight.dtype))
        table_VA = getattr(ffn.gate, "tid2eid", torch.empty(0, 0, dtype=torch.int64))
        shared, routed = ffn.shared_experts, ffn.experts
        weights = ffn.gate.weight, bias_E, table_VA, shared.w1.weight, shared.w2.weight, shared.w3.weight
        return self.kernels.Experts(*(array(weight) for weight in (*weights, routed.w13, routed.w2)))


def array(tensor: Tensor) -> ndarray:
    """The same memory, as NumPy sees it."""
    return tensor.detach().numpy()


def rows(series: "Series") -> ndarray:
    """All that is remembered of the one sequence [S, K], the same memory."""
    return series.data.numpy()[0, series.low : series.high]


def refuse_what_is_not_released(model: "Model") -> None:
    """Raise ValueError unless every part is what `Model` builds and runs, on the CPU, contiguous, of one precision."""
    check_released(model, "fused", "the loops", "run the model")
    dtype = model.embed.weight.dtype
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.device.type != "cpu":
            raise ValueError(f"fused: {name} is on {tensor.device}; the loops run on the CPU: model.cpu() brings it")
        if tensor.is_floating_point() and (tensor.dtype not in DTYPES or tensor.dtype != dtype):
            raise ValueError(f"fused: {name} is {tensor.dtype}; the loops know float32 or float64, one for all")
        if not tensor.is_contiguous():
            raise ValueError(f"fused: {name} has strides {tensor.stride()}; its rows should follow each other")
