"""What happens to a token by itself, in plain loops that numba compiles: all but attention. Nothing is approximate.

T tokens, of any sequences, end to end; N streams, D width, H heads, K head width, R rotary part, Q query rank, G output
groups, O rank per group, S channels, U index heads, Z index width, V vocabulary; i, j the old and the new stream of a
mix. Equation numbers are those of the report. Matrices are read once for all tokens, and each sum has one order: what a
token gets depends on nothing that stands beside it.
"""

import math

import numpy as np

from minidsv4.fast.compiled.expert_loops import experts
from minidsv4.fast.compiled.jit import as_written
from minidsv4.fast.compiled.numbers import as_of, exp, fma, sigmoid
from minidsv4.fast.compiled.row_tiles import one_by_one, product, put_product
from minidsv4.fast.compiled.tuples import Projected

# ---- norms and rotary positions -------------------------------------------------------------------------------------


@as_written
def inverse_rms(x_TK, eps):
    """`1 / sqrt(mean(x^2) + eps)` of each row [T]."""
    one = x_TK.dtype.type(1)
    squares_TS = np.empty((len(x_TK), 1), x_TK.dtype)
    for t in range(len(x_TK)):
        one_by_one(squares_TS, -t, x_TK, x_TK, 0, t, t)
        squares_TS[t, 0] = one / math.sqrt(squares_TS[t, 0] / as_of(x_TK.shape[1], one) + as_of(eps, one))
    return squares_TS[:, 0]


@as_written
def rms_norm(x_TK, weight_K, eps):
    """`weight * x / sqrt(mean(x^2) + eps)` of each row, in place; returns it."""
    scale_T = inverse_rms(x_TK, eps)
    for t in range(len(x_TK)):
        for k in range(len(weight_K)):
            x_TK[t, k] = x_TK[t, k] * scale_T[t] * weight_K[k]
    return x_TK


@as_written
def turns(position_T, freqs_R):
    """Cosine and sine of position * frequency [T, R/2], in the precision of the frequencies, as in the model."""
    shape = (len(position_T), len(freqs_R))
    cos_TR, sin_TR = np.empty(shape, freqs_R.dtype), np.empty(shape, freqs_R.dtype)
    for t in range(len(position_T)):
        for pair in range(len(freqs_R)):
            angle = as_of(position_T[t], freqs_R[pair]) * freqs_R[pair]
            cos_TR[t, pair], sin_TR[t, pair] = math.cos(angle), math.sin(angle)
    return cos_TR, sin_TR


@as_written
def rotate(x_HK, cos_TR, sin_TR, t, way):
    """Turn each pair of the last R channels of all rows by the angles of row t, in place; `way` -1 turns back."""
    start, way = x_HK.shape[1] - 2 * cos_TR.shape[1], as_of(way, x_HK[0, 0])
    for h in range(len(x_HK)):
        for pair in range(cos_TR.shape[1]):
            even, odd, sin = x_HK[h, start + 2 * pair], x_HK[h, start + 2 * pair + 1], way * sin_TR[t, pair]
            x_HK[h, start + 2 * pair] = even * cos_TR[t, pair] - odd * sin
            x_HK[h, start + 2 * pair + 1] = even * sin + odd * cos_TR[t, pair]


# ---- hyper-connections, equations (1) to (8) ------------------------------------------------------------------------


@as_written
def stream_logits(streams_TND, fn, eps):
    """`RMSNorm(a token's streams as one vector) fn^T` [T, S]; in eqs. (3)-(5)."""
    flat_TD = streams_TND.reshape(len(streams_TND), -1)
    scale_T, logits_TS = inverse_rms(flat_TD, eps), product(fn, flat_TD)
    for t in range(len(logits_TS)):
        for s in range(logits_TS.shape[1]):
            logits_TS[t, s] *= scale_T[t]
    return logits_TS


@as_written
def stream_maps(streams_TND, site, sizes):
    """(pre_TN, post_TN, carry_Tij) of one site: eqs. (3)-(8)."""
    n_tokens, n, _ = streams_TND.shape
    logits_TS = stream_logits(streams_TND, site.fn, sizes.rms_eps)
    pre_TN, post_TN = np.empty((n_tokens, n), logits_TS.dtype), np.empty((n_tokens, n), logits_TS.dtype)
    carry_Tij = np.empty((n_tokens, n, n), logits_TS.dtype)
    for t in range(n_tokens):
        for i in range(n):
            read, written = site.scale[0] * logits_TS[t, i], site.scale[1] * logits_TS[t, n + i]
            pre_TN[t, i] = sigmoid(read + site.base[i]) + as_of(sizes.hc_eps, read)  # eq. (6), and the released eps
            post_TN[t, i] = 2 * sigmoid(written + site.base[n + i])  # eq. (7)
            for j in range(n):
                place = (2 + i) * n + j
                carry_Tij[t, i, j] = site.scale[2] * logits_TS[t, place] + site.base[place]
        sinkhorn(carry_Tij, t, sizes.sinkhorn_iters, as_of(sizes.hc_eps, carry_Tij[t, 0, 0]))
    return pre_TN, post_TN, carry_Tij


