"""`FusedPass` and `FusedStep`: a model's pass in compiled loops, on the model's own weights and the callers' caches.

B batch, T tokens, D width, N streams, H heads, K entry width, S slots, V vocabulary. The new tokens of several
sequences lie end to end on one axis T for all that happens to a token by itself; attention with its memory runs
sequence by sequence. A token's logits are the same bits whatever stands beside it, wherever its prompt was cut: each
sum has one order, which nothing but the token's own text decides. What it is not: it runs on no GPU, gives no gradient,
and runs no hook of a module.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from minidsv4.config import LayerKind
from minidsv4.fast.compiled import tuples
from minidsv4.fast.compiled.numba_loops import loops
from minidsv4.fast.compiled.weights import Places, Weights, array, refuse_what_is_not_released

if TYPE_CHECKING:  # the model stands above this room: it is handed in
    from minidsv4.model.cache import Cache, CompressorMemory, LayerMemory, Series
    from minidsv4.model.model import Model

TOKENS = 256  # that pass together: their activations stay in the processor's second cache
Part = tuple[int, slice]  # which sequence, and which of its new tokens


class FusedPass:
    """`forward_each(ids, caches)` gives the logits of several sequences' next tokens; their caches take the ids in.

    The weights are read where the model keeps them: a change in place counts at once, and so does a tensor or a part
    put in another's place, which every pass looks for. Passes of both kinds, prefill and `restore` may follow each
    other in one cache. The first pass on a machine compiles; later ones, in any process, read what it left.

    option  what asks for it, as refusals name it
    raises  ValueError: numba is missing, or the model is not on the CPU, in 16 bits, or holds parts of another make
    """

    def __init__(self, model: "Model", option: str = "fused"):
        self.model, self.option = model, option
        self.rows, self.sequences, self.blocks = (
            loops(name, option) for name in ("row_loops", "sequence_loops", "block_loops")
        )
        self.prepare()

    def prepare(self) -> None:
        """Look at the weights where they lie: at the start, and again when any lies elsewhere."""
        refuse_what_is_not_released(self.model, self.option)
        self.places, weights = Places(self.model), Weights(self.model)
        self.sizes, self.nothing = weights.sizes(), weights.no_compressor()
        self.layers = [weights.layer(block) for block in self.model.layers]
        self.embed, self.head = array(self.model.embed.weight), array(self.model.head.weight)
        self.site, self.norm = weights.site(self.model.hc_head), array(self.model.norm.weight)

    def forward_each(self, ids: Sequence[Tensor], caches: Sequence["Cache"], last: int = 1) -> list[Tensor]:
        """Logits of the last tokens of each sequence, the same bits as alone.

        ids      new token ids of each sequence [T], any number from 1, in 0 .. V - 1
        caches   what came before in each; takes its tokens in. All stay as they were if anything fails
        last     how many logits of each sequence, from 1
        returns  [min(last, T), V] for each, dtype of the model
        raises   ValueError: no sequence, one without ids, ids out of range, a cache of another model, one that is
                 packed or given twice
        """
        self.check_each(ids, caches, last)
        with ExitStack() as stack:
            for cache in caches:
                stack.enter_context(cache.all_or_nothing())
            kept = [[] for _ in ids]
            for parts in passes([len(ids_T) for ids_T in ids], TOKENS):
                of_part = self.streams([(ids[b][new], caches[b]) for b, new in parts])
                for (b, new), streams_TND in zip(parts, of_part):
                    kept[b].append(streams_TND[max(0, len(ids[b]) - last - new.start) :].copy())
        ends = [np.concatenate(streams) for streams in kept]
        logits_TV = self.logits(np.concatenate(ends))
        return list(torch.from_numpy(logits_TV).split([len(streams_TND) for streams_TND in ends]))

    def streams(self, parts: list[tuple[Tensor, "Cache"]]) -> list[ndarray]:
        """The streams [T, N, D] after the last block, of each part; its cache takes its tokens in."""
        if len(parts) == 1:
            return [self.streams_of_one(*parts[0])]
        caches, token_T = [cache for _, cache in parts], np.concatenate([ids_T.long().numpy() for ids_T, _ in parts])
        stops = np.cumsum([len(ids_T) for ids_T, _ in parts]).tolist()
        spans = list(zip([0, *stops], stops))
        position_T = np.concatenate([c.n_tokens + np.arange(b - a) for c, (a, b) in zip(caches, spans)])
        streams_TND = self.embedded(token_T)
        for number, layer in enumerate(self.layers):
            flat, post_TN, carry_Tij = self.rows.enter(streams_TND, position_T, layer.enter, self.sizes)
            out_THK = np.empty_like(flat.query_THK)
            for cache, span in zip(caches, spans):
                memory = cache.layers[number]
                held = self.layer_cache(memory, span[1] - span[0])
                self.sequences.attend_sequence(out_THK, flat, *span, cache.n_tokens, layer.attend, held, self.sizes)
                self.forget(memory)
            self.rows.leave(streams_TND, out_THK, post_TN, carry_Tij, token_T, layer.leave, self.sizes)
        for cache, (start, stop) in zip(caches, spans):
            cache.n_tokens += stop - start
        return [streams_TND[start:stop] for start, stop in spans]

    def streams_of_one(self, ids_T: Tensor, cache: "Cache") -> ndarray:
        """The same of one sequence [T, N, D], with one call a block: the same functions, so the same bits."""
        token_T = ids_T.long().numpy()
        position_T = np.arange(cache.n_tokens, cache.n_tokens + len(token_T))
        streams_TND = self.embedded(token_T)
        # Python's work for all layers comes before the first block and after the last: the weights of a block push what
        # Python works on out of the processor's caches.
        held = [self.layer_cache(memory, len(token_T)) for memory in cache.layers]
        for layer, of_layer in zip(self.layers, held):
            self.blocks.block(streams_TND, position_T, token_T, layer, of_layer, self.sizes)
        for memory in cache.layers:
            self.forget(memory)
        cache.n_tokens += len(token_T)
        return streams_TND

    def embedded(self, token_T: ndarray) -> ndarray:
        """The streams [T, N, D] before the first block."""
        return np.repeat(self.embed[token_T][:, None], self.model.config.hc_mult, axis=1)

    def check_each(self, ids: Sequence[Tensor], caches: Sequence["Cache"], last: int) -> None:
        """Refuse, before anything is touched, what cannot be run."""
        if not len(ids) or len(ids) != len(caches) or len(set(map(id, caches))) < len(caches):
            raise ValueError(f"ids: {len(ids)} sequences and {len(caches)} caches; give each a cache of its own")
        if not isinstance(last, int) or last < 1:
            raise ValueError(f"last = {last!r} asks for no logits; give a whole number from 1")
        for ids_T, cache in zip(ids, caches):
            self.check_cache(ids_T[None], cache)
        self.look_again()

    def check_cache(self, ids_BT: Tensor, cache: "Cache") -> None:
        """Refuse ids and a cache that do not fit, and one that holds no numbers."""
        self.model.check(ids_BT, cache)
        if cache is None:
            raise ValueError("cache: the compiled pass continues a cache; give this model's new_cache()")
        if cache.precision != "model":
            held = f"cache: precision = {cache.precision!r} packs what it holds"
            raise ValueError(f"{held}, and the compiled pass reads numbers; run the model, or give it new_cache()")

    def look_again(self) -> None:
        """Read the weights where they lie now, if any lies elsewhere."""
        if self.places.changed():
            self.prepare()

    def logits(self, streams_TND: ndarray) -> ndarray:
        """What the vocabulary head says [T, V]."""
        return self.rows.logits(streams_TND, self.site, self.norm, self.head, self.sizes)

    def layer_cache(self, memory: "LayerMemory", n_new: int) -> tuples.LayerCache:
        """What one layer has cached of a sequence, as arrays, with room for what new tokens add."""
        memory.window.extend(n_new)
        compressors = [self.compressor_cache(part, memory.kind, n_new) for part in memory.compressors()]
        return tuples.LayerCache(rows(memory.window), *compressors, *[self.nothing] * (2 - len(compressors)))

    def compressor_cache(self, memory: "CompressorMemory", kind: LayerKind, n_new: int) -> tuples.CompressorCache:
        """What one compressor has cached, as arrays with room for new tokens and for what closes with them."""
        before_MK, ratio = rows(memory.previous), self.model.config.ratio_of(kind)
        after_MK = before_MK[:0]
        memory.open.extend(n_new)
        n_closed = len(memory.open) // ratio
        if n_closed:
            memory.entries.extend(n_closed)
        if n_closed and kind is LayerKind.CSA:
            memory.previous.drop(len(memory.previous))
            memory.previous.extend(ratio)
            after_MK = rows(memory.previous)
        return tuples.CompressorCache(rows(memory.open), before_MK, after_MK, rows(memory.entries))

    def forget(self, memory: "LayerMemory") -> None:
        """Drop what has left the window, and the raw rows of windows that closed."""
        memory.window.keep(self.model.config.sliding_window)
        ratio = self.model.config.ratio_of(memory.kind)
        for part in memory.compressors():
            if len(part.open) >= ratio:
                part.open.drop(len(part.open) // ratio * ratio)


class FusedStep(FusedPass):
    """`step(ids_BT, cache)` gives and does what `model(ids_BT, cache=cache)` does, for one token of one sequence.

    raises  ValueError as `FusedPass`
    """

    def __call__(self, ids_BT: Tensor, cache: "Cache") -> Tensor:
        """Logits for the token after this one.

        ids_BT   [1, 1], an integer in 0 .. V - 1
        cache    what came before; takes the token in, and stays as it was if anything fails
        returns  [1, 1, V], dtype of the model
        raises   ValueError: more than one token or sequence, ids out of range, a cache of another model, a packed cache
        """
        if getattr(ids_BT, "shape", None) != (1, 1):
            self.model.check(ids_BT, cache)
            raise ValueError(f"ids: shape {tuple(ids_BT.shape)} is more than one token; the fused step takes [1, 1]")
        self.check_cache(ids_BT, cache)
        self.look_again()
        with cache.all_or_nothing():
            streams_TND = self.streams_of_one(ids_BT[0], cache)
            return torch.from_numpy(self.logits(streams_TND))[None]

    def prefill(self, ids_BT: Tensor, cache: "Cache") -> Tensor:
        """Logits [1, V] at a prompt's end, which the cache takes in: what `model.prefill` gives, summed as by a step.

        raises  ValueError as a step, for several sequences
        """
        self.model.check(ids_BT, cache)
        return self.forward_each([*ids_BT], [cache])[0]


def passes(lengths: Sequence[int], most: int) -> Iterator[list[Part]]:
    """The new tokens of sequences of these lengths, dealt into passes of at most so many tokens."""
    parts: list[Part] = []
    room = most
    for sequence, length in enumerate(lengths):
        start = 0
        while start < length:
            stop = min(length, start + room)
            parts.append((sequence, slice(start, stop)))
            room -= stop - start
            start = stop
            if not room:
                yield parts
                parts, room = [], most
    if parts:
        yield parts


def rows(series: "Series") -> ndarray:
    """All that is remembered of the one sequence [S, K], the same memory."""
    return series.data.numpy()[0, series.low : series.high]
