"""The numbered equations (1) to (29) of the DeepSeek-V4 report, in plain loops and float64: the definition.

Every fast part of the model is tested against this file. Loops run over tokens, windows, heads, experts and streams;
NumPy acts only along the innermost (channel) axis. `EQUATIONS` maps each number to its function; what the report
states without a number (RoPE, routing, experts, head collapse, MTP input, ...) has a function too.

Letters: T tokens, D model width, H query heads, K head width, Q query rank, W window, M tokens per entry, S and C
entries, U index heads, Z index width, E experts, A active experts, F expert width, N streams, V vocabulary.
Numbering: the report spreads the maps of the constrained hyper-connections over (2)-(8); here (2) is the constraint
on B, (3)-(5) the three raw maps, (6) and (7) the bounded A and C, (8) Sinkhorn. Equations that CSA and HCA share, (13)
and (24), (18) and (25), (19) and (26), share a function.
Where report and released code differ, an argument says which is meant; the default is what was released.
Weights are [out, in] arrays under their released names (`attn.wq_a.weight`, `hc_attn_fn`, `ffn.gate.bias`, ...).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# ---- small helpers -------------------------------------------------------------------------------------------------


def project(x_TD, weight):
    """y_t = weight x_t for every token; weight (out, D), returns (T, out)."""
    return np.array([weight @ x_D for x_D in x_TD]).reshape(len(x_TD), len(weight))


def rms_norm(x_D, weight=None, eps=1e-6):
    """x / sqrt(mean(x^2) + eps), times weight (D,) where there is one; one vector in, one out."""
    normed = x_D / math.sqrt(np.mean(x_D * x_D) + eps)
    return normed if weight is None else normed * weight


def sigmoid(x):
    """1 / (1 + exp(-x)), elementwise, safe for large |x|."""
    return np.exp(-np.logaddexp(0.0, -x))


def log_softmax(logits_V):
    """logits - log(sum(exp(logits))), one vector."""
    return logits_V - np.logaddexp.reduce(logits_V)


def parameters_under(params, prefix):
    """The tensors whose names begin with prefix, the prefix removed; e.g. `layers.0.attn.`."""
    return {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}


def _is_report(name, value):
    if value not in ("released", "report"):
        raise ValueError(f"{name} is {value!r}; it must be 'released' or 'report'")
    return value == "report"


# ---- rotary positions ----------------------------------------------------------------------------------------------


def rope_frequencies(n_rotary, base, scaling=None):
    """f_i = base^(-2i/R); with YaRN f_i (1 - ramp_i) + f_i / factor ramp_i, and no change of amplitude.

    n_rotary  R, even
    base      10000 in window layers, 160000 in CSA and HCA layers
    scaling   None, or YaRN's factor, original_max_position_embeddings, beta_fast and beta_slow
    returns   (R/2,) radians per position
    """
    freqs = np.array([base ** (-2 * i / n_rotary) for i in range(n_rotary // 2)])
    if scaling is None:
        return freqs
    low, high = yarn_range(n_rotary, base, scaling)
    for i in range(n_rotary // 2):
        ramp = min(max((i - low) / (high - low), 0.0), 1.0)
        freqs[i] = freqs[i] * (1 - ramp) + freqs[i] / scaling.factor * ramp
    return freqs


def yarn_range(n_rotary, base, scaling):
    """The pairs (low, high) between which YaRN fades from kept to divided frequencies.

    corr(beta) = R ln(original / (2 pi beta)) / (2 ln base), rounded down for beta_fast and up for beta_slow.
    """
    length = scaling.original_max_position_embeddings

    def correction(beta):
        return n_rotary * math.log(length / (2 * math.pi * beta)) / (2 * math.log(base))

    low = max(math.floor(correction(scaling.beta_fast)), 0)
    high = min(math.ceil(correction(scaling.beta_slow)), n_rotary - 1)
    return low, high + 0.001 if low == high else high


def rotate(x_K, position, freqs, inverse=False):
    """Turn each pair (2i, 2i+1) of the last R channels by position * freqs[i] radians, or back when inverse.

    x_K (K,), freqs (R/2,); returns (K,). The first K - R channels stay as they are.
    """
    start, turned = len(x_K) - 2 * len(freqs), x_K.copy()
    for i, freq in enumerate(freqs):
        angle = -position * freq if inverse else position * freq
        even, odd = x_K[start + 2 * i], x_K[start + 2 * i + 1]
        turned[start + 2 * i] = even * math.cos(angle) - odd * math.sin(angle)
        turned[start + 2 * i + 1] = even * math.sin(angle) + odd * math.cos(angle)
    return turned


def layer_frequencies(kind, config):
    """RoPE of a whole layer: queries, entries, index queries and keys, and the turn back of the output."""
    if kind == "WINDOW":
        return rope_frequencies(config.qk_rope_head_dim, config.rope_theta)
    return rope_frequencies(config.qk_rope_head_dim, config.compress_rope_theta, config.rope_scaling)


# ---- hyper-connections, equations (1) to (8) -----------------------------------------------------------------------


def hyper_connection(streams_TND, maps, layer):
    """Eq. (1): X' = B X + C F(A X), with B = carry^T: X'_j = post_j y + sum_i carry[i, j] X_i.

    streams_TND  (T, N, D)
    maps         one (pre_N, post_N, carry_NN) per token: A, C and the mix from old stream i to new stream j
    layer        F, a function (T, D) -> (T, D)
    returns      (T, N, D)
    """
    n_streams = streams_TND.shape[1]
    x_TD = [sum(pre[i] * streams_TND[t, i] for i in range(n_streams)) for t, (pre, _, _) in enumerate(maps)]
    y_TD = layer(np.array(x_TD))
    new_TND = np.zeros_like(streams_TND)
    for t, (_, post, carry) in enumerate(maps):
        for j in range(n_streams):
            new_TND[t, j] = post[j] * y_TD[t]
            for i in range(n_streams):
                new_TND[t, j] += carry[i, j] * streams_TND[t, i]
    return new_TND


def birkhoff_distance(mix_NN):
    """Eq. (2): B is to have no negative entry and rows and columns that sum to 1; returns the largest violation."""
    row_errors = [abs(sum(row) - 1) for row in mix_NN]
    column_errors = [abs(sum(column) - 1) for column in mix_NN.T]
    return max(*row_errors, *column_errors, -np.min(mix_NN))


def raw_maps(streams_ND, fn, base, scale, eps=1e-6):
    """Eqs. (3)-(5): alpha * (xhat W) + S for the read, write and mix maps, with xhat = RMSNorm(vec(X)), weight-free.

    streams_ND  (N, D), flattened stream after stream
    fn          ((2 + N) N, N D), rows in the order pre, post, mix (the mix row by row: [old, new])
    base        ((2 + N) N,) the static biases S;  scale (3,) the alphas of pre, post, mix
    returns     (pre (N,), post (N,), mix logits (N, N) as [old, new])
    """
    n = len(streams_ND)
    mapped = fn @ rms_norm(streams_ND.reshape(-1), eps=eps)
    pre = scale[0] * mapped[:n] + base[:n]
    post = scale[1] * mapped[n : 2 * n] + base[n : 2 * n]
    mix = scale[2] * mapped[2 * n :] + base[2 * n :]
    return pre, post, mix.reshape(n, n)


def read_weights(raw_N, eps=1e-6, form="released"):
    """Eq. (6): A = sigmoid(raw); the released code adds eps, the report does not. (N,) -> (N,)."""
    return sigmoid(raw_N) + (0.0 if _is_report("form", form) else eps)


def write_weights(raw_N):
    """Eq. (7): C = 2 sigmoid(raw), which is 1 at a raw value of 0. (N,) -> (N,)."""
    return 2 * sigmoid(raw_N)


def sinkhorn(raw_NN, iterations=20, eps=1e-6, form="released"):
    """Eq. (8): M <- T_r(T_c(M)), read on B = carry^T, until rows and columns of carry sum to about 1.

    raw_NN      logits [old i, new j]
    form        "released": softmax over j plus eps, divide by column sums, then iterations - 1 times by row and by
                column sums, eps added to every divisor; "report": exp, then iterations times by row and by column sums
    returns     carry (N, N) as [old, new] in both forms; its columns are the last to be normalised
    """
    eps = 0.0 if _is_report("form", form) else eps
    n = len(raw_NN)
    # Subtracting the row maximum changes nothing in either form: both divide by the row sum first.
    mix = np.array([np.exp(row - np.max(row)) for row in raw_NN])
    for step in range(iterations):
        for i in range(n):
            # The first row step of the released form is a softmax: eps is added after it, not to the divisor.
            mix[i] = mix[i] / sum(mix[i]) + eps if step == 0 else mix[i] / (sum(mix[i]) + eps)
        for j in range(n):
            mix[:, j] = mix[:, j] / (sum(mix[:, j]) + eps)
    return mix


def stream_maps(streams_TND, params, site, config, form="released"):
    """(pre, post, carry) of every token, (3)-(8), from `hc_<site>_fn`, `_base`, `_scale`; site is "attn" or "ffn"."""
    maps = []
    for streams_ND in streams_TND:
        names = [f"hc_{site}_{part}" for part in ("fn", "base", "scale")]
        pre, post, mix = raw_maps(streams_ND, *[params[name] for name in names], config.rms_norm_eps)
        carry_NN = sinkhorn(mix, config.hc_sinkhorn_iters, config.hc_eps, form)
        maps.append((read_weights(pre, config.hc_eps, form), write_weights(post), carry_NN))
    return maps


def head_collapse(streams_ND, fn, base, scale, hc_eps=1e-6, eps=1e-6):
    """h = sum_i a_i X_i, a = sigmoid(scale (xhat fn) + base) + hc_eps; fn (N, N D), base (N,), scale (1,) -> (D,)."""
    gate_N = sigmoid(scale * (fn @ rms_norm(streams_ND.reshape(-1), eps=eps)) + base) + hc_eps
    return sum(gate_N[i] * streams_ND[i] for i in range(len(streams_ND)))


# ---- compression, equations (9) to (12) and (20) to (23) -----------------------------------------------------------


def csa_series(x_TD, weight):
    """Eq. (9) with `wkv`, the values C^a and C^b; eq. (10) with `wgate`, the gates Z^a and Z^b.

    weight (2K, D): its SECOND half is series a, used while the token's window is the current one; its FIRST half is
    series b, used when that window has become the previous one. Returns (current_TK, previous_TK).
    """
    both = project(x_TD, weight)
    half = both.shape[1] // 2
    return both[:, half:], both[:, :half]


def slot_softmax(logits_SK):
    """Softmax over slots, for each channel on its own; a slot at -inf gets weight 0. (S, K) -> (S, K)."""
    largest_K = np.max(logits_SK, axis=0)
    total_K = sum(np.exp(slot - largest_K) for slot in logits_SK)
    return np.array([np.exp(slot - largest_K) / total_K for slot in logits_SK])


def csa_slot_weights(current_TK, previous_TK, ape, window):
    """Eq. (11): softmax over 2M slots of gate + ape; slots 0..M-1 are the previous window, M..2M-1 the current one.

    current_TK, previous_TK  the two gate series; ape (M, 2K), its first half for the previous window
    window                   index i of the current window; window 0 has no previous one: its logits are -inf
    returns                  (2M, K)
    """
    m, width = len(ape), ape.shape[1] // 2
    logits = np.full((2 * m, width), -np.inf)
    for slot in range(m):
        if window > 0:
            logits[slot] = previous_TK[m * (window - 1) + slot] + ape[slot, :width]
        logits[m + slot] = current_TK[m * window + slot] + ape[slot, width:]
    return slot_softmax(logits)


def csa_entry(weights, current_TK, previous_TK, window):
    """Eq. (12): the weighted sum of the window's values and of the previous window's. weights (2M, K) -> (K,)."""
    m = len(weights) // 2
    entry_K = sum(weights[m + slot] * current_TK[m * window + slot] for slot in range(m))
    if window > 0:
        entry_K = entry_K + sum(weights[slot] * previous_TK[m * (window - 1) + slot] for slot in range(m))
    return entry_K


def hca_series(x_TD, weight):
    """Eq. (20) with `wkv`, the values; eq. (21) with `wgate`, the gates. weight (K, D) -> (T, K)."""
    return project(x_TD, weight)


def hca_slot_weights(gate_TK, ape, window):
    """Eq. (22): softmax of gate + ape over the M tokens of one window, no overlap. ape (M, K) -> (M, K)."""
    m = len(ape)
    return slot_softmax(np.array([gate_TK[m * window + slot] + ape[slot] for slot in range(m)]))


def hca_entry(weights, value_TK, window):
    """Eq. (23): the weighted sum of the window's values. weights (M, K) -> (K,)."""
    m = len(weights)
    return sum(weights[slot] * value_TK[m * window + slot] for slot in range(m))


