"""Residual streams in plain loops that numba compiles, forwards and backwards; eqs. (1), (2), (8).

No loop over tokens cuts out an array: its references would be counted, by all threads in one place (see
`attention_loops`).

T tokens, N streams, D width; i old stream, j new stream, S tokens that are turned to lie side by side.
"""

import numpy as np

from minidsv4.fast.compiled.jit import compiled

TILE = 64  # tokens whose matrices are balanced together, one in each lane of the processor


@compiled
def collapse_share(streams_TND, pre_TN, out_TD):
    """Fill `out_TD` with what a sub-layer reads of some tokens; A X in eq. (1)."""
    (n_tokens, n_streams), width = pre_TN.shape, out_TD.shape[1]
    for t in range(n_tokens):
        for d in range(width):
            out_TD[t, d] = pre_TN[t, 0] * streams_TND[t, 0, d]
        for i in range(1, n_streams):
            for d in range(width):
                out_TD[t, d] += pre_TN[t, i] * streams_TND[t, i, d]


@compiled
def collapse_back_share(grad_TD, streams_TND, pre_TN, d_streams_TND, d_pre_TN):
    """Fill the gradients of everything that `collapse_share` was given."""
    (n_tokens, n_streams), width = pre_TN.shape, grad_TD.shape[1]
    for t in range(n_tokens):
        for i in range(n_streams):
            total = grad_TD.dtype.type(0)
            for d in range(width):
                d_streams_TND[t, i, d] = pre_TN[t, i] * grad_TD[t, d]
                total += streams_TND[t, i, d] * grad_TD[t, d]
            d_pre_TN[t, i] = total


@compiled
def write_share(streams_TND, y_TD, post_TN, carry_Tij, out_TND):
    """Fill `out_TND` with the new streams of some tokens; eq. (1)."""
    (n_tokens, n_streams), width = post_TN.shape, y_TD.shape[1]
    for t in range(n_tokens):
        for j in range(n_streams):
            for d in range(width):
                out_TND[t, j, d] = post_TN[t, j] * y_TD[t, d]
            for i in range(n_streams):
                for d in range(width):
                    out_TND[t, j, d] += carry_Tij[t, i, j] * streams_TND[t, i, d]


@compiled
def write_back_share(grad_TND, streams_TND, y_TD, post_TN, carry_Tij, d_streams_TND, d_y_TD, d_post_TN, d_carry_Tij):
    """Fill the gradients of everything that `write_share` was given, while a token is in the processor's cache."""
    (n_tokens, n_streams), width, zero = post_TN.shape, y_TD.shape[1], y_TD.dtype.type(0)
    for t in range(n_tokens):
        for d in range(width):
            d_y_TD[t, d] = zero
        for i in range(n_streams):
            for d in range(width):
                d_streams_TND[t, i, d] = zero
        for j in range(n_streams):
            total = zero
            for d in range(width):
                d_y_TD[t, d] += post_TN[t, j] * grad_TND[t, j, d]
                total += y_TD[t, d] * grad_TND[t, j, d]
            d_post_TN[t, j] = total
            for i in range(n_streams):
                total = zero
                for d in range(width):
                    d_streams_TND[t, i, d] += carry_Tij[t, i, j] * grad_TND[t, j, d]
                    total += streams_TND[t, i, d] * grad_TND[t, j, d]
                d_carry_Tij[t, i, j] = total


@compiled
def sinkhorn_share(logits_Tij, out_Tij, n_divisions, eps):
    """Fill `out_Tij` with the balanced matrices of some tokens; `n_divisions` follow the softmax."""
    n = logits_Tij.shape[1]
    mix_ijS, sums_ZNS = np.zeros((n, n, TILE), logits_Tij.dtype), np.zeros((n_divisions, n, TILE), logits_Tij.dtype)
    for low in range(0, len(logits_Tij), TILE):
        softmax(logits_Tij, low, mix_ijS)
        balance(mix_ijS, sums_ZNS, eps)
        turn_back(mix_ijS, out_Tij, low)


