"""Core attention of a few queries in plain loops that numba compiles; eqs. (19), (26), (27).

T tokens (queries), H heads, K head width, S rows that one query reads, C compressed entries, P picked entries. All
heads read the same rows, so four heads pass over each row together. The scores of a query stay in the first cache.
"""

import math

import numpy as np

from minidsv4.fast.compiled.jit import compiled

TOGETHER = 4  # heads that pass over a row at once, and rows that are added at once
FILLER = -1  # the row of a place that fills up to TOGETHER
NOTHING = -1e30  # its score
LOWEST = -80.0  # below the largest score: exp(-80) counts for nothing, and a float32 still holds it
LOG2_E, LN_2 = 1 / math.log(2), math.log(2)
TAYLOR = tuple(1 / math.factorial(power) for power in range(14))  # of exp up to ln(2) / 2, to the last digit of float64


@compiled
def attend_share(query_THK, out_THK, oldest_T, newest_T, first_T, stop_T, picks_TP, window_SK, rest):
    """Fill `out_THK`: each query reads the window's rows oldest .. newest, and entries first .. stop - 1.

    picks_TP  of these entries it reads the picked; P = 0: all
    rest      entries_CK, sinks_H, an array of integers as wide as the floats, bits of a fraction, bias of an exponent
    """
    n_heads, scale = query_THK.shape[1], query_THK.dtype.type(query_THK.shape[2] ** -0.5)
    query_HK, mixed_HK, weight_HS, row_S = room(query_THK, (newest_T - oldest_T).max(), (stop_T - first_T).max())
    for t in range(len(query_THK)):
        query_HK[:n_heads] = query_THK[t] * scale
        mixed_HK[:] = 0
        near_S, far_S = rows_read(row_S, oldest_T[t], newest_T[t], first_T[t], stop_T[t], picks_TP[t])
        near_HS, far_HS = put_weights(query_HK, window_SK, near_S, far_S, weight_HS, n_heads, rest)
        add_rows(near_HS, window_SK, near_S, mixed_HK)
        add_rows(far_HS, rest[0], far_S, mixed_HK)
        out_THK[t] = mixed_HK[:n_heads]


