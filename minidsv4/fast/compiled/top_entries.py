"""The indexer's choice in compiled loops, for prompts of any length.

B batch, T tokens, U index heads, Z index width, C compressed entries, P picked entries.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from minidsv4.fast import FAST
from minidsv4.fast.compiled.numba_loops import DTYPES, loops
from minidsv4.visibility import Visibility

QUERIES = 512  # that pass over the keys together: turning a tile of keys is then nothing beside scoring it


def top_entries(query_BTUZ: Tensor, weight_BTU: Tensor, keys_BCZ: Tensor, sees: Visibility, k: int) -> Tensor:
    """`ops.top_entries` in loops that score and compare in one go: `picks_BTP`, ascending.

    Packed documents, 16 bits and other devices than the CPU go the way of `FAST`.

    raises  ValueError: numba is missing
    """
    pick_share = loops().pick_share
    known = keys_BCZ.dtype in DTYPES and keys_BCZ.device.type == "cpu" and weight_BTU.dtype == keys_BCZ.dtype
    if not known or sees.document_BT is not None or keys_BCZ.shape[1] <= k:
        return FAST.top_entries(query_BTUZ, weight_BTU, keys_BCZ, sees, k)
    picks_BTP = torch.empty(*weight_BTU.shape[:2], k, dtype=torch.int64)
    visible_T = sees.visible_counts()
    for first in range(0, sees.n_queries, QUERIES):
        part = slice(first, first + QUERIES)
        for query, weight, keys, picks in zip(query_BTUZ, weight_BTU, keys_BCZ, picks_BTP):
            per_token = [x.detach().numpy() for x in (query[part], weight[part], visible_T[part], picks[part])]
            with_threads(pick_share, per_token, keys.detach().numpy())
    return picks_BTP


def with_threads(work: Callable, per_token: list[np.ndarray], keys_CZ: np.ndarray) -> None:
    """Call `work` on as many shares of the tokens as torch uses threads, at once; compiled loops run side by side."""
    n_shares = min(torch.get_num_threads(), len(per_token[0]))
    shares = zip(*(np.array_split(part, n_shares) for part in per_token))
    with ThreadPoolExecutor(n_shares) as pool:
        list(pool.map(lambda share: work(*share, keys_CZ), shares))
