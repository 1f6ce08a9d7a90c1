"""Core attention in compiled loops, forwards; its gradient is that of `FAST`.

B batch, T queries, S tokens of the window, H heads, K head width, C compressed entries, P picked entries.
"""

import torch
from torch import Tensor

from minidsv4.fast import FAST
from minidsv4.fast.attention import Attend, without_idle_picks
from minidsv4.fast.compiled.numba_loops import DTYPES, loops
from minidsv4.fast.compiled.top_entries import first_entries_seen, with_threads
from minidsv4.visibility import Visibility

MOST_ENTRIES = 256  # that a query reads by itself; of more, many queries read a strip together
FEWEST_QUERIES = 4  # for which that pays; for fewer the products of FAST are as fast
FLOATS = {torch.float32: (torch.int32, 23, 127), torch.float64: (torch.int64, 52, 1023)}  # bits of fraction, bias


def attend(query_BTHK: Tensor, window_BSK: Tensor, entries_BCK: Tensor, sees: Visibility, sinks_H: Tensor) -> Tensor:
    """`ops.attend` query by query, picks read where they lie; many dense entries in strips that all queries share.

    No score leaves the processor's first cache. Few queries of many dense entries, 16 bits and other devices than the
    CPU go the way of `FAST`.

    raises  ValueError: numba is missing
    """
    sees, given = without_idle_picks(sees), (query_BTHK, window_BSK, entries_BCK, sinks_H)
    known = all(x.dtype == sinks_H.dtype and x.dtype in DTYPES and x.device.type == "cpu" for x in given)
    if not known or (reads_many(sees) and sees.n_queries < FEWEST_QUERIES):
        return FAST.attend(query_BTHK, window_BSK, entries_BCK, sees, sinks_H)
    return CompiledAttend.run(*given, sees)


def reads_many(sees: Visibility) -> bool:
    """Whether queries read so many entries that they had better read them together."""
    return sees.picks_BTP is None and sees.n_entries > MOST_ENTRIES


class CompiledAttend(Attend):
    """`attend`, its forward in loops."""

    @staticmethod
    def forward(ctx, query_BTHK, window_BSK, entries_BCK, sinks_H, sees: Visibility) -> Tensor:
        share = loops("dense_loops").attend_strips if reads_many(sees) else loops("attention_loops").attend_share
        out_BTHK = torch.empty(query_BTHK.shape, dtype=query_BTHK.dtype)
        integers, n_bits, bias = FLOATS[query_BTHK.dtype]
        kind = torch.empty(0, dtype=integers).numpy()
        per_token = [query_BTHK, out_BTHK, *reach(sees, len(query_BTHK))]
        for *tokens, window, entries in zip(*per_token, window_BSK, entries_BCK):
            window, entries, sinks = (x.detach().contiguous().numpy() for x in (window, entries, sinks_H))
            shares = [x.detach().contiguous().numpy() for x in tokens]
            with_threads(share, shares, window, (entries, sinks, kind, n_bits, bias))
        ctx.save_for_backward(query_BTHK, window_BSK, entries_BCK, sinks_H)
        ctx.sees = sees
        return out_BTHK


def reach(sees: Visibility, n_batch: int) -> list[Tensor]:
    """Of each query the oldest and newest row of the window, the first entry and the one after the last, its picks."""
    before = sees.start + sees.n_queries - sees.n_window  # the position of the window's first row
    newest_T = sees.positions() - before
    oldest_BT = (newest_T - sees.window + 1).clamp(min=0).expand(n_batch, -1)
    if sees.document_BT is not None:
        oldest_BT = oldest_BT.maximum(sees.document_BT - before)
    picks_BTP = sees.picks_BTP
    if picks_BTP is None:
        picks_BTP = newest_T.new_empty(n_batch, sees.n_queries, 0)
    every = oldest_BT, newest_T[None], first_entries_seen(sees), sees.visible_counts()[None]
    return [*(x.expand(n_batch, -1) for x in every), picks_BTP.expand(n_batch, -1, -1)]
