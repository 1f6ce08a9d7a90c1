"""The indexer's choice in plain loops that numba compiles: scored and compared in one go; eqs. (16), (17).

T tokens (queries), U index heads, Z index width, C compressed entries, P picked entries, N strips of S
keys. A head of positive weight adds to a score and one of negative weight takes away. So a strip whose
positive heads alone lift no entry above the edge, the worst of the P best so far, is not scored whole:
nearly every strip of a long text. What is above the edge joins the query's candidates; when these fill
their room the best P are kept, and the edge rises.
"""

import numpy as np

from minidsv4.fast.compiled.head_tiles import STRIP, above, add_heads, clear, lowest_bit
from minidsv4.fast.compiled.jit import as_written, compiled

TILE_BYTES = 1 << 14  # of keys, turned to strips: they stay in the first cache for all queries


@compiled
def pick_share(query_TUZ, weight_TU, first_T, stop_T, picks_TP, keys_CZ):
    """Fill `picks_TP`, ascending, for a few queries that pass over the keys together, a tile at a time.

    first_T, stop_T  each query sees the entries `first .. stop - 1`
    """
    n_tokens, n_picked = picks_TP.shape
    heads = positive_first(query_TUZ, weight_TU)
    score_TS = np.empty((n_tokens, 2 * n_picked + STRIP), keys_CZ.dtype)  # of candidates
    entry_TS = np.empty(score_TS.shape, np.int64)  # which they are, in rising order
    n_kept_T, edge_T = np.zeros(n_tokens, np.int64), np.full(n_tokens, -np.inf, keys_CZ.dtype)
    candidates = (score_TS, entry_TS, n_kept_T, edge_T)
    n_strips = max(1, TILE_BYTES // (STRIP * keys_CZ.shape[1] * keys_CZ.itemsize))
    keys_NZS = np.zeros((n_strips, keys_CZ.shape[1], STRIP), keys_CZ.dtype)
    for low in range(first_T.min(), stop_T.max(), n_strips * STRIP):
        turn(keys_CZ[low : low + n_strips * STRIP], keys_NZS)
        pick_tile(heads, keys_NZS, low, first_T, stop_T, candidates, n_picked)
    for t in range(n_tokens):
        if n_kept_T[t] > n_picked:
            n_kept_T[t], edge_T[t] = cut(score_TS[t], entry_TS[t], n_kept_T[t], n_picked)
        fill_up(entry_TS[t], n_kept_T[t], picks_TP[t])


@compiled
def positive_first(query_TUZ, weight_TU):
    """Heads and weights with those of positive weight first, and the numbers of these and of all.

    Heads of zeros make both numbers even, as `add_heads` takes them.
    """
    n_tokens, n_heads, width = query_TUZ.shape
    n_places = (n_heads + 3) // 2 * 2
    ordered_TUZ = np.zeros((n_tokens, n_places, width), query_TUZ.dtype)
    gate_TU = np.zeros((n_tokens, n_places), weight_TU.dtype)
    n_positive_T, n_all_T = np.zeros(n_tokens, np.int64), np.zeros(n_tokens, np.int64)
    for t in range(n_tokens):
        place = 0
        for positive in (True, False):
            for u in range(n_heads):
                if (not weight_TU[t, u] <= 0) == positive:  # NaN counts as positive
                    gate_TU[t, place] = weight_TU[t, u]
                    for z in range(width):
                        ordered_TUZ[t, place, z] = query_TUZ[t, u, z]
                    place += 1
            place += place % 2
            if positive:
                n_positive_T[t] = place
        n_all_T[t] = place
    return ordered_TUZ, gate_TU, n_positive_T, n_all_T


@compiled
def turn(keys_SZ, keys_NZS):
    """Lay keys out in strips, [Z, S] each."""
    for s in range(len(keys_SZ)):
        for z in range(keys_SZ.shape[1]):
            keys_NZS[s // STRIP, z, s % STRIP] = keys_SZ[s, z]


@as_written
def pick_tile(heads, keys_NZS, low, first_T, stop_T, candidates, n_picked):
    """Every query and one tile, whose entries begin at `low`.

    In one call for all: a call counts references to what it is given (see `attention_loops`).
    """
    (ordered_TUZ, gate_TU, n_positive_T, n_heads_T), (score_TS, entry_TS, n_kept_T, edge_T) = heads, candidates
    strip_S = np.empty(STRIP, keys_NZS.dtype)
    for t in range(len(first_T)):
        first, stop = first_T[t] - low, stop_T[t] - low  # where in the tile; they may lie outside
        for n in range(max(first, 0) // STRIP, min(len(keys_NZS), (stop + STRIP - 1) // STRIP)):
            clear(strip_S)
            add_heads(ordered_TUZ, gate_TU, t, 0, n_positive_T[t], keys_NZS, n, strip_S)
            if above(strip_S, edge_T[t]) == 0:
                continue
            add_heads(ordered_TUZ, gate_TU, t, n_positive_T[t], n_heads_T[t], keys_NZS, n, strip_S)
            higher = above(strip_S, edge_T[t])
            if higher:
                inside = (max(first - n * STRIP, 0), min(stop - n * STRIP, STRIP))
                own = (score_TS[t], entry_TS[t], n_kept_T[t], edge_T[t])
                n_kept_T[t], edge_T[t] = take_strip(strip_S, higher, inside, low + n * STRIP, own, n_picked)


@compiled
def take_strip(score_S, higher, inside, low, candidates, n_picked):
    """Add what a query sees of a strip to its candidates: their new number, and the edge.

    higher  the bits of the entries above the edge
    inside  the query sees the entries `inside[0] .. inside[1] - 1` of the strip
    """
    candidate_S, entry_S, n_kept, edge = candidates
    place, largest = np.uint64(n_kept), np.finfo(score_S.dtype).max
    while higher:
        s = lowest_bit(higher)
        if inside[0] <= s < inside[1]:
            score = score_S[s]
            candidate_S[place] = score if score <= largest else largest  # NaN is picked first, as by a sort
            entry_S[place] = low + s
            place += np.uint64(1)
        higher &= higher - np.uint64(1)
    n_kept = np.int64(place)
    if n_kept > 2 * n_picked:
        return cut(candidate_S, entry_S, n_kept, n_picked)
    return n_kept, edge


@compiled
def cut(score_S, entry_S, n, n_picked):
    """Keep the best `n_picked` of the first n candidates, in their order; of equal ones the first.

    returns  `n_picked`, and the edge: nothing at or below it can still be picked
    """
    edge = lowest_picked(score_S[:n], n_picked)
    n_equal = n_picked - count_above(score_S[:n], edge)  # that find room
    place = np.uint64(0)
    for s in range(np.uint64(n)):
        equal = (score_S[s] == edge) & (n_equal > 0)
        above = score_S[s] > edge
        score_S[place], entry_S[place] = score_S[s], entry_S[s]
        place += np.uint64(equal | above)
        n_equal -= equal
    return n_picked, edge


@compiled
def lowest_picked(score_S, n_picked):
    """An edge that at most `n_picked` scores exceed and at least as many reach, by halving the range.

    The scores are finite and more than `n_picked`.
    """
    low, high, half = score_S.min(), score_S.max(), score_S.dtype.type(0.5)
    if count_above(score_S, low) <= n_picked:
        return low
    while True:
        middle = low * half + high * half
        if not low < middle < high:
            return high
        n_above = count_above(score_S, middle)
        if n_above == n_picked:
            return middle
        low, high = (middle, high) if n_above > n_picked else (low, middle)


@compiled
def count_above(score_S, edge):
    """How many scores are above the edge."""
    zero, one = score_S.dtype.type(0), score_S.dtype.type(1)
    n_above = zero  # in their own type, so that as many are counted at once as are compared
    for s in range(len(score_S)):
        n_above += one if score_S[s] > edge else zero
    return int(n_above)


@compiled
def fill_up(entry_S, n_kept, picks_P):
    """The picks of one query, ascending: its kept entries, and where these are too few the lowest others."""
    n_others, taken, other = len(picks_P) - n_kept, 0, 0
    for place in range(len(picks_P)):
        if taken < n_kept and (n_others == 0 or entry_S[taken] <= other):
            picks_P[place] = entry_S[taken]
            other += entry_S[taken] == other
            taken += 1
        else:
            picks_P[place] = other
            other += 1
            n_others -= 1
