"""Servers that read a prompt in chunks and lose something between two of them: for a learner to find out what.

B batch, T tokens. What is lost is zeros from then on; everything else is as it should be, and so is every byte count.
"""

import torch
from torch import Tensor

from minidsv4.model.cache import Cache, LayerMemory, Series
from minidsv4.model.model import Model

PIECES = ("window", "CSA entries", "indexer keys", "HCA entries")


def pieces_of(layer: LayerMemory) -> dict[str, Series]:
    """What a layer's attention reads of the past, by name."""
    held = {"window": layer.window}
    if layer.main is not None:
        held[f"{layer.kind.name} entries"] = layer.main.entries
    if layer.index is not None:
        held["indexer keys"] = layer.index.entries
    return held


def pieces(cache: Cache) -> dict[str, Tensor]:
    """All that attention reads of the past, [rows, width] by name, such as "layer 0 window"; lower layers first."""
    return {
        f"layer {number} {name}": series.contents()[0].clone()
        for number, layer in enumerate(cache.layers)
        for name, series in pieces_of(layer).items()
    }


@torch.no_grad()
def read(model: Model, ids_BT: Tensor, chunk: int, loses: str | None = None) -> Cache:
    """The cache of a text that was read so many tokens at a time.

    loses  one of PIECES, which every layer forgets before the next chunk; None for a sound server
    """
    if loses is not None and loses not in PIECES:
        raise ValueError(f"read: loses = {loses!r} is no piece of a cache; it is one of {', '.join(PIECES)}")
    cache = model.new_cache()
    for ids in ids_BT.split(chunk, dim=1):
        for layer in cache.layers:
            for name, series in pieces_of(layer).items():
                if name == loses:
                    series.replace(torch.zeros_like(series.contents()))
        model(ids, cache=cache)
    return cache


def of_the_case(model: Model, ids_BT: Tensor, chunk: int) -> Cache:
    """The cache of the server that users complain about; what it loses is for the learner to find."""
    return read(model, ids_BT, chunk, PIECES[2])
