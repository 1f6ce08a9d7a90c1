"""Input checks of a model: token ids out of range, caches of another model.

B batch, T tokens.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minidsv4.config import Config
from minidsv4.model.cache import Cache

if TYPE_CHECKING:
    from minidsv4.model.model import Model


def check_ids(config: Config, ids_BT: Tensor) -> None:
    """Raise ValueError unless `ids_BT` is a batch of token ids of this config's vocabulary."""
    dtype = getattr(ids_BT, "dtype", type(ids_BT).__name__)
    if dtype not in (torch.int64, torch.int32):
        raise ValueError(f"ids: {dtype} cannot name tokens; give a tensor of integers")
    shape = tuple(ids_BT.shape)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"ids: shape {shape} is no batch of prompts; give [batch, tokens], at least one token")
    if ids_BT.device.type == "meta":
        return
    try:
        low, high = (int(end) for end in ids_BT.aminmax())
    except RuntimeError:  # under torch.func.vmap no number can be looked at
        return
    if low < 0 or high >= config.vocab_size:
        wrong = low if low < 0 else high
        raise ValueError(f"ids: {wrong} is no token id; vocab_size allows 0 .. {config.vocab_size - 1}")


def check_cache(model: "Model", ids_BT: Tensor, cache: Cache) -> None:
    """Raise ValueError unless `cache` is one that this model made for as many sequences."""
    if not isinstance(cache, Cache):
        raise ValueError(f"cache: {type(cache).__name__} is no cache; give what this model's new_cache() makes")
    if cache.batch_size != len(ids_BT):
        raise ValueError(
            f"cache: made for batch_size = {cache.batch_size}, not {len(ids_BT)}; make one for these sequences"
        )
    if (cache.config, cache.dtype) != (model.config, model.embed.weight.dtype):
        raise ValueError("cache: made for a model of another config or dtype; use this model's new_cache()")
    if cache.kinds != model.config.layer_types[: len(model.layers)]:
        raise ValueError("cache: its layers are of other kinds, as those for drafts; use this model's new_cache()")


def check_count(name: str, n: int, otherwise: str) -> int:
    """`n`, or ValueError, with what `otherwise` would happen, unless it is an integer from 1."""
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError(f"{name} = {n!r} {otherwise}; it counts tokens, an integer from 1")
    return n
