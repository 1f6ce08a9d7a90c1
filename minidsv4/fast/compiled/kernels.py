"""One token through one block, in plain loops that numba compiles: the model's own arithmetic, nothing approximate.

D width, N streams, H heads, K head width, R rotary part, Q query rank, G output groups, O rank per group, S slots or
entries, C compressed entries, M tokens per entry, U index heads, Z index width, E experts, A active experts, V
vocabulary; i, j the old and the new stream of a mix. It reads like `paper.py`, for a single token: equation numbers are
those of the report. A part that a layer does not have is an empty array, so that one compiled `block` serves all kinds.
The loops call no library, so what they cost is what they read.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from minidsv4.fast.compiled.jit import compiled
from minidsv4.fast.compiled.top_entries_loops import pick_share

SOFTPLUS_LINEAR = 20.0  # beyond it softplus(x) is x, as in torch


class Sizes(NamedTuple):
    """The numbers of a config that the loops need."""

    heads: int
    groups: int
    index_heads: int
    index_topk: int
    active: int
    sinkhorn_iters: int
    rms_eps: float
    hc_eps: float
    route_scale: float
    swiglu_limit: float


class Site(NamedTuple):
    """One hyper-connection, or the head's collapse: `fn`, `base` and `scale` as in `HyperConnection`."""

    fn: ndarray
    base: ndarray
    scale: ndarray


class Compressor(NamedTuple):
    """The weights of one compressor: [halves K, D] twice, [M, halves K], [K]."""

    wkv: ndarray
    wgate: ndarray
    ape: ndarray
    norm: ndarray


class Attention(NamedTuple):
    """The weights of one attention layer, its compressor, and its indexer."""

    wq_a: ndarray
    q_norm: ndarray
    wq_b: ndarray
    wkv: ndarray
    kv_norm: ndarray
    wo_a: ndarray
    wo_b: ndarray
    sinks_H: ndarray
    freqs_R: ndarray  # [R/2], radians per token
    main: Compressor
    index_wq_b: ndarray
    index_weights_proj: ndarray
    index_signs: ndarray  # Hadamard
    index: Compressor


class Experts(NamedTuple):
    """Router and experts; of the router's `bias_E` and `table_VA` one is empty."""

    router: ndarray
    bias_E: ndarray
    table_VA: ndarray
    shared_w1: ndarray
    shared_w2: ndarray
    shared_w3: ndarray
    w13: ndarray  # [E, 2 F, D]
    w2: ndarray  # [E, D, F]


class Layer(NamedTuple):
    """All weights of one block."""

    hc_attn: Site
    hc_ffn: Site
    attn_norm: ndarray
    ffn_norm: ndarray
    attn: Attention
    ffn: Experts


class CompressorCache(NamedTuple):
    """What one compressor has cached, with room for what this token adds.

    open_SK     raw rows of the open window, the last one to be filled
    before_MK   the previous window's half; empty before there is one, and in HCA
    after_MK    to be filled with this window's half when it closes; otherwise empty
    entries_CK  finished entries, the last one to be filled when the window closes
    """

    open_SK: ndarray
    before_MK: ndarray
    after_MK: ndarray
    entries_CK: ndarray


class LayerCache(NamedTuple):
    """What one layer has cached: the window, this token's entry to be filled at its end, and its compressors."""

    window_SK: ndarray
    main: CompressorCache
    index: CompressorCache


# ---- products ------------------------------------------------------------------------------------------------------


@compiled
def fill_product(out, weight, x):
    """out = weight @ x: one sum over each row."""
    for row in range(len(weight)):
        total = x.dtype.type(0)
        for column in range(len(x)):
            total += weight[row, column] * x[column]
        out[row] = total


@compiled
def product(weight, x):
    """weight @ x."""
    out = np.empty(len(weight), x.dtype)
    fill_product(out, weight, x)
    return out


@compiled
def add_rows(out, weight, x):
    """out += x @ weight: the rows of the matrix, each as often as x says."""
    for row in range(len(weight)):
        for column in range(len(out)):
            out[column] += x[row] * weight[row, column]