@as_written
def sinkhorn(mix_Tij, t, iterations, eps):
    """Softmax of each row of matrix t, then columns and rows divided by their sums in turn, columns last; eq. (8).

    In place, and without cutting out a row, whose references would be counted (see `attention_loops`).
    """
    n = mix_Tij.shape[1]
    for i in range(n):
        largest = mix_Tij[t, i, 0]
        for j in range(n):
            largest = mix_Tij[t, i, j] if mix_Tij[t, i, j] > largest else largest
        for j in range(n):
            mix_Tij[t, i, j] = exp(mix_Tij[t, i, j] - largest)
    divide_rows(mix_Tij, t, as_of(0, eps))
    for i in range(n):
        for j in range(n):
            mix_Tij[t, i, j] += eps
    for step in range(iterations):
        if step:
            divide_rows(mix_Tij, t, eps)
        divide_columns(mix_Tij, t, eps)


@as_written
def divide_rows(mix_Tij, t, eps):
    """Each row of matrix t over its sum and eps, in place."""
    n = mix_Tij.shape[1]
    for i in range(n):
        total = eps
        for j in range(n):
            total += mix_Tij[t, i, j]
        share = as_of(1, total) / total
        for j in range(n):
            mix_Tij[t, i, j] *= share


@as_written
def divide_columns(mix_Tij, t, eps):
    """Each column of matrix t over its sum and eps, in place."""
    n = mix_Tij.shape[1]
    for j in range(n):
        total = eps
        for i in range(n):
            total += mix_Tij[t, i, j]
        share = as_of(1, total) / total
        for i in range(n):
            mix_Tij[t, i, j] *= share


@as_written
def read(streams_TND, pre_TN, norm_D, eps):
    """What a sub-layer reads [T, D]: sum_i pre_i X_i, A X of eq. (1), normed."""
    x_TD = np.zeros((len(streams_TND), streams_TND.shape[2]), streams_TND.dtype)
    for t in range(len(streams_TND)):
        for i in range(pre_TN.shape[1]):
            for d in range(x_TD.shape[1]):
                x_TD[t, d] = fma(pre_TN[t, i], streams_TND[t, i, d], x_TD[t, d])
    return rms_norm(x_TD, norm_D, eps)


@as_written
def write(streams_TND, y_TD, post_TN, carry_Tij):
    """X'_j = post_j y + sum_i carry[i, j] X_i, in place; eq. (1)."""
    old_ND = np.empty(streams_TND.shape[1:], streams_TND.dtype)
    for t in range(len(streams_TND)):
        for i in range(len(old_ND)):
            for d in range(y_TD.shape[1]):
                old_ND[i, d] = streams_TND[t, i, d]
        for j in range(len(old_ND)):
            for d in range(y_TD.shape[1]):
                streams_TND[t, j, d] = post_TN[t, j] * y_TD[t, d]
            for i in range(len(old_ND)):
                for d in range(y_TD.shape[1]):
                    streams_TND[t, j, d] = fma(carry_Tij[t, i, j], old_ND[i, d], streams_TND[t, j, d])


# ---- attention, before and after a token looks at others; equations (9), (10), (13) to (15), (18) to (25) -----------


@as_written
def project_in(x_TD, position_T, attn, sizes):
    """`Projected` of normed tokens; no index queries where every token reads all entries that it sees."""
    cos_TR, sin_TR = turns(position_T, attn.freqs_R)
    latent_TQ = rms_norm(product(attn.wq_a, x_TD), attn.q_norm, sizes.rms_eps)  # eqs. (13), (24)
    query_THK = product(attn.wq_b, latent_TQ).reshape(len(x_TD), sizes.heads, -1)  # eqs. (18), (25)
    entry_TK = rms_norm(product(attn.wkv, x_TD), attn.kv_norm, sizes.rms_eps)
    scale_K = np.full(query_THK.shape[2], query_THK.shape[2] ** -0.5, x_TD.dtype)  # of the dot products
    for t in range(len(x_TD)):
        rms_norm(query_THK[t], scale_K, sizes.rms_eps)
        rotate(query_THK[t], cos_TR, sin_TR, t, 1)
        rotate(entry_TK[t : t + 1], cos_TR, sin_TR, t, 1)
    main_TS = compressor_series(x_TD, attn.main_wkv, attn.main_wgate)
    keys_TS = compressor_series(x_TD, attn.keys_wkv, attn.keys_wgate)
    index = index_queries(x_TD, latent_TQ, position_T, cos_TR, sin_TR, attn, sizes)
    return Projected(query_THK, entry_TK, main_TS, keys_TS, index[0], index[1], cos_TR, sin_TR)