@compiled
def room(query_THK, n_near, n_far):
    """Zeros for a query, its result and its weights, heads filled up to TOGETHER; and for the numbers of its rows."""
    n_places = n_near + max(0, n_far) + 3 * TOGETHER
    shape, dtype = ((query_THK.shape[1] + TOGETHER - 1) // TOGETHER * TOGETHER, query_THK.shape[2]), query_THK.dtype
    weight_HS, row_S = np.zeros((shape[0], n_places), dtype), np.zeros(n_places, np.int64)
    return np.zeros(shape, dtype), np.zeros(shape, dtype), weight_HS, row_S


@compiled
def rows_read(row_S, oldest, newest, first, stop, picks_P):
    """The rows of the window and of the entries that a query reads, each with its fillers, listed in `row_S`."""
    n_near = list_rows(row_S, oldest, newest + 1, picks_P[:0])
    n_far = list_rows(row_S[n_near:], first, stop, picks_P)
    return row_S[:n_near], row_S[n_near : n_near + n_far]


@compiled
def put_weights(query_HK, window_SK, near_S, far_S, weight_HS, n_heads, rest):
    """The weights of all heads over the rows, near and far; a filler scores so low that it gets none."""
    entries_CK, sinks_H, integers, n_bits, bias = rest
    n_near, n_all = len(near_S), len(near_S) + len(far_S)
    near_HS, far_HS = weight_HS[:, :n_near], weight_HS[:, n_near:n_all]
    put_dots(query_HK, window_SK, near_S, near_HS, NOTHING)
    put_dots(query_HK, entries_CK, far_S, far_HS, NOTHING)
    whole_S = np.empty(n_all, integers.dtype)
    for h in range(n_heads):
        softmax(weight_HS[h, :n_all], sinks_H[h], whole_S, n_bits, bias)
    return near_HS, far_HS


@compiled
def list_rows(row_S, first, stop, picks_P):
    """Put the rows first .. stop - 1 into `row_S`, only the picked where there are picks, and fillers; how many."""
    n = 0
    if len(picks_P):
        for pick in picks_P:
            row_S[n] = pick
            n += first <= pick < stop
    else:
        for row in range(first, stop):
            row_S[n] = row
            n += 1
    while n % TOGETHER:
        row_S[n] = FILLER
        n += 1
    return n


@compiled
def put_dots(query_HK, rows_SK, row_S, dot_HS, of_filler):
    """The dot products of every head with the rows; those of fillers are near `of_filler`."""
    zero, far_off = dot_HS.dtype.type(0), dot_HS.dtype.type(of_filler)
    for h in range(0, len(query_HK), TOGETHER):
        for s in range(dot_HS.shape[1]):
            row, a, b, c, d = max(row_S[s], 0), zero, zero, zero, zero
            for k in range(query_HK.shape[1]):
                a += query_HK[h, k] * rows_SK[row, k]
                b += query_HK[h + 1, k] * rows_SK[row, k]
                c += query_HK[h + 2, k] * rows_SK[row, k]
                d += query_HK[h + 3, k] * rows_SK[row, k]
            filled = far_off if row_S[s] == FILLER else zero
            dot_HS[h, s], dot_HS[h + 1, s] = a + filled, b + filled
            dot_HS[h + 2, s], dot_HS[h + 3, s] = c + filled, d + filled


@compiled
def softmax(score_S, sink, whole_S, n_bits, bias):
    """The weights of one head's rows in place; the sink takes a share of its own."""
    a, b, c, d = sink, sink, sink, sink
    for s in range(0, len(score_S), TOGETHER):  # four maxima at once, since one would wait for itself
        a, b = max(a, score_S[s]), max(b, score_S[s + 1])
        c, d = max(c, score_S[s + 2]), max(d, score_S[s + 3])
    largest = max(a, b, c, d)
    total = exponentials(score_S, largest, whole_S, n_bits, bias)
    share = score_S.dtype.type(1 / (total + math.exp(sink - largest)))
    for s in range(len(score_S)):
        score_S[s] *= share


@compiled
def exponentials(x, largest, whole_S, n_bits, bias):
    """`exp(x - largest)` in place, and their sum; x - largest = n ln(2) + r, exp(r) by Taylor, 2^n from its bits."""
    kind, power_S = x.dtype.type, whole_S.view(x.dtype)
    c0, c1, c2, c3, c4 = kind(TAYLOR[0]), kind(TAYLOR[1]), kind(TAYLOR[2]), kind(TAYLOR[3]), kind(TAYLOR[4])
    c5, c6, c7, c8, c9 = kind(TAYLOR[5]), kind(TAYLOR[6]), kind(TAYLOR[7]), kind(TAYLOR[8]), kind(TAYLOR[9])
    c10, c11, c12, c13 = kind(TAYLOR[10]), kind(TAYLOR[11]), kind(TAYLOR[12]), kind(TAYLOR[13])
    lowest, log2_e, ln_2, half = kind(LOWEST), kind(LOG2_E), kind(LN_2), kind(0.5)
    for s in range(len(x)):
        y = x[s] - largest
        y = lowest if y < lowest else y
        n = math.floor(y * log2_e + half)
        r = y - kind(n) * ln_2
        whole_S[s] = (int(n) + bias) << n_bits
        rest = c7 + r * (c8 + r * (c9 + r * (c10 + r * (c11 + r * (c12 + r * c13)))))
        x[s] = c0 + r * (c1 + r * (c2 + r * (c3 + r * (c4 + r * (c5 + r * (c6 + r * rest))))))
    total = kind(0)
    for s in range(len(x)):
        x[s] *= power_S[s]
        total += x[s]
    return total


@compiled
def add_rows(weight_HS, rows_SK, row_S, out_HK):
    """Add the rows, weighted, to every head; four heads and four rows at a time."""
    for h in range(0, len(out_HK), TOGETHER):
        for s in range(0, weight_HS.shape[1], TOGETHER):
            i, j, m, n = max(row_S[s], 0), max(row_S[s + 1], 0), max(row_S[s + 2], 0), max(row_S[s + 3], 0)
            a_S, b_S, c_S, d_S = weight_HS[h], weight_HS[h + 1], weight_HS[h + 2], weight_HS[h + 3]
            a0, a1, a2, a3 = a_S[s], a_S[s + 1], a_S[s + 2], a_S[s + 3]
            b0, b1, b2, b3 = b_S[s], b_S[s + 1], b_S[s + 2], b_S[s + 3]
            c0, c1, c2, c3 = c_S[s], c_S[s + 1], c_S[s + 2], c_S[s + 3]
            d0, d1, d2, d3 = d_S[s], d_S[s + 1], d_S[s + 2], d_S[s + 3]
            for k in range(out_HK.shape[1]):
                p, q, r, v = rows_SK[i, k], rows_SK[j, k], rows_SK[m, k], rows_SK[n, k]
                out_HK[h, k] += (a0 * p + a1 * q) + (a2 * r + a3 * v)
                out_HK[h + 1, k] += (b0 * p + b1 * q) + (b2 * r + b3 * v)
                out_HK[h + 2, k] += (c0 * p + c1 * q) + (c2 * r + c3 * v)
                out_HK[h + 3, k] += (d0 * p + d1 * q) + (d2 * r + d3 * v)