@compiled
def fill(out, x):
    """out = x."""
    for place in range(len(out)):
        out[place] = x[place]


# ---- norms and rotary positions ------------------------------------------------------------------------------------


@compiled
def unit_rms(x, eps):
    """x / sqrt(mean(x^2) + eps)."""
    total = 0.0
    for value in x:
        total += value * value
    return x * x.dtype.type(1 / math.sqrt(total / len(x) + eps))


@compiled
def turns(position, freqs_R, like):
    """Cosine and sine of position * frequency, in the precision of `like` throughout, as in the model."""
    cos_R, sin_R = np.empty(len(freqs_R), like.dtype), np.empty(len(freqs_R), like.dtype)
    for pair in range(len(freqs_R)):
        angle = like.dtype.type(position) * freqs_R[pair]
        cos_R[pair], sin_R[pair] = math.cos(angle), math.sin(angle)
    return cos_R, sin_R


@compiled
def rotate(x_K, cos_R, sin_R):
    """Turn each pair of the last R channels in place; with -sin_R it is turned back."""
    start = len(x_K) - 2 * len(cos_R)
    for pair in range(len(cos_R)):
        even, odd = x_K[start + 2 * pair], x_K[start + 2 * pair + 1]
        x_K[start + 2 * pair] = even * cos_R[pair] - odd * sin_R[pair]
        x_K[start + 2 * pair + 1] = even * sin_R[pair] + odd * cos_R[pair]


# ---- hyper-connections, equations (1) to (8) -----------------------------------------------------------------------


@compiled
def sigmoid(x):
    """1 / (1 + exp(-x)) of one number."""
    return 1 / (1 + math.exp(-x))


@compiled
def stream_maps(streams_ND, site, sizes):
    """(pre_N, post_N, carry_NN) of one site: eqs. (3)-(8)."""
    n = len(streams_ND)
    raw = product(site.fn, unit_rms(streams_ND.reshape(-1), sizes.rms_eps))
    pre_N, post_N, carry_NN = np.empty(n, raw.dtype), np.empty(n, raw.dtype), np.empty((n, n), raw.dtype)
    for i in range(n):
        pre_N[i] = sigmoid(site.scale[0] * raw[i] + site.base[i]) + sizes.hc_eps  # eq. (6), and the released eps
        post_N[i] = 2 * sigmoid(site.scale[1] * raw[n + i] + site.base[n + i])  # eq. (7)
        for j in range(n):
            place = (2 + i) * n + j
            carry_NN[i, j] = site.scale[2] * raw[place] + site.base[place]
    sinkhorn(carry_NN, sizes.sinkhorn_iters, sizes.hc_eps)
    return pre_N, post_N, carry_NN


@compiled
def sinkhorn(mix_NN, iterations, eps):
    """Softmax of each row, then columns and rows divided by their sums in turn, columns last, in place; eq. (8)."""
    n = len(mix_NN)
    for i in range(n):
        softmax(mix_NN[i])
        for j in range(n):
            mix_NN[i, j] += eps
    for step in range(iterations):
        for i in range(n if step else 0):
            total = eps
            for j in range(n):
                total += mix_NN[i, j]
            for j in range(n):
                mix_NN[i, j] /= total
        for j in range(n):
            total = eps
            for i in range(n):
                total += mix_NN[i, j]
            for i in range(n):
                mix_NN[i, j] /= total


@compiled
def softmax(x):
    """exp(x) over its sum, in place."""
    largest, total = np.max(x), 0.0
    for place in range(len(x)):
        x[place] = math.exp(x[place] - largest)
        total += x[place]
    share = x.dtype.type(1 / total)
    for place in range(len(x)):
        x[place] *= share


@compiled
def collapse(streams_ND, pre_N):
    """sum_i pre_i X_i: what a sub-layer reads, A X of eq. (1)."""
    x_D = np.zeros(streams_ND.shape[1], streams_ND.dtype)
    add_rows(x_D, streams_ND, pre_N)
    return x_D


