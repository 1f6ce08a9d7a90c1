"""Attention of one sequence's new tokens and all that it remembers, in plain loops that numba compiles.

T new tokens, H heads, K head width, R rotary part, S slots, or rows of the window, C compressed entries, P picked
entries, M tokens per entry, Z index width. Equation numbers are those of the report. Token by token: what one gets
depends neither on how many come with it nor on where the text was cut before it.
"""

import numpy as np

from minidsv4.fast.compiled.jit import as_written
from minidsv4.fast.compiled.numbers import as_of, exp, fma
from minidsv4.fast.compiled.row_loops import hadamard, rms_norm, rotate, turns
from minidsv4.fast.compiled.row_tiles import put_product
from minidsv4.fast.compiled.top_entries_loops import pick_share

TOGETHER = 4  # rows that are added in one pass over the sum

# ---- compression, equations (11), (12), (22) and (23) ---------------------------------------------------------------


@as_written
def compress(series_TS, ape, norm_K, cache, freqs_R, eps):
    """Take raw rows into the open window, and fill in the entries of the windows that close; their number."""
    ratio, width = len(ape), len(norm_K)
    copy_rows(series_TS, cache.open_SK[len(cache.open_SK) - len(series_TS) :])
    n_closed = len(cache.open_SK) // ratio
    first = len(cache.entries_CK) - n_closed
    before_MK, own = cache.before_MK, ape.shape[1] - width
    for c in range(n_closed):
        window_MK = cache.open_SK[c * ratio : (c + 1) * ratio]
        pool(window_MK, before_MK, ape, cache.entries_CK[first + c])
        if own:  # what the next window will find before it
            before_MK = overlap(window_MK, width)
    new_CK = rms_norm(cache.entries_CK[first:], norm_K, eps)
    position_C = np.empty(n_closed, np.int64)
    for c in range(n_closed):
        position_C[c] = (first + c) * ratio
    cos_CR, sin_CR = turns(position_C, freqs_R)
    for c in range(n_closed):
        rotate(new_CK[c : c + 1], cos_CR, sin_CR, c, 1)
    if len(cache.after_MK):
        copy_rows(before_MK, cache.after_MK)
    return n_closed


@as_written
def copy_rows(rows_SK, out_SK):
    """out = rows."""
    for s in range(len(rows_SK)):
        for k in range(rows_SK.shape[1]):
            out_SK[s, k] = rows_SK[s, k]


@as_written
def overlap(window_MK, width):
    """Values and gates of a window [M, 2 K] as the next one pools them: the first of two halves."""
    half_MK = np.empty((len(window_MK), 2 * width), window_MK.dtype)
    for m in range(len(window_MK)):
        for k in range(width):
            half_MK[m, k], half_MK[m, width + k] = window_MK[m, k], window_MK[m, 2 * width + k]
    return half_MK


@as_written
def pool(window_MK, before_MK, ape, entry_K):
    """Fill in sum_s softmax_s(gate) * value, channel by channel, over the window and what it finds before it.

    A row of the window holds values, then gates; in CSA each of them for the next window, then for its own.
    """
    ratio, n_series, width = len(window_MK), ape.shape[1], len(entry_K)
    own = n_series - width
    gates_SK = np.empty((ratio + len(before_MK), width), entry_K.dtype)
    for m in range(ratio):
        for k in range(width):
            gates_SK[m, k] = window_MK[m, n_series + own + k] + ape[m, own + k]
    for m in range(len(before_MK)):
        for k in range(width):
            gates_SK[ratio + m, k] = before_MK[m, width + k] + ape[m, k]
    largest_K, total_K = np.full(width, -np.inf, entry_K.dtype), np.zeros(width, entry_K.dtype)
    for s in range(len(gates_SK)):
        for k in range(width):
            largest_K[k] = gates_SK[s, k] if gates_SK[s, k] > largest_K[k] else largest_K[k]
    for k in range(width):
        entry_K[k] = 0
    for s in range(len(gates_SK)):
        value_K = window_MK[s, own : own + width] if s < ratio else before_MK[s - ratio, :width]
        for k in range(width):
            share = exp(gates_SK[s, k] - largest_K[k])
            total_K[k] += share
            entry_K[k] = fma(share, value_K[k], entry_K[k])
    for k in range(width):
        entry_K[k] /= total_K[k]


# ---- which rows a token reads, equations (16) and (17) --------------------------------------------------------------


@as_written
def take_in(flat, first, stop, attn, cache, sizes):
    """Let the cache take the tokens of a sequence in: window, entries, indexer's keys.

    first, stop  where the sequence's tokens begin and end on the flat axis
    """
    copy_rows(flat.entry_TK[first:stop], cache.window_SK[len(cache.window_SK) - (stop - first) :])
    if len(attn.main_ape):
        series_TS = flat.main_TS[first:stop]
        compress(series_TS, attn.main_ape, attn.main_norm, cache.main, attn.freqs_R, sizes.rms_eps)
    if len(attn.keys_ape):
        series_TS = flat.keys_TS[first:stop]
        n_keys = compress(series_TS, attn.keys_ape, attn.keys_norm, cache.index, attn.freqs_R, sizes.rms_eps)
        new_CZ = cache.index.entries_CK[len(cache.index.entries_CK) - n_keys :]
        copy_rows(hadamard(new_CZ, attn.index_signs), new_CZ)