@compiled
def sinkhorn_back_share(logits_Tij, grad_Tij, d_logits_Tij, n_divisions, eps):
    """Fill `d_logits_Tij`; the divisions are done anew and undone one by one."""
    n, dtype = logits_Tij.shape[1], logits_Tij.dtype
    mix_ijS, share_ijS = np.zeros((n, n, TILE), dtype), np.zeros((n, n, TILE), dtype)
    grad_ijS = np.zeros((n, n, TILE), dtype)
    sums_ZNS, row_S = np.zeros((n_divisions, n, TILE), dtype), np.zeros(TILE, dtype)
    for low in range(0, len(logits_Tij), TILE):
        softmax(logits_Tij, low, mix_ijS)
        share_ijS[:] = mix_ijS
        turn(grad_Tij, low, grad_ijS)
        balance(mix_ijS, sums_ZNS, eps)
        for z in range(n_divisions - 1, -1, -1):
            undo_division(mix_ijS, grad_ijS, sums_ZNS[z], z % 2 == 0, row_S)
        for i in range(n):
            row_S[:] = 0
            for j in range(n):
                for s in range(TILE):
                    row_S[s] += grad_ijS[i, j, s] * share_ijS[i, j, s]
            for j in range(n):
                for s in range(TILE):
                    grad_ijS[i, j, s] = share_ijS[i, j, s] * (grad_ijS[i, j, s] - row_S[s])
        turn_back(grad_ijS, d_logits_Tij, low)


@compiled
def turn(from_Tij, low, to_ijS):
    """Lay the matrices of some tokens out so that tokens lie side by side."""
    n = from_Tij.shape[1]
    for t in range(min(TILE, len(from_Tij) - low)):
        for i in range(n):
            for j in range(n):
                to_ijS[i, j, t] = from_Tij[low + t, i, j]


@compiled
def turn_back(from_ijS, to_Tij, low):
    """The reverse of `turn`."""
    n = to_Tij.shape[1]
    for t in range(min(TILE, len(to_Tij) - low)):
        for i in range(n):
            for j in range(n):
                to_Tij[low + t, i, j] = from_ijS[i, j, t]


@compiled
def softmax(logits_Tij, low, share_ijS):
    """Softmax over the new streams of each token, turned so that tokens lie side by side."""
    n, zero = logits_Tij.shape[1], logits_Tij.dtype.type(0)
    turn(logits_Tij, low, share_ijS)
    for i in range(n):
        for s in range(TILE):
            largest, total = share_ijS[i, 0, s], zero
            for j in range(1, n):
                largest = max(largest, share_ijS[i, j, s])
            for j in range(n):
                share_ijS[i, j, s] = np.exp(share_ijS[i, j, s] - largest)
                total += share_ijS[i, j, s]
            for j in range(n):
                share_ijS[i, j, s] /= total


@compiled
def balance(mix_ijS, sums_ZNS, eps):
    """Add eps, then divide columns and rows by their sums in turn; the sums are kept."""
    n, one = len(mix_ijS), mix_ijS.dtype.type(1)
    shrink_NS = np.empty((n, TILE), mix_ijS.dtype)
    mix_ijS += eps
    for z in range(len(sums_ZNS)):
        sums_NS = sums_ZNS[z]
        sums_NS[:] = eps
        for i in range(n):
            for j in range(n):
                k = j if z % 2 == 0 else i
                for s in range(TILE):
                    sums_NS[k, s] += mix_ijS[i, j, s]
        for k in range(n):
            for s in range(TILE):
                shrink_NS[k, s] = one / sums_NS[k, s]
        for i in range(n):
            for j in range(n):
                k = j if z % 2 == 0 else i
                for s in range(TILE):
                    mix_ijS[i, j, s] *= shrink_NS[k, s]


@compiled
def undo_division(mix_ijS, grad_ijS, sums_NS, of_columns, row_S):
    """From one iterate and its gradient to those before it was divided by these sums."""
    n, one = len(mix_ijS), mix_ijS.dtype.type(1)
    shrink_S = np.empty_like(row_S)
    for k in range(n):
        for s in range(TILE):
            row_S[s], shrink_S[s] = 0, one / sums_NS[k, s]
        for m in range(n):
            i, j = (m, k) if of_columns else (k, m)
            for s in range(TILE):
                row_S[s] += grad_ijS[i, j, s] * mix_ijS[i, j, s]
        for m in range(n):
            i, j = (m, k) if of_columns else (k, m)
            for s in range(TILE):
                grad_ijS[i, j, s] = (grad_ijS[i, j, s] - row_S[s]) * shrink_S[s]
                mix_ijS[i, j, s] *= sums_NS[k, s]
