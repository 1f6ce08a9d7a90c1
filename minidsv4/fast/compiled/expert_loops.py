"""Router and experts of tokens that lie end to end, in plain loops that numba compiles.

T tokens, of any sequences, D width, E experts, A active experts, F expert width. Each expert is read once for all who
visit it. A token adds up its experts in the order of their numbers, whoever else visits them.
"""

import math

import numpy as np

from minidsv4.fast.compiled.jit import as_written
from minidsv4.fast.compiled.numbers import as_of, sigmoid
from minidsv4.fast.compiled.row_tiles import product

SOFTPLUS_LINEAR = 20.0  # beyond it softplus(x) is x, as in torch


@as_written
def experts(x_TD, token_T, ffn, sizes):
    """shared(x) + sum over the routed experts, in the order of their numbers, of weight * expert(x)."""
    picked_TA, weight_TA = route(x_TD, token_T, ffn, sizes)
    up_TF, gated_TF = product(ffn.shared_w3, x_TD), product(ffn.shared_w1, x_TD)
    for t in range(len(x_TD)):
        swiglu(gated_TF[t], up_TF[t], gated_TF[t], sizes.swiglu_limit, as_of(1, gated_TF[t, 0]))
    out_TD = product(ffn.shared_w2, gated_TF)
    visit_T, place_E = visits(picked_TA, len(ffn.w13))
    for e in range(len(ffn.w13)):
        visit_of_T = visit_T[place_E[e] : place_E[e + 1]]
        if len(visit_of_T):
            add_expert(out_TD, x_TD, visit_of_T, weight_TA, ffn.w13[e], ffn.w2[e], sizes.swiglu_limit)
    return out_TD


@as_written
def route(x_TD, token_T, ffn, sizes):
    """Experts and weights of each token [T, A]."""
    picked_TA = np.empty((len(x_TD), sizes.active), np.int64)
    weight_TA = np.empty((len(x_TD), sizes.active), x_TD.dtype)
    score_TE = product(ffn.router, x_TD)
    for t in range(len(x_TD)):
        for e in range(score_TE.shape[1]):
            score_TE[t, e] = math.sqrt(softplus(score_TE[t, e]))
        if len(ffn.table_VA):
            for a in range(sizes.active):
                picked_TA[t, a] = ffn.table_VA[token_T[t], a]
        else:
            stable_topk(score_TE[t], ffn.bias_E, picked_TA[t])
        total = as_of(1e-20, score_TE[t, 0])
        for e in picked_TA[t]:
            total += score_TE[t, e]
        for a in range(sizes.active):
            weight_TA[t, a] = as_of(sizes.route_scale, total) * score_TE[t, picked_TA[t, a]] / total
    return picked_TA, weight_TA


@as_written
def stable_topk(score_E, bias_E, picked_A):
    """Fill in the places of the largest sums, best first; among equal ones the lower place wins."""
    best_A = np.empty(len(picked_A), score_E.dtype)
    for e in range(len(score_E)):
        score = score_E[e] + bias_E[e]
        if e >= len(best_A) and score <= best_A[-1]:
            continue
        rank = min(e, len(best_A) - 1)
        while rank > 0 and score > best_A[rank - 1]:  # those that it passes move down, the last one out
            best_A[rank], picked_A[rank] = best_A[rank - 1], picked_A[rank - 1]
            rank -= 1
        best_A[rank], picked_A[rank] = score, e


@as_written
def visits(picked_TA, n_experts):
    """All picks, as numbers t A + a, sorted by expert and then by token; and where each expert's begin [E + 1]."""
    place_E = np.zeros(n_experts + 1, np.int64)
    flat_T = picked_TA.reshape(-1)
    for e in flat_T:
        place_E[e + 1] += 1
    for e in range(n_experts):
        place_E[e + 1] += place_E[e]
    visit_T, next_E = np.empty(len(flat_T), np.int64), np.empty(n_experts, np.int64)
    for e in range(n_experts):
        next_E[e] = place_E[e]
    for visit in range(len(flat_T)):
        visit_T[next_E[flat_T[visit]]] = visit
        next_E[flat_T[visit]] += 1
    return visit_T, place_E


@as_written
def add_expert(out_TD, x_TD, visit_T, weight_TA, w13_FD, w2_DF, limit):
    """Add one expert's answers to those tokens that visit it."""
    n_active, inner = weight_TA.shape[1], w2_DF.shape[1]
    of_TD, gated_TF = np.empty((len(visit_T), x_TD.shape[1]), x_TD.dtype), np.empty((len(visit_T), inner), x_TD.dtype)
    for place in range(len(visit_T)):
        for d in range(x_TD.shape[1]):
            of_TD[place, d] = x_TD[visit_T[place] // n_active, d]
    both_TF = product(w13_FD, of_TD)
    for place in range(len(visit_T)):
        weight = weight_TA[visit_T[place] // n_active, visit_T[place] % n_active]
        swiglu(both_TF[place, :inner], both_TF[place, inner:], gated_TF[place], limit, weight)
    answer_TD = product(w2_DF, gated_TF)
    for place in range(len(visit_T)):
        t = visit_T[place] // n_active
        for d in range(x_TD.shape[1]):
            out_TD[t, d] += answer_TD[place, d]


@as_written
def softplus(x):
    """log(1 + exp(x)) of one number."""
    return x if x > SOFTPLUS_LINEAR else as_of(math.log1p(math.exp(x)), x)


@as_written
def swiglu(gate_F, up_F, out_F, limit, weight):
    """Fill in weight * silu(min(gate, limit)) * clip(up, -limit, limit)."""
    limit = as_of(limit, weight)
    for f in range(len(out_F)):
        gate, up = gate_F[f], up_F[f]
        gate = limit if gate > limit else gate
        up = limit if up > limit else up
        up = -limit if up < -limit else up
        out_F[f] = gate * sigmoid(gate) * up * weight
