"""The indexer's choice in plain loops that numba compiles: entries are scored and compared in one go; eqs. (16), (17).

T tokens (queries), U index heads, Z index width, C compressed entries, P picked entries, S entries of one tile.
A head of positive weight adds to a score and one of negative weight takes away. So an entry whose positive heads alone
stay below the worst entry picked so far is never scored whole, and that is nearly every entry of a long text.
"""

import numpy as np

from minidsv4.fast.compiled.jit import compiled

TILE = 512  # keys at a time, turned to [Z, S]: they stay in the processor's first cache for all queries of a thread
STRIP = 64  # keys that are passed over together


@compiled
def pick_share(query_TUZ, weight_TU, visible_T, picks_TP, keys_CZ):
    """Fill `picks_TP`, ascending, for a few queries that pass over the keys together, a tile at a time."""
    n_tokens, _, width = query_TUZ.shape
    n_picked, dtype = picks_TP.shape[1], keys_CZ.dtype
    best_TP, n_best_T = np.empty((n_tokens, n_picked), dtype), np.zeros(n_tokens, np.int64)
    worst_T = np.zeros(n_tokens, np.int64)  # the place in best_TP of the entry that the next better one drives out
    ordered_TUZ, gates_TU, n_positive_T = positive_first(query_TUZ, weight_TU)
    keys_ZS, room = np.zeros((ordered_TUZ.shape[2], TILE), dtype), np.empty((3, TILE), dtype)
    for low in range(0, visible_T.max(), TILE):
        n_keys = min(TILE, visible_T.max() - low)
        keys_SZ = keys_CZ[low : low + n_keys]
        keys_ZS[:width, :n_keys] = keys_SZ.T
        for t in range(n_tokens):
            n_seen = min(n_keys, visible_T[t] - low)
            state = (best_TP[t], picks_TP[t], n_best_T[t], worst_T[t])
            heads = (ordered_TUZ[t], gates_TU[t], n_positive_T[t])
            if n_seen > 0:
                n_best_T[t], worst_T[t] = pick_tile(heads, keys_ZS, keys_SZ, n_seen, low, state, room)
    for t in range(n_tokens):
        for place in range(n_best_T[t], n_picked):
            picks_TP[t, place] = place  # fewer are visible than picked: these lie beyond
        picks_TP[t].sort()