@as_written
def compressor_series(x_TD, wkv, wgate):
    """Values, then gates, of each token [T, S]; nothing where the layer has no such compressor."""
    n_series = len(wkv)
    series_TS = np.empty((len(x_TD), 2 * n_series), x_TD.dtype)
    put_product(series_TS, 0, wkv, x_TD, 0)  # eqs. (9), (20)
    put_product(series_TS, n_series, wgate, x_TD, 0)  # eqs. (10), (21)
    return series_TS


@as_written
def index_queries(x_TD, latent_TQ, position_T, cos_TR, sin_TR, attn, sizes):
    """Index queries [T, U, Z] and head weights [T, U]; none where nobody has to choose; eqs. (14), (15)."""
    ratio, n_heads, width = attn.index_ratio, sizes.index_heads, len(attn.index_signs)
    newest = 0
    for position in position_T:
        newest = max(newest, position)
    if ratio == 0 or (newest + 1) // ratio <= sizes.index_topk:
        return np.empty((0, n_heads, width), x_TD.dtype), np.empty((0, n_heads), x_TD.dtype)
    query_TUZ = product(attn.index_wq_b, latent_TQ).reshape(len(x_TD), n_heads, width)
    for t in range(len(x_TD)):
        rotate(query_TUZ[t], cos_TR, sin_TR, t, 1)
    turned_TUZ = hadamard(query_TUZ.reshape(-1, width), attn.index_signs).reshape(query_TUZ.shape)
    weight_TU = product(attn.index_weights_proj, x_TD)
    scale = as_of((width * n_heads) ** -0.5, weight_TU[0, 0])
    for t in range(len(x_TD)):
        for u in range(n_heads):
            weight_TU[t, u] *= scale
    return turned_TUZ, weight_TU


@as_written
def hadamard(x_TZ, signs):
    """x times the orthonormal Walsh-Hadamard matrix; `signs` is the identity where the width is no power of two."""
    width = len(signs)
    out_TZ = product(signs, x_TZ)
    if width & (width - 1) == 0:
        scale = as_of(width**-0.5, out_TZ[0, 0])
        for t in range(len(out_TZ)):
            for z in range(width):
                out_TZ[t, z] *= scale
    return out_TZ


@as_written
def project_out(out_THK, wo_a, wo_b, groups):
    """Heads in G groups, each to O channels, all of them to the model width [T, D]."""
    flat_TK = out_THK.reshape(len(out_THK), -1)
    rank, width = len(wo_a) // groups, flat_TK.shape[1] // groups
    latent_TO = np.empty((len(out_THK), len(wo_a)), out_THK.dtype)
    for g in range(groups):
        put_product(latent_TO, g * rank, wo_a[g * rank : (g + 1) * rank], flat_TK, g * width)
    return product(wo_b, latent_TO)


# ---- a block's parts, and the head ----------------------------------------------------------------------------------


@as_written
def enter(streams_TND, position_T, weights, sizes):
    """What attention makes of each token by itself, and how its output is written: `Projected`, post_TN, carry_Tij."""
    pre_TN, post_TN, carry_Tij = stream_maps(streams_TND, weights.site, sizes)
    x_TD = read(streams_TND, pre_TN, weights.norm, sizes.rms_eps)
    return project_in(x_TD, position_T, weights, sizes), post_TN, carry_Tij


@as_written
def leave(streams_TND, out_THK, post_TN, carry_Tij, token_T, weights, sizes):
    """Write attention's output, then the experts'; the streams change in place."""
    y_TD = project_out(out_THK, weights.wo_a, weights.wo_b, sizes.groups)
    write(streams_TND, y_TD, post_TN, carry_Tij)
    pre_TN, post_TN, carry_Tij = stream_maps(streams_TND, weights.site, sizes)
    x_TD = read(streams_TND, pre_TN, weights.norm, sizes.rms_eps)
    write(streams_TND, experts(x_TD, token_T, weights.experts, sizes), post_TN, carry_Tij)


@as_written
def logits(streams_TND, site, norm_D, head_VD, sizes):
    """Collapse, norm, vocabulary head [T, V]."""
    gate_TN = stream_logits(streams_TND, site.fn, sizes.rms_eps)
    for t in range(len(gate_TN)):
        for i in range(gate_TN.shape[1]):
            gate = site.scale[0] * gate_TN[t, i] + site.base[i]
            gate_TN[t, i] = sigmoid(gate) + as_of(sizes.hc_eps, gate)
    return product(head_VD, read(streams_TND, gate_TN, norm_D, sizes.rms_eps))