def compressed_entries(params, x_TD, overlap, freqs, eps=1e-6):
    """All entries of the complete windows: pooled, normed with a weight, turned to position M i.

    params   `wkv.weight`, `wgate.weight`, `ape`, `norm.weight` of one compressor
    overlap  True for CSA and its indexer, (9)-(12); False for HCA, (20)-(23)
    returns  (C, K) with C = T // M; tokens of an incomplete window give nothing
    """
    ape, norm = params["ape"], params["norm.weight"]
    series = csa_series if overlap else hca_series
    values, gates = series(x_TD, params["wkv.weight"]), series(x_TD, params["wgate.weight"])
    entries = []
    for window in range(len(x_TD) // len(ape)):
        if overlap:
            pooled_K = csa_entry(csa_slot_weights(*gates, ape, window), *values, window)
        else:
            pooled_K = hca_entry(hca_slot_weights(gates, ape, window), values, window)
        entries.append(rotate(rms_norm(pooled_K, norm, eps), len(ape) * window, freqs))
    return np.array(entries).reshape(-1, len(norm))


# ---- queries, index and core attention, equations (13) to (19) and (24) to (27) -------------------------------------


def query_latent(x_TD, wq_a, q_norm, eps=1e-6):
    """Eqs. (13), (24): c^Q = RMSNorm(W x), the latent of attention and index queries. (T, D) -> (T, Q)."""
    return np.array([rms_norm(latent, q_norm, eps) for latent in project(x_TD, wq_a)])


def index_queries(latent_TQ, wq_b, n_heads, freqs, form="released"):
    """Eq. (14): q^I = W c^Q in n_heads = U heads; the released code then applies RoPE and Hadamard. -> (T, U, Z)."""
    query_TUZ = project(latent_TQ, wq_b).reshape(len(latent_TQ), n_heads, -1)
    if _is_report("form", form):
        return query_TUZ
    hadamard = hadamard_matrix(query_TUZ.shape[-1])
    return np.array([[hadamard @ rotate(head, t, freqs) for head in heads] for t, heads in enumerate(query_TUZ)])


def index_head_weights(x_TD, weights_proj, index_width, form="released"):
    """Eq. (15): w^I = W x, any sign; released times Z^-0.5 U^-0.5. weights_proj (U, D), index_width Z -> (T, U)."""
    scale = 1.0 if _is_report("form", form) else (index_width * len(weights_proj)) ** -0.5
    return project(x_TD, weights_proj) * scale


def index_scores(query_UZ, weight_U, key_CZ):
    """Eq. (16): I_c = sum_u w_u ReLU(q_u . k_c) of one query for every entry. -> (C,)."""
    score_C = np.zeros(len(key_CZ))
    for c in range(len(key_CZ)):
        for u in range(len(query_UZ)):
            score_C[c] += weight_U[u] * max(query_UZ[u] @ key_CZ[c], 0.0)
    return score_C


def select_entries(score_C, top_k, n_visible):
    """Eq. (17): the top_k visible entries, best first; equal scores: lower index first. -> list of at most top_k."""
    # `sorted` is stable, so the order of the indices decides between equals.
    return sorted(range(n_visible), key=lambda c: -score_C[c])[:top_k]


def attention_queries(latent_TQ, wq_b, n_heads, freqs, eps=1e-6):
    """Eqs. (18), (25): q = W c^Q in H heads, each normed without a weight and turned to its position. -> (T, H, K)."""
    query_THK = project(latent_TQ, wq_b).reshape(len(latent_TQ), n_heads, -1)
    return np.array([[rotate(rms_norm(q, eps=eps), t, freqs) for q in heads] for t, heads in enumerate(query_THK)])


def core_attention(query_HK, entry_SK, sink_H):
    """Eq. (19) over window and picked entries, (26) over window and all visible ones: o_h = sum_s p_hs kv_s.

    One query: query_HK (H, K), entry_SK (S, K) both keys and values, sink_H (H,); returns (H, K), not yet turned back.
    """
    n_heads, width = query_HK.shape
    output_HK = np.zeros((n_heads, width))
    for h in range(n_heads):
        weight_S = sink_softmax(np.array([query_HK[h] @ entry_K * width**-0.5 for entry_K in entry_SK]), sink_H[h])
        for s in range(len(entry_SK)):
            output_HK[h] += weight_S[s] * entry_SK[s]
    return output_HK


def sink_softmax(logits_S, sink):
    """Eq. (27): exp(z_s) / (sum_s' exp(z_s') + exp(sink)); the weights sum to less than 1. (S,) -> (S,)."""
    largest = max(np.max(logits_S), sink)
    exp_S = np.exp(logits_S - largest)
    return exp_S / (sum(exp_S) + math.exp(sink - largest))


def visible_entries(t, m, visibility="released"):
    """How many compressed entries of m tokens query t (from 0) sees: released (t+1) // m, report t // m."""
    return t // m if _is_report("visibility", visibility) else (t + 1) // m


def window_tokens(t, window):
    """The tokens that query t sees one by one: the last `window` of them, t included. -> range."""
    return range(max(0, t - window + 1), t + 1)


def hadamard_matrix(width):
    """The orthonormal Walsh-Hadamard matrix: (-1)^(number of ones in a AND b) / sqrt(Z). -> (Z, Z)."""
    if width < 1 or width & (width - 1):
        raise ValueError(f"width is {width}; a Hadamard matrix needs a power of two")
    signs = [[(-1.0) ** (a & b).bit_count() for b in range(width)] for a in range(width)]
    return np.array(signs) * width**-0.5


def grouped_output(heads_HK, wo_a, wo_b, n_groups):
    """Each group of H/G heads through its own block of wo_a (G O, H/G K), all of them through wo_b (D, G O)."""
    per_group, rank = len(heads_HK) // n_groups, len(wo_a) // n_groups
    latent = []
    for g in range(n_groups):
        group = heads_HK[g * per_group : (g + 1) * per_group].reshape(-1)
        latent.append(wo_a[g * rank : (g + 1) * rank] @ group)
    return wo_b @ np.concatenate(latent)


def picked_entries(params, x_TD, latent_TQ, config, freqs, visibility="released"):
    """Eqs. (14)-(17) together: for every query the compressed entries it attends to, best first.

    params   tensors under `attn.`, of which `indexer.*` are read
    returns  T lists of at most index_topk indices
    """
    keys = compressed_entries(parameters_under(params, "indexer.compressor."), x_TD, True, freqs, config.rms_norm_eps)
    key_CZ = project(keys, hadamard_matrix(config.index_head_dim))
    query_TUZ = index_queries(latent_TQ, params["indexer.wq_b.weight"], config.index_n_heads, freqs)
    weight_TU = index_head_weights(x_TD, params["indexer.weights_proj.weight"], config.index_head_dim)
    m = len(params["indexer.compressor.ape"])
    picked = []
    for t in range(len(x_TD)):
        score_C = index_scores(query_TUZ[t], weight_TU[t], key_CZ)
        picked.append(select_entries(score_C, config.index_topk, visible_entries(t, m, visibility)))
    return picked


def index_loss(score_C, weight_HC):
    """KL(p || softmax(I)) of one query: p_c is the attention weight of entry c, summed over heads, divided by its sum.

    score_C    index scores of the entries that are compared (all visible ones, or the picked ones)
    weight_HC  their weights in the joint softmax with window and sink, not renormalised within a head
    """
    weight_C = sum(weight_HC[h] for h in range(len(weight_HC)))
    target_C = weight_C / sum(weight_C)
    return sum(target_C * (np.log(target_C) - log_softmax(score_C)))


def attention_layer(params, x_TD, kind, config, visibility="released"):
    """A whole attention layer of one sequence that begins at position 0: window, CSA (9)-(19) or HCA (20)-(26).

    params      tensors under `attn.`, e.g. `wq_a.weight`, `compressor.ape`
    kind        "WINDOW", "CSA" or "HCA"
    visibility  "released" or "report", see `visible_entries`
    returns     (T, D)
    """
    freqs, eps, n_tokens = layer_frequencies(kind, config), config.rms_norm_eps, len(x_TD)
    latent_TQ = query_latent(x_TD, params["wq_a.weight"], params["q_norm.weight"], eps)
    query_THK = attention_queries(latent_TQ, params["wq_b.weight"], config.num_attention_heads, freqs, eps)
    raw_TK = project(x_TD, params["wkv.weight"])
    window_TK = np.array([rotate(rms_norm(kv, params["kv_norm.weight"], eps), t, freqs) for t, kv in enumerate(raw_TK)])
    entry_CK, picked = np.zeros((0, config.head_dim)), [[] for _ in range(n_tokens)]
    if kind != "WINDOW":
        entry_CK = compressed_entries(parameters_under(params, "compressor."), x_TD, kind == "CSA", freqs, eps)
        picked = [range(visible_entries(t, len(params["compressor.ape"]), visibility)) for t in range(n_tokens)]
    if kind == "CSA":
        picked = picked_entries(params, x_TD, latent_TQ, config, freqs, visibility)
    output = []
    for t in range(n_tokens):
        entries = [window_TK[s] for s in window_tokens(t, config.sliding_window)] + [entry_CK[c] for c in picked[t]]
        heads = core_attention(query_THK[t], np.array(entries), params["attn_sink"])
        heads_HK = np.array([rotate(head, t, freqs, inverse=True) for head in heads])
        output.append(grouped_output(heads_HK, params["wo_a.weight"], params["wo_b.weight"], config.o_groups))
    return np.array(output)


# ---- experts (the report gives them no numbers) --------------------------------------------------------------------


def affinities(x_D, gate):
    """s_e = sqrt(softplus(gate_e . x)), never negative; gate (E, D) -> (E,)."""
    return np.sqrt(np.logaddexp(0.0, gate @ x_D))


def route(score_E, n_active, scale, bias_E=None, fixed=None):
    """Which experts, and with what weights: w_e = scale s_e / (sum of the chosen s + 1e-20).

    bias_E   added for the choice only, never to the weights (learned layers)
    fixed    the chosen experts of a hash layer, the row of `tid2eid` for this token
    returns  (A expert indices, best first, equal scores lower index first; (A,) weights)
    """
    biased_E = score_E if bias_E is None else score_E + bias_E
    chosen = sorted(range(len(score_E)), key=lambda e: -biased_E[e])[:n_active] if fixed is None else list(fixed)
    total = sum(score_E[e] for e in chosen) + 1e-20
    return chosen, np.array([scale * score_E[e] / total for e in chosen])


def expert(x_D, w1, w2, w3, limit=None):
    """w2 (silu(g) u) with g = min(w1 x, limit), u = clip(w3 x, -limit, limit). w1, w3 (F, D), w2 (D, F) -> (D,)."""
    gate_F, up_F = w1 @ x_D, w3 @ x_D
    if limit is not None:
        gate_F, up_F = np.minimum(gate_F, limit), np.clip(up_F, -limit, limit)
    return w2 @ (gate_F * sigmoid(gate_F) * up_F)


def moe_layer(params, x_TD, ids_T, config, clamp_shared=True):
    """y_t = shared(x_t) + sum_e w_e expert_e(x_t); params: tensors under `ffn.`; `gate.tid2eid` makes it a hash layer.

    clamp_shared=False leaves the shared expert without limit, as the first released code did. Returns (T, D).
    """

    def run(x_D, name, limit):
        return expert(x_D, *[params[f"{name}.{w}.weight"] for w in ("w1", "w2", "w3")], limit)

    table, output = params.get("gate.tid2eid"), []
    for x_D, token in zip(x_TD, ids_T, strict=True):
        chosen, weight_A = route(
            affinities(x_D, params["gate.weight"]),
            config.num_experts_per_tok,
            config.routed_scaling_factor,
            params.get("gate.bias"),
            None if table is None else table[token],
        )
        y_D = run(x_D, "shared_experts", config.swiglu_limit if clamp_shared else None)
        for e, weight in zip(chosen, weight_A, strict=True):
            y_D = y_D + weight * run(x_D, f"experts.{e}", config.swiglu_limit)
        output.append(y_D)
    return np.array(output)


def balance_loss(score_TE, chosen_TA):
    """One sequence: sum_e f_e P_e, f_e = E/(A T) count_e, P_e = mean_t s_te / (sum_j s_tj + 1e-20)."""
    (n_tokens, n_experts), n_active = score_TE.shape, chosen_TA.shape[1]
    loss = 0.0
    for e in range(n_experts):
        count = sum(int(chosen == e) for row in chosen_TA for chosen in row)
        share = sum(score_TE[t, e] / (sum(score_TE[t]) + 1e-20) for t in range(n_tokens)) / n_tokens
        loss += n_experts / (n_active * n_tokens) * count * share
    return loss


def updated_bias(bias_E, load_E, speed=0.001):
    """b_e + speed * sign(mean load - load_e): the router bias after a step that sent load_e tokens to expert e."""
    mean = sum(load_E) / len(load_E)
    return np.array([b + speed * np.sign(mean - load) for b, load in zip(bias_E, load_E, strict=True)])


# ---- the whole model -----------------------------------------------------------------------------------------------


def block(params, streams_TND, ids_T, kind, config):
    """Attention and experts, each on the normed collapse of the streams. params: tensors under `layers.l.`."""

    def attention(x_TD):
        normed = np.array([rms_norm(x_D, params["attn_norm.weight"], config.rms_norm_eps) for x_D in x_TD])
        return attention_layer(parameters_under(params, "attn."), normed, kind, config)

    def experts(x_TD):
        normed = np.array([rms_norm(x_D, params["ffn_norm.weight"], config.rms_norm_eps) for x_D in x_TD])
        return moe_layer(parameters_under(params, "ffn."), normed, ids_T, config)

    streams_TND = hyper_connection(streams_TND, stream_maps(streams_TND, params, "attn", config), attention)
    return hyper_connection(streams_TND, stream_maps(streams_TND, params, "ffn", config), experts)


def model_streams(params, config, ids_T):
    """Embedding copied to N streams, then every main block; the un-collapsed streams (T, N, D) that MTP reads too."""
    streams_TND = np.array([[params["embed.weight"][token]] * config.hc_mult for token in ids_T], dtype=np.float64)
    for layer in range(config.num_hidden_layers):
        tensors = parameters_under(params, f"layers.{layer}.")
        streams_TND = block(tensors, streams_TND, ids_T, config.layer_types[layer].name, config)
    return streams_TND


def stream_logits(params, streams_TND, head, config):
    """Head collapse, final norm, LM head. params: `hc_head_*` and `norm.weight`; head (V, D) -> (T, V)."""
    logits = []
    for streams_ND in streams_TND:
        names = ["hc_head_fn", "hc_head_base", "hc_head_scale"]
        hidden_D = head_collapse(streams_ND, *[params[name] for name in names], config.hc_eps, config.rms_norm_eps)
        logits.append(head @ rms_norm(hidden_D, params["norm.weight"], config.rms_norm_eps))
    return np.array(logits)


def model_logits(params, config, ids_T):
    """Logits (T, V) of one sequence. params: every tensor of the main model under its released name."""
    return stream_logits(params, model_streams(params, config, ids_T), params["head.weight"], config)


def mtp_input(streams_TND, next_TD, params, eps=1e-6):
    """Z_n = E_proj RMSNorm(next embedding) + H_proj RMSNorm(X_n), stream by stream. params: tensors under `mtp.0.`.

    streams_TND  the streams after the last main block at positions 0..T-1
    next_TD      the embeddings of the tokens at positions 1..T
    returns      (T, N, D)
    """
    output_TND = np.zeros_like(streams_TND)
    for t in range(len(streams_TND)):
        token_D = params["e_proj.weight"] @ rms_norm(next_TD[t], params["enorm.weight"], eps)
        for n in range(streams_TND.shape[1]):
            stream_D = rms_norm(streams_TND[t, n], params["hnorm.weight"], eps)
            output_TND[t, n] = token_D + params["h_proj.weight"] @ stream_D
    return output_TND


def mtp_logits(params, config, ids_T):
    """Logits (T - 1, V): row t has read tokens 0..t+1 and predicts token t + 2."""
    tensors, next_T = parameters_under(params, "mtp.0."), ids_T[1:]
    next_TD = np.array([params["embed.weight"][token] for token in next_T])
    streams_TND = mtp_input(model_streams(params, config, ids_T)[:-1], next_TD, tensors, config.rms_norm_eps)
    streams_TND = block(tensors, streams_TND, next_T, config.layer_types[-1].name, config)
    return stream_logits(tensors, streams_TND, params["head.weight"], config)


# ---- training, equations (28) and (29) -----------------------------------------------------------------------------


def newton_schulz_step(x, a, b, c):
    """Eq. (28), one step: X <- a X + b (X X^T) X + c (X X^T)^2 X; each singular value s becomes a s + b s^3 + c s^5."""
    gram = x @ x.T
    return a * x + b * gram @ x + c * gram @ gram @ x


def newton_schulz(matrix, n_fast=8, n_exact=2):
    """Eq. (28): n_fast steps bring singular values (above 1e-3 of the norm) to 0.68-1.13, n_exact to 1 + 5e-4."""
    x = matrix / math.sqrt(np.sum(matrix * matrix))
    for step in range(n_fast + n_exact):
        x = newton_schulz_step(x, *((3.4445, -4.7750, 2.0315) if step < n_fast else (2.0, -1.5, 0.5)))
    return x


def muon_update(weight, gradient, momentum, lr, mu=0.95, decay=0.1, rms=0.18):
    """M <- mu M + G; O = NS(mu M + G) sqrt(max(n, m)) rms; W <- W (1 - lr decay) - lr O.

    weight, gradient, momentum  one logically independent matrix (n, m)
    returns                     (new weight, new momentum); the root mean square of O is rms
    """
    momentum = mu * momentum + gradient
    step = newton_schulz(mu * momentum + gradient) * math.sqrt(max(weight.shape)) * rms
    return weight * (1 - lr * decay) - lr * step, momentum


def distillation_loss(student_TV, teachers, weights):
    """Eq. (29): sum_i w_i KL(student || teacher_i), reverse and over the full vocabulary, mean over positions.

    student_TV  logits on a trajectory that the student sampled
    teachers    logits of each teacher on the same tokens, each (T, V);  weights one number each
    """
    loss = 0.0
    for weight, teacher_TV in zip(weights, teachers, strict=True):
        for student_V, teacher_V in zip(student_TV, teacher_TV, strict=True):
            log_p, log_q = log_softmax(student_V), log_softmax(teacher_V)
            loss += weight * sum(np.exp(log_p) * (log_p - log_q)) / len(student_TV)
    return loss


class Equation(NamedTuple):
    """Where a numbered equation of the report stands: the loop here, and the line that a model runs."""

    loop: Callable
    operation: str
    file: str


# Number of the equation: the loop that defines it, what computes it in a model, and in which file.
EQUATIONS = {
    1: Equation(hyper_connection, "collapse, write", "minidsv4/ops.py"),
    2: Equation(birkhoff_distance, "sinkhorn", "minidsv4/ops.py"),
    3: Equation(raw_maps, "HyperConnection", "minidsv4/model/hyper_connection.py"),
    4: Equation(raw_maps, "HyperConnection", "minidsv4/model/hyper_connection.py"),
    5: Equation(raw_maps, "HyperConnection", "minidsv4/model/hyper_connection.py"),
    6: Equation(read_weights, "HyperConnection", "minidsv4/model/hyper_connection.py"),
    7: Equation(write_weights, "HyperConnection", "minidsv4/model/hyper_connection.py"),
    8: Equation(sinkhorn, "sinkhorn", "minidsv4/ops.py"),
    9: Equation(csa_series, "Compressor", "minidsv4/model/compressor.py"),
    10: Equation(csa_series, "Compressor", "minidsv4/model/compressor.py"),
    11: Equation(csa_slot_weights, "slot_weights", "minidsv4/ops.py"),
    12: Equation(csa_entry, "pool", "minidsv4/ops.py"),
    13: Equation(query_latent, "WindowAttention", "minidsv4/model/attention.py"),
    14: Equation(index_queries, "Indexer", "minidsv4/model/indexer.py"),
    15: Equation(index_head_weights, "Indexer", "minidsv4/model/indexer.py"),
    16: Equation(index_scores, "index_scores", "minidsv4/ops.py"),
    17: Equation(select_entries, "top_entries", "minidsv4/ops.py"),
    18: Equation(attention_queries, "WindowAttention", "minidsv4/model/attention.py"),
    19: Equation(core_attention, "attend", "minidsv4/ops.py"),
    20: Equation(hca_series, "Compressor", "minidsv4/model/compressor.py"),
    21: Equation(hca_series, "Compressor", "minidsv4/model/compressor.py"),
    22: Equation(hca_slot_weights, "slot_weights", "minidsv4/ops.py"),
    23: Equation(hca_entry, "pool", "minidsv4/ops.py"),
    24: Equation(query_latent, "WindowAttention", "minidsv4/model/attention.py"),
    25: Equation(attention_queries, "WindowAttention", "minidsv4/model/attention.py"),
    26: Equation(core_attention, "attend", "minidsv4/ops.py"),
    27: Equation(sink_softmax, "attention_weights", "minidsv4/ops.py"),
    28: Equation(newton_schulz, "orthogonalise", "minidsv4/train/muon.py"),
    29: Equation(distillation_loss, "Distillation", "minidsv4/posttrain/distill.py"),
}