@as_written
def pick(flat, first, stop, seen_T, key_CZ, n_picked):
    """The entries picked for each token [T, P], for those that see more than so many; seen_T never falls."""
    n_all = 0  # tokens that read all that they see
    for seen in seen_T:
        n_all += seen <= n_picked
    picks_TP = np.empty((stop - first, n_picked if n_all < stop - first else 0), np.int64)
    if n_all < stop - first:
        queries = flat.index_query_TUZ[first + n_all : stop], flat.index_weight_TU[first + n_all : stop]
        begins_T = np.zeros(stop - first - n_all, np.int64)
        pick_share(queries[0], queries[1], begins_T, seen_T[n_all:], picks_TP[n_all:], key_CZ)
    return picks_TP


# ---- core attention, equations (19), (26) and (27) ------------------------------------------------------------------


@as_written
def attend_sequence(out_THK, flat, first, stop, position, attn, cache, sizes):
    """Fill in attention's output of one sequence's tokens, turned back; the cache takes them in.

    first, stop  where its tokens begin and end on the flat axis
    position     of the first of them in the sequence
    """
    take_in(flat, first, stop, attn, cache, sizes)
    n_before, ratio = len(cache.window_SK) - (stop - first), len(attn.main_ape)
    seen_T = np.zeros(stop - first, np.int64)  # finished entries that each token sees
    for t in range(stop - first if ratio else 0):
        seen_T[t] = (position + 1 + t) // ratio
    n_picked = sizes.index_topk if len(attn.keys_ape) else len(cache.main.entries_CK)
    picks_TP = pick(flat, first, stop, seen_T, cache.index.entries_CK, n_picked)
    n_far = min(n_picked, seen_T[-1])
    score_HS = np.empty((sizes.heads, sizes.window + n_far), out_THK.dtype)
    picked_CK = np.empty((n_far, out_THK.shape[2]), out_THK.dtype)
    for t in range(stop - first):
        near_SK = cache.window_SK[max(0, n_before + t + 1 - sizes.window) : n_before + t + 1]
        far_CK = cache.main.entries_CK[: seen_T[t]]
        if seen_T[t] > n_picked:
            far_CK = gathered(far_CK, picks_TP[t], picked_CK)
        out_HK = out_THK[first + t]
        attend(out_HK, flat.query_THK[first + t], near_SK, far_CK, attn.sinks_H, score_HS)
        rotate(out_HK, flat.cos_TR, flat.sin_TR, first + t, -1)  # values carry their position: turn it back


@as_written
def gathered(every_CK, picks_P, out_CK):
    """The picked rows, copied side by side."""
    for place in range(len(picks_P)):
        for k in range(every_CK.shape[1]):
            out_CK[place, k] = every_CK[picks_P[place], k]
    return out_CK


@as_written
def attend(out_HK, query_HK, near_SK, far_CK, sinks_H, score_HS):
    """Fill in softmax([q . near, q . far, sink]) @ [near, far, 0] of every head; the queries are scaled."""
    n_near, n_all = len(near_SK), len(near_SK) + len(far_CK)
    put_product(score_HS, 0, near_SK, query_HK, 0)
    put_product(score_HS, n_near, far_CK, query_HK, 0)
    for h in range(len(out_HK)):
        for k in range(out_HK.shape[1]):
            out_HK[h, k] = 0
        softmax(score_HS, h, n_all, sinks_H[h])
        add_rows(out_HK, score_HS, h, 0, near_SK)
        add_rows(out_HK, score_HS, h, n_near, far_CK)


@as_written
def softmax(score_HS, h, n_all, sink):
    """The weights of one head's rows in place; the sink takes a share of its own."""
    largest = sink
    for s in range(n_all):
        largest = score_HS[h, s] if score_HS[h, s] > largest else largest
    for s in range(n_all):
        score_HS[h, s] = exp(score_HS[h, s] - largest)
    whole = n_all - n_all % TOGETHER
    a, b, c, d = exp(sink - largest), as_of(0, sink), as_of(0, sink), as_of(0, sink)
    for s in range(0, whole, TOGETHER):  # four sums at once, since one would wait for itself
        a, b = a + score_HS[h, s], b + score_HS[h, s + 1]
        c, d = c + score_HS[h, s + 2], d + score_HS[h, s + 3]
    for s in range(whole, n_all):
        a += score_HS[h, s]
    share = as_of(1, sink) / ((a + b) + (c + d))
    for s in range(n_all):
        score_HS[h, s] *= share


@as_written
def add_rows(out_HK, weight_HS, h, first, rows_SK):
    """out += weight @ rows of one head, whose weights begin at `first`; row after row."""
    whole = len(rows_SK) - len(rows_SK) % TOGETHER
    for s in range(0, whole, TOGETHER):
        a, b = weight_HS[h, first + s], weight_HS[h, first + s + 1]
        c, d = weight_HS[h, first + s + 2], weight_HS[h, first + s + 3]
        for k in range(out_HK.shape[1]):
            total = fma(b, rows_SK[s + 1, k], fma(a, rows_SK[s, k], out_HK[h, k]))
            out_HK[h, k] = fma(d, rows_SK[s + 3, k], fma(c, rows_SK[s + 2, k], total))
    for s in range(whole, len(rows_SK)):
        for k in range(out_HK.shape[1]):
            out_HK[h, k] = fma(weight_HS[h, first + s], rows_SK[s, k], out_HK[h, k])
