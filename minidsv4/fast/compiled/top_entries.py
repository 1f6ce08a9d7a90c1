"""The indexer's choice in compiled loops, for prompts of any length.

B batch, T tokens, U index heads, Z index width, C compressed entries, P picked entries.
"""

import torch
from torch import Tensor

from minidsv4.fast import FAST
from minidsv4.fast.compiled.numba_loops import DTYPES, loops
from minidsv4.fast.compiled.threads import with_threads
from minidsv4.visibility import Visibility

QUERIES = 512  # that pass over the keys together: turning a tile of keys is then nothing beside scoring it


def top_entries(query_BTUZ: Tensor, weight_BTU: Tensor, keys_BCZ: Tensor, sees: Visibility, k: int) -> Tensor:
    """`ops.top_entries` in loops that score and compare in one go: `picks_BTP`, ascending.

    16 bits and other devices than the CPU go the way of `FAST`.

    raises  ValueError: numba is missing
    """
    pick_share = loops("top_entries_loops").pick_share
    known = keys_BCZ.dtype in DTYPES and keys_BCZ.device.type == "cpu" and weight_BTU.dtype == keys_BCZ.dtype
    if not known or keys_BCZ.shape[1] <= k:
        return FAST.top_entries(query_BTUZ, weight_BTU, keys_BCZ, sees, k)
    picks_BTP = torch.empty(*weight_BTU.shape[:2], k, dtype=torch.int64)
    first_BT = first_entries_seen(sees).expand(weight_BTU.shape[:2])
    stop_BT = sees.visible_counts().expand(weight_BTU.shape[:2])
    for first in range(0, sees.n_queries, QUERIES):
        part = slice(first, first + QUERIES)
        for *per_token, keys in zip(query_BTUZ, weight_BTU, first_BT, stop_BT, picks_BTP, keys_BCZ):
            shares = [x[part].detach().numpy() for x in per_token]
            with_threads(pick_share, shares, keys.detach().numpy())
    return picks_BTP


def first_entries_seen(sees: Visibility) -> Tensor:
    """The first entry of each query's document [1 or B, T]."""
    if sees.document_BT is None:
        return torch.zeros(1, sees.n_queries, dtype=torch.int64)
    return (sees.document_BT + sees.ratio - 1) // sees.ratio