@compiled
def write(streams_ND, y_D, post_N, carry_NN):
    """X'_j = post_j y + sum_i carry[i, j] X_i, in place; eq. (1)."""
    old_ND = streams_ND.copy()
    for j in range(len(streams_ND)):
        for d in range(len(y_D)):
            streams_ND[j, d] = post_N[j] * y_D[d]
        add_rows(streams_ND[j], old_ND, carry_NN[:, j].copy())


# ---- compression, equations (9) to (12) and (20) to (23) -----------------------------------------------------------


@compiled
def compress(x_D, weights, cache, freqs_R, eps):
    """Take a token into the open window; True when that closes it and `entries_CK[-1]` is the new entry."""
    n_series, (ratio, width) = len(weights.wkv), (len(weights.ape), len(weights.norm))
    fill_product(cache.open_SK[-1, :n_series], weights.wkv, x_D)  # eqs. (9), (20)
    fill_product(cache.open_SK[-1, n_series:], weights.wgate, x_D)  # eqs. (10), (21)
    if len(cache.open_SK) < ratio:
        return False
    values, gates = slots(weights.ape, width, cache)
    entry_K = unit_rms(pool(values, gates), eps) * weights.norm
    cos_R, sin_R = turns((len(cache.entries_CK) - 1) * ratio, freqs_R, x_D)
    rotate(entry_K, cos_R, sin_R)
    fill(cache.entries_CK[-1], entry_K)
    return True


@compiled
def slots(ape, width, cache):
    """Values and gates (S, K) that one entry pools: the M tokens of its window, and in CSA the M of the one before.

    A row of the series holds values, then gates; in CSA each of them for the next window, then for its own.
    """
    ratio, n_series = ape.shape  # K series in HCA, 2 K in CSA
    n_before, own = len(cache.before_MK), n_series - width
    values, gates = np.empty((ratio + n_before, width), ape.dtype), np.empty((ratio + n_before, width), ape.dtype)
    for m in range(ratio):
        row = cache.open_SK[m]
        for k in range(width):
            values[m, k], gates[m, k] = row[own + k], row[n_series + own + k] + ape[m, own + k]
    for m in range(n_before):  # nothing for the first window
        for k in range(width):
            values[ratio + m, k], gates[ratio + m, k] = cache.before_MK[m, k], cache.before_MK[m, width + k] + ape[m, k]
    for m in range(len(cache.after_MK)):  # what the next window will find before it
        for k in range(width):
            cache.after_MK[m, k], cache.after_MK[m, width + k] = cache.open_SK[m, k], cache.open_SK[m, n_series + k]
    return values, gates


@compiled
def pool(values, gates):
    """sum_s softmax_s(gate) * value, channel by channel; eqs. (11), (12), (22), (23)."""
    n_slots, width = values.shape
    largest_K = gates[0].copy()
    for slot in range(n_slots):
        for k in range(width):
            largest_K[k] = max(largest_K[k], gates[slot, k])
    total_K, entry_K = np.zeros(width, values.dtype), np.zeros(width, values.dtype)
    for slot in range(n_slots):
        for k in range(width):
            share = math.exp(gates[slot, k] - largest_K[k])
            total_K[k] += share
            entry_K[k] += share * values[slot, k]
    return entry_K / total_K


# ---- the indexer, equations (14) to (17) ----------------------------------------------------------------------------


@compiled
def add_key(x_D, attn, cache, eps):
    """Take a token into the indexer's compressor, whose entries are turned by Hadamard."""
    if compress(x_D, attn.index, cache, attn.freqs_R, eps):
        fill(cache.entries_CK[-1], hadamard(cache.entries_CK[-1], attn.index_signs))


@compiled
def hadamard(x_Z, signs):
    """x times the orthonormal Walsh-Hadamard matrix; `signs` is the identity where the width is no power of two."""
    width = len(signs)
    return product(signs, x_Z) * x_Z.dtype.type(1.0 if width & (width - 1) else width**-0.5)