@compiled
def positive_first(query_TUZ, weight_TU):
    """Heads and weights with those of positive weight first, and how many these are.

    Zeros make the number of positive heads even and the width a multiple of 8, as `add_heads` takes them.
    """
    n_tokens, n_heads, width = query_TUZ.shape
    n_places = (n_heads + 3) // 2 * 2
    ordered_TUZ = np.zeros((n_tokens, n_places, (width + 7) // 8 * 8), query_TUZ.dtype)
    gates_TU, n_positive_T = np.zeros((n_tokens, n_places), weight_TU.dtype), np.zeros(n_tokens, np.int64)
    for t in range(n_tokens):
        place = 0
        for positive in (True, False):
            for u in range(n_heads):
                if (weight_TU[t, u] > 0) == positive:
                    ordered_TUZ[t, place, :width], gates_TU[t, place] = query_TUZ[t, u], weight_TU[t, u]
                    place += 1
            place += place % 2
            n_positive_T[t] = place if positive else n_positive_T[t]
    return ordered_TUZ, gates_TU, n_positive_T


@compiled
def pick_tile(heads, keys_ZS, keys_SZ, n_keys, low, state, room):
    """One query and one tile: entries that beat the worst picked one take its place. Returns count and worst place."""
    query_UZ, gate_U, n_positive = heads
    best_P, picks_P, n_best, worst = state
    score_S = room[0]
    add_heads(query_UZ, gate_U, n_positive, keys_ZS, n_keys, room)
    for start in range(0, n_keys, STRIP):
        stop = min(start + STRIP, n_keys)
        edge = best_P[worst] if n_best == len(best_P) else -np.inf
        if not any_above(score_S, start, stop, edge):
            continue
        for s in range(start, stop):
            if n_best == len(best_P) and score_S[s] <= best_P[worst]:
                continue
            score = score_S[s] + heads_at(query_UZ, gate_U, n_positive, keys_SZ[s])
            if n_best < len(best_P):
                best_P[n_best], picks_P[n_best] = score, low + s
                n_best += 1
            elif score > best_P[worst]:
                best_P[worst], picks_P[worst] = score, low + s
            else:
                continue
            if n_best == len(best_P):
                worst = worst_place(best_P, picks_P)
    return n_best, worst


@compiled
def worst_place(best_P, picks_P):
    """The place of the lowest score; among equal ones that of the highest entry, since the lower entry wins."""
    worst = 0
    for place in range(1, len(best_P)):
        if best_P[place] < best_P[worst] or (best_P[place] == best_P[worst] and picks_P[place] > picks_P[worst]):
            worst = place
    return worst


@compiled
def add_heads(query_UZ, gate_U, n_heads, keys_ZS, n_keys, room):
    """`sum_u gate[u] relu(q[u] . k[s])` of the first heads, two at a time, into room[0] for every key of a tile."""
    score_S, one_S, two_S = room[0], room[1], room[2]
    zero = score_S.dtype.type(0)
    score_S[:n_keys] = 0
    for u in range(0, n_heads, 2):
        one_S[:n_keys], two_S[:n_keys] = 0, 0
        for z in range(0, query_UZ.shape[1], 8):
            add_dots(query_UZ[u], query_UZ[u + 1], keys_ZS, z, n_keys, one_S, two_S)
        for s in range(n_keys):
            score_S[s] += gate_U[u] * max(one_S[s], zero) + gate_U[u + 1] * max(two_S[s], zero)


@compiled
def heads_at(query_UZ, gate_U, first, key_Z):
    """The sum of `add_heads` over the heads from `first` on, for a single key."""
    total = gate_U.dtype.type(0)
    for u in range(first, len(gate_U)):
        dot = gate_U.dtype.type(0)
        for z in range(len(key_Z)):
            dot += query_UZ[u, z] * key_Z[z]
        total += gate_U[u] * max(dot, gate_U.dtype.type(0))
    return total


@compiled
def add_dots(one_Z, two_Z, keys_ZS, z, n_keys, one_S, two_S):
    """Add eight terms of the dot products of two heads with every key: a row of the keys serves both."""
    a0, a1, a2, a3 = one_Z[z], one_Z[z + 1], one_Z[z + 2], one_Z[z + 3]
    a4, a5, a6, a7 = one_Z[z + 4], one_Z[z + 5], one_Z[z + 6], one_Z[z + 7]
    b0, b1, b2, b3 = two_Z[z], two_Z[z + 1], two_Z[z + 2], two_Z[z + 3]
    b4, b5, b6, b7 = two_Z[z + 4], two_Z[z + 5], two_Z[z + 6], two_Z[z + 7]
    k0, k1, k2, k3 = keys_ZS[z], keys_ZS[z + 1], keys_ZS[z + 2], keys_ZS[z + 3]
    k4, k5, k6, k7 = keys_ZS[z + 4], keys_ZS[z + 5], keys_ZS[z + 6], keys_ZS[z + 7]
    for s in range(n_keys):
        p0, p1, p2, p3, p4, p5, p6, p7 = k0[s], k1[s], k2[s], k3[s], k4[s], k5[s], k6[s], k7[s]
        one_S[s] += (a0 * p0 + a1 * p1 + a2 * p2 + a3 * p3) + (a4 * p4 + a5 * p5 + a6 * p6 + a7 * p7)
        two_S[s] += (b0 * p0 + b1 * p1 + b2 * p2 + b3 * p3) + (b4 * p4 + b5 * p5 + b6 * p6 + b7 * p7)


@compiled
def any_above(score_S, start, stop, edge):
    """Whether one of a strip is above the edge; counted, since counting needs no order and no branch."""
    n_above = 0
    for s in range(start, stop):
        n_above += score_S[s] > edge
    return n_above > 0
