"""Core attention in compiled loops, forwards and backwards.

B batch, T queries, S tokens of the window, H heads, K head width, C compressed entries, P picked entries.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from minidsv4.fast import FAST
from minidsv4.fast.attention import Attend, without_idle_picks
from minidsv4.fast.compiled.numba_loops import DTYPES, loops
from minidsv4.fast.compiled.threads import with_threads
from minidsv4.fast.compiled.top_entries import first_entries_seen
from minidsv4.fast.function import first_derivative_only
from minidsv4.visibility import Visibility

MOST_ENTRIES = 256  # that a query reads by itself; of more, many queries read a strip together
FEWEST_QUERIES = 4  # for which that pays; for fewer the products of FAST are as fast


def attend(query_BTHK: Tensor, window_BSK: Tensor, entries_BCK: Tensor, sees: Visibility, sinks_H: Tensor) -> Tensor:
    """`ops.attend` query by query, picks read where they lie; many dense entries in strips that all queries share.

    No query's scores outlive it. Few queries of many dense entries, 16 bits and other devices than the
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
    """`attend` in loops, forwards and backwards; the gradient of entries read together is that of `FAST`."""

    @staticmethod
    def forward(ctx, *given) -> Tensor:
        *tensors, ctx.sees = given
        ctx.save_for_backward(*tensors)
        share = loops("dense_loops").attend_strips if reads_many(ctx.sees) else loops("attention_loops").attend_share
        out_BTHK = torch.empty(tensors[0].shape, dtype=tensors[0].dtype)
        for (query, reached, *read), out_THK in zip(sequences(tensors, ctx.sees), out_BTHK):
            with_threads(share, [query, out_THK.numpy(), *reached], *read)
        return out_BTHK

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad_BTHK: Tensor) -> tuple[Tensor | None, ...]:
        if reads_many(ctx.sees):
            return Attend.backward(ctx, grad_BTHK)
        back_share = loops("attention_back_loops").attend_back_share
        tensors = ctx.saved_tensors
        d_query_BTHK, *d_read = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in tensors)
        n_shares = min(torch.get_num_threads(), ctx.sees.n_queries)
        for b, (query, reached, *read) in enumerate(sequences(tensors, ctx.sees)):
            of_sequence = d_read[0][b], d_read[1][b], d_read[2]
            sums = [x.new_zeros(n_shares, *x.shape) for x in of_sequence]  # each share of the queries has its own
            per_share = [x.detach().contiguous().numpy() for x in (grad_BTHK[b], d_query_BTHK[b], *sums)]
            with_threads(back_share, [query, *reached, *per_share], *read)
            for whole, parts in zip(of_sequence, sums):
                whole += parts.sum(0)
        return d_query_BTHK, *d_read, None


def sequences(tensors: Sequence[Tensor], sees: Visibility) -> Iterator[tuple]:
    """Of each sequence, as arrays: queries, their `reach`, the window, the entries and the sinks."""
    query, window, entries, sinks = (x.detach().contiguous().numpy() for x in tensors)
    reached = [x.contiguous().numpy() for x in reach(sees, len(query))]
    for b in range(len(query)):
        yield query[b], [x[b] for x in reached], window[b], entries[b], sinks


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