@compiled
def pick_entries(x_D, latent_Q, cos_R, sin_R, attn, key_CZ, sizes):
    """The entries that this token reads; eqs. (14)-(17)."""
    n_heads, width = sizes.index_heads, key_CZ.shape[1]
    query_UZ = product(attn.index_wq_b, latent_Q).reshape(n_heads, width)
    for u in range(n_heads):
        rotate(query_UZ[u], cos_R, sin_R)
        fill(query_UZ[u], hadamard(query_UZ[u], attn.index_signs))
    weight_U = product(attn.index_weights_proj, x_D) * x_D.dtype.type((width * n_heads) ** -0.5)
    picks_P, first, stop = np.empty(sizes.index_topk, np.int64), np.array([0]), np.array([len(key_CZ)])
    pick_share(query_UZ[None], weight_U[None], first, stop, picks_P.reshape(1, -1), key_CZ)
    return picks_P


# ---- attention, equations (13), (18), (19) and (24) to (27) --------------------------------------------------------


@compiled
def attention(x_D, position, attn, cache, sizes):
    """Attention output (D,) of the token, which its window and its compressors take in."""
    cos_R, sin_R = turns(position, attn.freqs_R, x_D)
    latent_Q = unit_rms(product(attn.wq_a, x_D), sizes.rms_eps) * attn.q_norm  # eqs. (13), (24)
    query_HK = product(attn.wq_b, latent_Q).reshape(sizes.heads, -1)  # eqs. (18), (25)
    entry_K = unit_rms(product(attn.wkv, x_D), sizes.rms_eps) * attn.kv_norm
    rotate(entry_K, cos_R, sin_R)
    fill(cache.window_SK[-1], entry_K)
    attended_CK = attended_entries(x_D, latent_Q, cos_R, sin_R, attn, cache, sizes)
    out_HK = np.zeros_like(query_HK)
    for h in range(sizes.heads):
        query_K = unit_rms(query_HK[h], sizes.rms_eps)
        rotate(query_K, cos_R, sin_R)
        attend(out_HK[h], query_K, cache.window_SK, attended_CK, attn.sinks_H[h])
        rotate(out_HK[h], cos_R, -sin_R)  # values carry their position: turn it back
    return project(out_HK.reshape(sizes.groups, -1), attn)


@compiled
def attended_entries(x_D, latent_Q, cos_R, sin_R, attn, cache, sizes):
    """The finished entries that the token reads: none, all (HCA), or those picked (CSA)."""
    every_CK = cache.main.entries_CK
    if len(attn.main.ape):
        compress(x_D, attn.main, cache.main, attn.freqs_R, sizes.rms_eps)
    if len(attn.index.ape):
        add_key(x_D, attn, cache.index, sizes.rms_eps)
    if len(attn.index.ape) == 0 or len(every_CK) <= sizes.index_topk:
        return every_CK
    picked = pick_entries(x_D, latent_Q, cos_R, sin_R, attn, cache.index.entries_CK, sizes)
    attended_CK = np.empty((len(picked), every_CK.shape[1]), x_D.dtype)
    for place in range(len(picked)):
        fill(attended_CK[place], every_CK[picked[place]])
    return attended_CK


@compiled
def attend(out_K, query_K, window_SK, attended_CK, sink):
    """out += softmax([q . window, q . attended, sink]) @ [window, attended, 0] of one head; eqs. (19), (26), (27)."""
    n_window, n_attended = len(window_SK), len(attended_CK)
    query_K = query_K * query_K.dtype.type(len(query_K) ** -0.5)
    score = np.empty(n_window + n_attended + 1, query_K.dtype)
    fill_product(score[:n_window], window_SK, query_K)
    fill_product(score[n_window:-1], attended_CK, query_K)
    score[-1] = sink
    softmax(score)
    add_rows(out_K, window_SK, score[:n_window])
    add_rows(out_K, attended_CK, score[n_window:-1])


