"""Core attention of a few queries in loops that numba compiles, a query at a time; eqs. (19), (26), (27).

T tokens (queries), H heads, K head width, S rows that one query reads, C compressed entries, P picked entries. The rows
that a query reads are copied to lie together; then all is products with them. Arrays are given whole, with the query's
number: numba counts the references to each array that is cut out, which takes as long as a product.
"""

import numpy as np

from minidsv4.fast.compiled.attention_tiles import HEADS, WIDTH
from minidsv4.fast.compiled.head_tiles import LANES
from minidsv4.fast.compiled.jit import compiled
from minidsv4.fast.compiled.read_tiles import put_dots, put_mixed, weigh

NOTHING = -1e30  # the score of a row that fills up to LANES: it gets no weight


@compiled
def attend_share(query_THK, out_THK, oldest_T, newest_T, first_T, stop_T, picks_TP, window_SK, entries_CK, sinks_H):
    """Fill `out_THK`: each query reads the window's rows oldest .. newest, and entries first .. stop - 1.

    picks_TP  of these entries it reads the picked; P = 0: all
    """
    n_heads, width, number = query_THK.shape[1], query_THK.shape[2], query_THK.dtype.type
    query_HK, mixed_HK = vectors_like(query_THK, 1), vectors_like(query_THK, 1)
    read_SK, row_S = room(query_THK, (newest_T - oldest_T).max(), (stop_T - first_T).max(), picks_TP.shape[1])
    weight_HS = np.zeros((len(query_HK), len(read_SK)), query_THK.dtype)
    largest_ZH, total_ZH = np.zeros((1, len(query_HK)), query_THK.dtype), np.ones((1, len(query_HK)), query_THK.dtype)
    for t in range(len(query_THK)):
        n_near = copy_near(window_SK, oldest_T[t], newest_T[t], read_SK)
        n_read = copy_far(entries_CK, first_T[t], stop_T[t], picks_TP, t, n_near, read_SK, row_S)
        put_vectors(query_THK, t, number(width**-0.5), query_HK, 0)
        put_weights(query_HK, n_heads, read_SK, n_read, sinks_H, weight_HS, largest_ZH, total_ZH, 0)
        put_mixed(mixed_HK, len(mixed_HK), weight_HS, 0, read_SK, 0, n_read)
        for h in range(n_heads):
            for k in range(width):
                out_THK[t, h, k] = mixed_HK[h, k] / total_ZH[0, h]


@compiled
def vectors_like(query_THK, n):
    """Zeros for n vectors of every head, the heads filled up to HEADS and their width to WIDTH."""
    n_heads = (query_THK.shape[1] + HEADS - 1) // HEADS * HEADS
    return np.zeros((n * n_heads, (query_THK.shape[2] + WIDTH - 1) // WIDTH * WIDTH), query_THK.dtype)


@compiled
def room(query_THK, n_near, n_far, n_picked):
    """Zeros for the rows that a query reads, and for the numbers of those that are entries; it picks none twice."""
    n_far = min(n_far, n_picked) if n_picked else n_far
    n_rows = filled(n_near + 1 + max(0, n_far))
    width = (query_THK.shape[2] + WIDTH - 1) // WIDTH * WIDTH
    return np.zeros((n_rows, width), query_THK.dtype), np.zeros(n_rows, np.int64)


@compiled
def filled(n):
    """The next multiple of LANES."""
    return (n + LANES - 1) // LANES * LANES


@compiled
def copy_near(window_SK, oldest, newest, read_SK):
    """Copy the rows oldest .. newest of the window to the front; how many they are."""
    for s in range(newest + 1 - oldest):
        for k in range(window_SK.shape[1]):
            read_SK[s, k] = window_SK[oldest + s, k]
    return newest + 1 - oldest


@compiled
def copy_far(entries_CK, first, stop, picks_TP, t, n, read_SK, row_S):
    """Copy the entries that query t reads behind the first n rows, then zeros up to LANES; how many rows there are."""
    n_picked = picks_TP.shape[1]
    for place in range(n_picked if n_picked else stop - first):
        entry = picks_TP[t, place] if n_picked else first + place
        if first <= entry < stop:
            row_S[n] = entry
            for k in range(entries_CK.shape[1]):
                read_SK[n, k] = entries_CK[entry, k]
            n += 1
    for s in range(n, filled(n)):
        for k in range(entries_CK.shape[1]):
            read_SK[s, k] = 0
    return n


@compiled
def put_vectors(from_THK, t, factor, to_HK, first):
    """Copy the vectors of all heads of query t, times a factor, to the rows from `first` on."""
    for h in range(from_THK.shape[1]):
        for k in range(from_THK.shape[2]):
            to_HK[first + h, k] = from_THK[t, h, k] * factor


@compiled
def put_weights(vector_HK, n_heads, read_SK, n_read, sinks_H, weight_HS, largest_TH, total_TH, t):
    """Fill `weight_HS` with dot products of vectors and rows; the first `n_heads`, of queries, become weights.

    A weight is `exp(score - largest)`, to be divided by the head's total, in which the sink counts. Largest and total
    are put down as `[t, h]`.
    """
    n_filled = filled(n_read)
    put_dots(vector_HK, len(weight_HS), read_SK, n_filled, weight_HS)
    for h in range(n_heads):
        for s in range(n_read, n_filled):
            weight_HS[h, s] = NOTHING
        weigh(weight_HS, h, n_filled, sinks_H[h], largest_TH, total_TH, t)
