"""Core attention to many entries in loops that numba compiles, a strip at a time; eqs. (19), (26), (27).

T tokens (queries), H heads, K head width, C compressed entries, S entries of one strip. Of what a query has read it
keeps the largest score, and the sum of exp(score - largest) with and without the entries: no row of scores is whole.
"""

import math

import numpy as np

from minidsv4.fast.compiled.attention_loops import NOTHING, add_rows, exponentials, list_rows, put_dots
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

NUMBERS = 1 << 18  # of the sums of queries that pass over the entries together
HIDDEN = -1e30  # the score of an entry that a query does not see


@compiled
def attend_strips(query_THK, out_THK, oldest_T, newest_T, first_T, stop_T, _picks_TP, window_SK, rest):
    """`attend_share` without picks, for many entries that many queries read."""
    size = max(HEADS, NUMBERS // query_THK[0].size)
    for low in range(0, len(query_THK), size):
        part = slice(low, low + size)
        near = (oldest_T[part], newest_T[part], window_SK)
        attend_part(query_THK[part], out_THK[part], near, first_T[part], stop_T[part], rest)


@compiled
def attend_part(query_THK, out_THK, near, first_T, stop_T, rest):
    """Fill `out_THK` for a few queries that pass over the entries together."""
    entries_CK, sinks_H = rest[0], rest[1]
    (n_tokens, n_heads, width), dtype = query_THK.shape, query_THK.dtype
    n_filled = (n_heads + HEADS - 1) // HEADS * HEADS
    scaled_THK = np.zeros((n_tokens, n_filled, width), dtype)
    scaled_THK[:, :n_heads] = query_THK * dtype.type(width**-0.5)
    mixed_THK = np.zeros((n_tokens, n_filled, (width + WIDTH - 1) // WIDTH * WIDTH), dtype)
    largest_TH, total_TH = np.zeros((n_tokens, n_filled), dtype), np.ones((n_tokens, n_filled), dtype)
    largest_TH[:, :n_heads] = sinks_H  # exp(sink - largest) = 1: the sink's value is zero
    sums = (mixed_THK, largest_TH, total_TH)
    read_window(scaled_THK, sums, near, rest)
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

    In one call for all: each array that a call is given is counted in and out, which takes as long as many products.
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
def read_window(scaled_THK, sums, near, rest):
    """Begin every query's sums with the rows of the window that it sees."""
    mixed_THK, largest_TH, total_TH = sums
    (oldest_T, newest_T, window_SK), (integers, n_bits, bias) = near, rest[2:]
    n_filled, width = scaled_THK.shape[1:]
    n_places = (newest_T - oldest_T).max() + HEADS
    row_S, whole_S = np.zeros(n_places, np.int64), np.zeros(n_places, integers.dtype)
    score_HS, nothing_P = np.zeros((n_filled, n_places), scaled_THK.dtype), np.zeros(0, np.int64)
    top_H = np.zeros(HEADS, scaled_THK.dtype)
    for t in range(len(scaled_THK)):
        n = list_rows(row_S, oldest_T[t], newest_T[t] + 1, nothing_P)
        put_dots(scaled_THK[t], window_SK, row_S, score_HS[:, :n], NOTHING)
        for h in range(n_filled):
            top_H[h % HEADS] = score_HS[h, :n].max()
            if h % HEADS == HEADS - 1:
                raise_largest(top_H, largest_TH[t], total_TH[t], mixed_THK[t], h + 1 - HEADS)
        for h in range(n_filled):
            total_TH[t, h] += exponentials(score_HS[h, :n], largest_TH[t, h], whole_S, n_bits, bias)
        add_rows(score_HS[:, :n], window_SK, row_S, mixed_THK[t, :, :width])


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
