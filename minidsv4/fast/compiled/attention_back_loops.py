"""The gradient of core attention in loops that numba compiles, query by query as its forward; eqs. (26), (27).

T tokens (queries), H heads, K head width, S rows that one query reads, C compressed entries, P picked entries, Z = 1.
The weights are computed anew. Entries are keys and values at once, so both gradients are one product.
"""

import numpy as np

from minidsv4.fast.compiled.attention_loops import (
    copy_far,
    copy_near,
    filled,
    put_vectors,
    put_weights,
    room,
    vectors_like,
)
from minidsv4.fast.compiled.jit import compiled
from minidsv4.fast.compiled.read_tiles import put_mixed, put_turned


@compiled
def attend_back_share(query_THK, oldest_T, newest_T, first_T, stop_T, picks_TP, grad_THK, d_query_THK, *rest):
    """Fill `d_query_THK`, and add to the gradients of all that these queries read.

    rest  d_window_ZSK, d_entries_ZCK, d_sinks_ZH: of this share of the queries alone; window_SK, entries_CK, sinks_H
    """
    d_window_ZSK, d_entries_ZCK, d_sinks_ZH, window_SK, entries_CK, sinks_H = rest
    (n_tokens, n_heads, width), number = query_THK.shape, query_THK.dtype.type
    scale, d_query_HK = number(width**-0.5), vectors_like(query_THK, 1)
    n_filled = len(d_query_HK)
    vector_HK = vectors_like(query_THK, 3)  # queries, gradients of outputs, queries
    read_SK, row_S = room(query_THK, (newest_T - oldest_T).max(), (stop_T - first_T).max(), picks_TP.shape[1])
    d_read_SK, share_HS = np.zeros_like(read_SK), np.zeros((2 * n_filled, len(read_SK)), query_THK.dtype)
    largest_ZH, total_ZH = np.zeros((1, n_filled), query_THK.dtype), np.ones((1, n_filled), query_THK.dtype)
    for t in range(n_tokens):
        n_near = copy_near(window_SK, oldest_T[t], newest_T[t], read_SK)
        n_read = copy_far(entries_CK, first_T[t], stop_T[t], picks_TP, t, n_near, read_SK, row_S)
        put_vectors(query_THK, t, scale, vector_HK, 0)
        put_vectors(grad_THK, t, number(1), vector_HK, n_filled)
        put_vectors(query_THK, t, scale, vector_HK, 2 * n_filled)
        put_weights(vector_HK, n_heads, read_SK, n_read, sinks_H, share_HS, largest_ZH, total_ZH, 0)
        for h in range(n_heads):
            d_sinks_ZH[0, h] -= d_softmax(share_HS, h, n_filled + h, n_read, total_ZH[0, h])
        put_mixed(d_query_HK, n_filled, share_HS, n_filled, read_SK, 0, n_read)
        put_turned(d_read_SK, filled(n_read), share_HS, 0, vector_HK, n_filled, 2 * n_filled)
        for h in range(n_heads):
            for k in range(width):
                d_query_THK[t, h, k] = d_query_HK[h, k] * scale
        add_read(d_read_SK, oldest_T[t], n_near, n_read, row_S, d_window_ZSK, d_entries_ZCK)


@compiled
def d_softmax(share_HS, of_weights, of_gradients, n_read, total):
    """Divide one row by its total, and turn another from the gradient of these weights to that of their scores.

    returns  the sink's gradient, with its sign turned
    """
    number = share_HS.dtype.type
    inverse, delta, shares = number(1) / total, number(0), number(0)
    for s in range(n_read):
        share_HS[of_weights, s] *= inverse
        delta += share_HS[of_weights, s] * share_HS[of_gradients, s]
        shares += share_HS[of_weights, s]
    for s in range(n_read):
        share_HS[of_gradients, s] = share_HS[of_weights, s] * (share_HS[of_gradients, s] - delta)
    return (number(1) - shares) * delta


@compiled
def add_read(d_read_SK, oldest, n_near, n_read, row_S, d_window_ZSK, d_entries_ZCK):
    """Add the gradients of what one query read to those of the window, from row `oldest` on, and of its entries."""
    for s in range(n_near):
        for k in range(d_window_ZSK.shape[2]):
            d_window_ZSK[0, oldest + s, k] += d_read_SK[s, k]
    for s in range(n_near, n_read):
        for k in range(d_entries_ZCK.shape[2]):
            d_entries_ZCK[0, row_S[s], k] += d_read_SK[s, k]
