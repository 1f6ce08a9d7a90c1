"""The gradient of core attention in plain loops that numba compiles, query by query as its forward; eqs. (26), (27).

T tokens (queries), H heads, K head width, S rows that one query reads, C compressed entries, P picked entries. The
weights are computed anew. Entries are keys and values at once, so both gradients are added while a row is at hand.
"""

from minidsv4.fast.compiled.attention_loops import TOGETHER, add_rows, put_dots, put_weights, room, rows_read
from minidsv4.fast.compiled.jit import compiled


@compiled
def attend_back_share(query_THK, oldest_T, newest_T, first_T, stop_T, picks_TP, grad_THK, d_query_THK, *rest):
    """Fill `d_query_THK`, and add to the gradients of all that these queries read.

    rest  d_window_ZSK, d_entries_ZCK, d_sinks_ZH: of this share of the queries alone, Z = 1; window_SK, and `rest` of
          `attend_share`
    """
    d_window_ZSK, d_entries_ZCK, d_sinks_ZH, window_SK, read = rest
    n_heads, scale = query_THK.shape[1], query_THK.dtype.type(query_THK.shape[2] ** -0.5)
    sizes = (newest_T - oldest_T).max(), (stop_T - first_T).max()
    query_HK, d_query_HK, weight_HS, row_S = room(query_THK, *sizes)
    grad_HK, _, d_score_HS, _ = room(query_THK, *sizes)
    for t in range(len(query_THK)):
        query_HK[:n_heads], grad_HK[:n_heads] = query_THK[t] * scale, grad_THK[t]
        d_query_HK[:] = 0
        near_S, far_S = rows_read(row_S, oldest_T[t], newest_T[t], first_T[t], stop_T[t], picks_TP[t])
        near_HS, far_HS = put_weights(query_HK, window_SK, near_S, far_S, weight_HS, n_heads, read)
        d_near_HS, d_far_HS = d_score_HS[:, : len(near_S)], d_score_HS[:, len(near_S) : len(near_S) + len(far_S)]
        put_dots(grad_HK, window_SK, near_S, d_near_HS, 0)
        put_dots(grad_HK, read[0], far_S, d_far_HS, 0)
        for h in range(n_heads):
            d_sinks_ZH[0, h] -= d_softmax(weight_HS[h], d_score_HS[h], len(near_S) + len(far_S))
        add_rows(d_near_HS, window_SK, near_S, d_query_HK)
        add_rows(d_far_HS, read[0], far_S, d_query_HK)
        d_query_THK[t] = d_query_HK[:n_heads] * scale
        add_to_rows(d_near_HS, query_HK, near_HS, grad_HK, near_S, d_window_ZSK[0])
        add_to_rows(d_far_HS, query_HK, far_HS, grad_HK, far_S, d_entries_ZCK[0])


@compiled
def d_softmax(weight_S, d_weight_S, n_rows):
    """From the gradient of one head's weights to that of its scores, in place; the sink's, with its sign turned."""
    delta, total = weight_S.dtype.type(0), weight_S.dtype.type(0)
    for s in range(n_rows):
        delta += weight_S[s] * d_weight_S[s]
        total += weight_S[s]
    for s in range(n_rows):
        d_weight_S[s] = weight_S[s] * (d_weight_S[s] - delta)
    return (1 - total) * delta


@compiled
def add_to_rows(d_score_HS, query_HK, weight_HS, grad_HK, row_S, d_rows_SK):
    """Add to the gradients of the rows what they get as keys and as values; four heads and two rows at a time."""
    for h in range(0, len(query_HK), TOGETHER):
        for s in range(0, len(row_S), 2):
            i, j = max(row_S[s], 0), max(row_S[s + 1], 0)
            a0, b0, c0, d0 = d_score_HS[h, s], d_score_HS[h + 1, s], d_score_HS[h + 2, s], d_score_HS[h + 3, s]
            a1, b1, c1, d1 = weight_HS[h, s], weight_HS[h + 1, s], weight_HS[h + 2, s], weight_HS[h + 3, s]
            u = s + 1
            p0, q0, r0, v0 = d_score_HS[h, u], d_score_HS[h + 1, u], d_score_HS[h + 2, u], d_score_HS[h + 3, u]
            p1, q1, r1, v1 = weight_HS[h, u], weight_HS[h + 1, u], weight_HS[h + 2, u], weight_HS[h + 3, u]
            for k in range(query_HK.shape[1]):
                w, x, y, z = query_HK[h, k], query_HK[h + 1, k], query_HK[h + 2, k], query_HK[h + 3, k]
                e, f, g, m = grad_HK[h, k], grad_HK[h + 1, k], grad_HK[h + 2, k], grad_HK[h + 3, k]
                d_rows_SK[i, k] += (a0 * w + b0 * x) + (c0 * y + d0 * z) + (a1 * e + b1 * f) + (c1 * g + d1 * m)
                d_rows_SK[j, k] += (p0 * w + q0 * x) + (r0 * y + v0 * z) + (p1 * e + q1 * f) + (r1 * g + v1 * m)
