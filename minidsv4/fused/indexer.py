"""`fuse_indexers`: every indexer of a model chooses in compiled loops, for prompts of any length.

B batch, T tokens, U index heads, Z index width, C compressed entries, P picked entries. See `picks.py` for what they
do; without a gradient and on the CPU, as decoding in `step.py`.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from minidsv4.fused.step import loops, refuse_what_is_not_the_model
from minidsv4.model.indexer import Indexer
from minidsv4.model.model import Model

QUERIES = 512  # that pass over the keys together: turning a tile of keys is then nothing beside scoring it


def fuse_indexers(model: Model) -> Model:
    """Have every indexer of `model` pick in the compiled loops from now on; returns the model.

    raises  ValueError: numba is missing, or the model is not on the CPU, in 16 bits, or holds parts of another make
    """
    refuse_what_is_not_the_model(model)
    pick_share = loops().pick_share
    for indexer in (module for module in model.modules() if isinstance(module, Indexer)):
        indexer.pick, indexer.block = FusedPick(indexer, pick_share), QUERIES
    return model


class FusedPick:
    """Takes the place of `Indexer.pick` and gives the same picks, but where scores differ by rounding only."""

    def __init__(self, indexer: Indexer, pick_share: Callable):
        self.n_picked, self.plain, self.pick_share = indexer.n_picked, indexer.pick, pick_share

    def __call__(self, query_BTUZ: Tensor, weight_BTU: Tensor, keys_BCZ: Tensor, visible_T: Tensor, first=None):
        """`picks_BTP`, ascending; a pick beyond `visible_T` stands for none. Packed documents go the plain way."""
        if first is not None or int(visible_T[-1]) <= self.n_picked:
            return self.plain(query_BTUZ, weight_BTU, keys_BCZ, visible_T, first)
        picks_BTP = torch.empty(*weight_BTU.shape[:2], self.n_picked, dtype=torch.int64)
        for query, weight, keys, picks in zip(query_BTUZ, weight_BTU, keys_BCZ, picks_BTP):
            per_token = [part.detach().numpy() for part in (query, weight, visible_T, picks)]
            with_threads(self.pick_share, per_token, keys.numpy())
        return picks_BTP


def with_threads(work: Callable, per_token: list[np.ndarray], keys_CZ: np.ndarray) -> None:
    """Call `work` on as many shares of the tokens as torch uses threads, at once; compiled loops run side by side."""
    n_shares = min(torch.get_num_threads(), len(per_token[0]))
    shares = zip(*(np.array_split(part, n_shares) for part in per_token))
    with ThreadPoolExecutor(n_shares) as pool:
        list(pool.map(lambda share: work(*share, keys_CZ), shares))