@compiled
def project(out_GK, attn):
    """Heads in G groups, each to O channels, all of them to the model width."""
    rank = len(attn.wo_a) // len(out_GK)
    latent = np.empty(len(attn.wo_a), out_GK.dtype)
    for g in range(len(out_GK)):
        part = slice(g * rank, (g + 1) * rank)
        fill_product(latent[part], attn.wo_a[part], out_GK[g])
    return product(attn.wo_b, latent)


# ---- experts -------------------------------------------------------------------------------------------------------


@compiled
def experts(x_D, token, ffn, sizes):
    """shared(x) + sum over the routed experts of weight * expert(x)."""
    inner = len(ffn.shared_w1)
    score_E = product(ffn.router, x_D)
    for e in range(len(score_E)):
        score_E[e] = math.sqrt(softplus(score_E[e]))
    picked = ffn.table_VA[token] if len(ffn.table_VA) else stable_topk(score_E + ffn.bias_E, sizes.active)
    total = 1e-20
    for e in picked:
        total += score_E[e]
    out_D = product(ffn.shared_w2, swiglu(product(ffn.shared_w1, x_D), product(ffn.shared_w3, x_D), sizes.swiglu_limit))
    for e in picked:
        gate, up = product(ffn.w13[e, :inner], x_D), product(ffn.w13[e, inner:], x_D)
        weight = x_D.dtype.type(sizes.route_scale * score_E[e] / total)
        out_D += product(ffn.w2[e], swiglu(gate, up, sizes.swiglu_limit) * weight)
    return out_D


@compiled
def stable_topk(score, k):
    """Places of the k largest, best first; among equal ones the lower place wins."""
    best, place = np.empty(k, score.dtype), np.empty(k, np.int64)
    for c in range(len(score)):
        if c >= k and score[c] <= best[k - 1]:
            continue
        rank = min(c, k - 1)
        while rank > 0 and score[c] > best[rank - 1]:  # those that it passes move down, the last one out
            best[rank], place[rank] = best[rank - 1], place[rank - 1]
            rank -= 1
        best[rank], place[rank] = score[c], c
    return place


@compiled
def softplus(x):
    """log(1 + exp(x)) of one number."""
    return x if x > SOFTPLUS_LINEAR else math.log1p(math.exp(x))


@compiled
def swiglu(gate, up, limit):
    """silu(min(gate, limit)) * clip(up, -limit, limit)."""
    out = np.empty_like(gate)
    for f in range(len(gate)):
        held = min(gate[f], limit)
        out[f] = held * sigmoid(held) * min(max(up[f], -limit), limit)
    return out


# ---- a block, and the head -----------------------------------------------------------------------------------------


@compiled
def block(streams_ND, token, position, layer, cache, sizes):
    """One block in place: `streams -> read -> norm -> attention -> write -> read -> norm -> experts -> write`."""
    pre_N, post_N, carry_NN = stream_maps(streams_ND, layer.hc_attn, sizes)
    x_D = unit_rms(collapse(streams_ND, pre_N), sizes.rms_eps) * layer.attn_norm
    write(streams_ND, attention(x_D, position, layer.attn, cache, sizes), post_N, carry_NN)
    pre_N, post_N, carry_NN = stream_maps(streams_ND, layer.hc_ffn, sizes)
    x_D = unit_rms(collapse(streams_ND, pre_N), sizes.rms_eps) * layer.ffn_norm
    write(streams_ND, experts(x_D, token, layer.ffn, sizes), post_N, carry_NN)


@compiled
def logits(streams_ND, site, norm, head, sizes):
    """Collapse, norm, vocabulary head: (V,)."""
    gate_N = product(site.fn, unit_rms(streams_ND.reshape(-1), sizes.rms_eps))
    for i in range(len(gate_N)):
        gate_N[i] = sigmoid(site.scale[0] * gate_N[i] + site.base[i]) + sizes.hc_eps
    return product(head, unit_rms(collapse(streams_ND, gate_N), sizes.rms_eps) * norm)
