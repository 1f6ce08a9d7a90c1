"""Core attention to many entries in loops that numba compiles, a strip at a time; eqs. (19), (26), (27).

T tokens (queries), H heads, K head width, C compressed entries, S entries of one strip. Of what a query has read it
keeps the largest score, and the sum of exp(score - largest) with and without the entries: no row of scores is whole.
"""

import math

import numpy as np

from minidsv4.fast.compiled.attention_loops import copy_near, filled, put_vectors, put_weights, vectors_like
from minidsv4.fast.compiled.attention_tiles import (
    HEADS,
    WIDTH,
    add_strip,
    any_higher,
    exponentiate,
    put_maxima,
    put_strip,
)
from minidsv4.fast.compiled.head_tiles import STRIP
from minidsv4.fast.compiled.jit import compiled
from minidsv4.fast.compiled.read_tiles import put_mixed

NUMBERS = 1 << 18  # of the sums of queries that pass over the entries together
HIDDEN = -1e30  # the score of an entry that a query does not see


@compiled
def attend_strips(query_THK, out_THK, oldest_T, newest_T, first_T, stop_T, _picks_TP, window_SK, entries_CK, sinks_H):
    """`attend_share` without picks, for many entries that many queries read."""
    size = max(HEADS, NUMBERS // query_THK[0].size)
    for low in range(0, len(query_THK), size):
        part = slice(low, low + size)
        near = (oldest_T[part], newest_T[part], window_SK)
        attend_part(query_THK[part], out_THK[part], near, first_T[part], stop_T[part], entries_CK, sinks_H)


@compiled
def attend_part(query_THK, out_THK, near, first_T, stop_T, entries_CK, sinks_H):
    """Fill `out_THK` for a few queries that pass over the entries together."""
    (n_tokens, n_heads, width), dtype = query_THK.shape, query_THK.dtype
    n_filled = (n_heads + HEADS - 1) // HEADS * HEADS
    scaled_THK = np.zeros((n_tokens, n_filled, width), dtype)
    scaled_THK[:, :n_heads] = query_THK * dtype.type(width**-0.5)
    mixed_THK = np.zeros((n_tokens, n_filled, (width + WIDTH - 1) // WIDTH * WIDTH), dtype)
    largest_TH, total_TH = np.zeros((n_tokens, n_filled), dtype), np.ones((n_tokens, n_filled), dtype)
    sums = (mixed_THK, largest_TH, total_TH)
    read_window(scaled_THK, sums, near, sinks_H)
    keys_KS, values_SK = np.zeros((width, STRIP), dtype), np.zeros((STRIP, mixed_THK.shape[2]), dtype)
    score_HS, top_H = np.zeros((HEADS, STRIP), dtype), np.zeros(HEADS, dtype)
    for low in range(first_T.min(), stop_T.max(), STRIP):
        lay_out(entries_CK[low : low + STRIP], keys_KS, values_SK)
        read_strip(scaled_THK, (keys_KS, values_SK), low, first_T, stop_T, sums, score_HS, top_H)
    for t in range(n_tokens):
        for h in range(n_heads):
            out_THK[t, h] = mixed_THK[t, h, :width] / total_TH[t, h]


@compiled
def read_strip(scaled_THK, strip, low, first_T, stop_T, sums, score_HS, top_H):
    """Add to the sums of every query what it sees of the strip whose entries begin at `low`.

    In one call for all: a call counts references to what it is given (see `attention_loops`).
    """
    (keys_KS, values_SK), (mixed_THK, largest_TH, total_TH) = strip, sums
    for t in range(len(scaled_THK)):
        first, stop = max(first_T[t] - low, 0), min(stop_T[t] - low, STRIP)
        if first >= stop:
            continue
        for h in range(0, scaled_THK.shape[1], HEADS):
            put_strip(scaled_THK, t, h, keys_KS, score_HS)
            if stop - first < STRIP:
                score_HS[:, :first] = HIDDEN
                score_HS[:, stop:] = HIDDEN
            if any_higher(score_HS, largest_TH, t, h):
                put_maxima(score_HS, top_H)
                raise_largest(top_H, largest_TH[t], total_TH[t], mixed_THK[t], h)
            exponentiate(score_HS, largest_TH, t, h, total_TH)
            add_strip(score_HS, values_SK, first, stop, mixed_THK, t, h)


@compiled
def read_window(scaled_THK, sums, near, sinks_H):
    """Begin every query's sums with the rows of the window that it sees, and with the sink."""
    (mixed_THK, largest_TH, total_TH), (oldest_T, newest_T, window_SK) = sums, near
    query_HK, mixed_HK = vectors_like(scaled_THK, 1), vectors_like(scaled_THK, 1)
    read_SK = np.zeros((filled((newest_T - oldest_T).max() + 1), query_HK.shape[1]), scaled_THK.dtype)
    weight_HS = np.zeros((len(query_HK), len(read_SK)), scaled_THK.dtype)
    for t in range(len(scaled_THK)):
        n_read = copy_near(window_SK, oldest_T[t], newest_T[t], read_SK)
        read_SK[n_read : filled(n_read)] = 0
        put_vectors(scaled_THK, t, scaled_THK.dtype.type(1), query_HK, 0)
        put_weights(query_HK, len(sinks_H), read_SK, n_read, sinks_H, weight_HS, largest_TH, total_TH, t)
        put_mixed(mixed_HK, len(mixed_HK), weight_HS, 0, read_SK, 0, n_read)
        for h in range(len(sinks_H)):
            mixed_THK[t, h] = mixed_HK[h]


@compiled
def raise_largest(top_H, largest_H, total_H, mixed_HK, first):
    """Where a new score is the largest of its head, the sums so far shrink to its measure."""
    for h in range(HEADS):
        if top_H[h] > largest_H[first + h]:
            shrink = mixed_HK.dtype.type(math.exp(largest_H[first + h] - top_H[h]))
            largest_H[first + h] = top_H[h]
            total_H[first + h] *= shrink
            mixed_HK[first + h] *= shrink


@compiled
def lay_out(entries_SK, keys_KS, values_SK):
    """A strip's entries as keys, turned, and as values, filled up; a strip that is not full keeps old ones behind."""
    for s in range(len(entries_SK)):
        for k in range(entries_SK.shape[1]):
            keys_KS[k, s] = entries_SK[s, k]
            values_SK[s, k] = entries_SK[s, k]
