"""The definition: the numbered equations (1) to (29) of the DeepSeek-V4 report.

They stand here in plain loops and float64. Every fast part of the model is tested
against this file. Loops run over tokens, windows, heads, experts and streams; NumPy
acts only along the innermost (channel) axis. `EQUATIONS` maps each number to its
function; what the report states without a number (RoPE, routing, experts, head
collapse, MTP input, ...) has a function too.

Letters: T tokens, D model width, H query heads, K head width, Q query rank, W window, M
tokens per entry, S and C entries, U index heads, Z index width, E experts, A active
experts, F expert width, N streams, V vocabulary.
Numbering: the report spreads the maps of the constrained hyper-connections over
(2)-(8); here (2) is the constraint on B, (3)-(5) the three raw maps, (6) and (7) the
bounded A and C, (8) Sinkhorn. Equations that CSA and HCA share, (13) and (24), (18) and
(25), (19) and (26), share a function.
Where report and released code differ, an argument says which is meant; the default is
what was released. Weights are [out, in] arrays under their released names
(`attn.wq_a.weight`, `hc_attn_fn`, `ffn.gate.bias`, ...).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# ---- small helpers -------------------------------------------------------------------


def project(x_TD, weight):
    """y_t = weight x_t for every token; weight (out, D), returns (T, out)."""
    return np.array([weight @ x_D for x_D in x_TD]).reshape(len(x_TD), len(weight))


def rms_norm(x_D, weight=None, eps=1e-6):
    """x / sqrt(mean(x^2) + eps), times weight (D,) where there is one; one vector."""
    normed = x_D / math.sqrt(np.mean(x_D * x_D) + eps)
    return normed if weight is None else normed * weight


def sigmoid(x):
    """1 / (1 + exp(-x)), elementwise, safe for large |x|."""
    return np.exp(-np.logaddexp(0.0, -x))


def log_softmax(logits_V):
    """logits - log(sum(exp(logits))), one vector."""
    return logits_V - np.logaddexp.reduce(logits_V)


def parameters_under(params, prefix):
    """The tensors whose names begin with prefix, without it; e.g. `layers.0.attn.`."""
    names = [name for name in params if name.startswith(prefix)]
    return {name.removeprefix(prefix): params[name] for name in names}


def _is_report(name, value):
    if value not in ("released", "report"):
        raise ValueError(f"{name} is {value!r}; it must be 'released' or 'report'")
    return value == "report"


# ---- rotary positions ----------------------------------------------------------------


def rope_frequencies(n_rotary, base, scaling=None):
    """f_i = base^(-2i/R); with YaRN f_i (1 - ramp_i) + f_i / factor ramp_i.

    YaRN changes no amplitude.

    n_rotary  R, even
    base      10000 in window layers, 160000 in CSA and HCA layers
    scaling   None, or YaRN's factor, original_max_position_embeddings, beta_fast and
              beta_slow
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

    corr(beta) = R ln(original / (2 pi beta)) / (2 ln base), rounded down for beta_fast
    and up for beta_slow.
    """
    length = scaling.original_max_position_embeddings

    def correction(beta):
        return n_rotary * math.log(length / (2 * math.pi * beta)) / (2 * math.log(base))

    low = max(math.floor(correction(scaling.beta_fast)), 0)
    high = min(math.ceil(correction(scaling.beta_slow)), n_rotary - 1)
    return low, high + 0.001 if low == high else high


def rotate(x_K, position, freqs, inverse=False):
    """Turn each pair (2i, 2i+1) of the last R channels by position * freqs[i] radians.

    When inverse, turn it back. The first K - R channels stay as they are.
    x_K (K,), freqs (R/2,); returns (K,).
    """
    start, turned = len(x_K) - 2 * len(freqs), x_K.copy()
    for i, freq in enumerate(freqs):
        angle = -position * freq if inverse else position * freq
        even, odd = x_K[start + 2 * i], x_K[start + 2 * i + 1]
        turned[start + 2 * i] = even * math.cos(angle) - odd * math.sin(angle)
        turned[start + 2 * i + 1] = even * math.sin(angle) + odd * math.cos(angle)
    return turned


def layer_frequencies(kind, config):
    """RoPE of a whole layer: of queries, entries, index queries and index keys.

    The output is turned back by the same.
    """
    n_rotary = config.qk_rope_head_dim
    if kind == "WINDOW":
        return rope_frequencies(n_rotary, config.rope_theta)
    return rope_frequencies(n_rotary, config.compress_rope_theta, config.rope_scaling)


# ---- hyper-connections, equations (1) to (8) -----------------------------------------


def hyper_connection(streams_TND, maps, layer):
    """Eq. (1): X' = B X + C F(A X), with B = carry^T.

    Stream by stream that is X'_j = post_j y + sum_i carry[i, j] X_i.

    streams_TND  (T, N, D)
    maps         one (pre_N, post_N, carry_NN) per token: A, C and the mix from old
                 stream i to new stream j
    layer        F, a function (T, D) -> (T, D)
    returns      (T, N, D)
    """
    n_streams = streams_TND.shape[1]
    x_TD = []
    for t, (pre, _, _) in enumerate(maps):
        x_TD.append(sum(pre[i] * streams_TND[t, i] for i in range(n_streams)))
    y_TD = layer(np.array(x_TD))
    new_TND = np.zeros_like(streams_TND)
    for t, (_, post, carry) in enumerate(maps):
        for j in range(n_streams):
            new_TND[t, j] = post[j] * y_TD[t]
            for i in range(n_streams):
                new_TND[t, j] += carry[i, j] * streams_TND[t, i]
    return new_TND


def birkhoff_distance(mix_NN):
    """Eq. (2): B is to have no negative entry, and rows and columns that sum to 1.

    returns  the largest violation
    """
    row_errors = [abs(sum(row) - 1) for row in mix_NN]
    column_errors = [abs(sum(column) - 1) for column in mix_NN.T]
    return max(*row_errors, *column_errors, -np.min(mix_NN))


def raw_maps(streams_ND, fn, base, scale, eps=1e-6):
    """Eqs. (3)-(5): alpha * (xhat W) + S for the read, write and mix maps.

    xhat is RMSNorm(vec(X)), without a weight.

    streams_ND  (N, D), flattened stream after stream
    fn          ((2 + N) N, N D), rows in the order pre, post, mix (the mix row by row:
                [old, new])
    base        ((2 + N) N,) the static biases S
    scale       (3,) the alphas of pre, post, mix
    returns     (pre (N,), post (N,), mix logits (N, N) as [old, new])
    """
    n = len(streams_ND)
    mapped = fn @ rms_norm(streams_ND.reshape(-1), eps=eps)
    pre = scale[0] * mapped[:n] + base[:n]
    post = scale[1] * mapped[n : 2 * n] + base[n : 2 * n]
    mix = scale[2] * mapped[2 * n :] + base[2 * n :]
    return pre, post, mix.reshape(n, n)


def read_weights(raw_N, eps=1e-6, form="released"):
    """Eq. (6): A = sigmoid(raw); only the released code adds eps. (N,) -> (N,)."""
    return sigmoid(raw_N) + (0.0 if _is_report("form", form) else eps)


def write_weights(raw_N):
    """Eq. (7): C = 2 sigmoid(raw), which is 1 at a raw value of 0. (N,) -> (N,)."""
    return 2 * sigmoid(raw_N)


def sinkhorn(raw_NN, iterations=20, eps=1e-6, form="released"):
    """Eq. (8): M <- T_r(T_c(M)), until rows and columns of carry sum to about 1.

    The report's M is B = carry^T.

    raw_NN      logits [old i, new j]
    form        "released": softmax over j plus eps, divide by column sums, then
                iterations - 1 times by row and by column sums, eps added to every
                divisor; "report": exp, then iterations times by row and by column sums
    returns     carry (N, N) as [old, new] in both forms; its columns are the last to be
                normalised
    """
    eps = 0.0 if _is_report("form", form) else eps
    n = len(raw_NN)
    # Subtracting the row maximum changes nothing: both forms divide by row sums first.
    mix = np.array([np.exp(row - np.max(row)) for row in raw_NN])
    for step in range(iterations):
        for i in range(n):
            # The first row step of the released form is a softmax: eps is added after
            # it, not to the divisor.
            if step == 0:
                mix[i] = mix[i] / sum(mix[i]) + eps
            else:
                mix[i] = mix[i] / (sum(mix[i]) + eps)
        for j in range(n):
            mix[:, j] = mix[:, j] / (sum(mix[:, j]) + eps)
    return mix


def stream_maps(streams_TND, params, site, config, form="released"):
    """(pre, post, carry) of every token, (3)-(8).

    params  `hc_<site>_fn`, `_base` and `_scale` are read
    site    "attn" or "ffn"
    """
    names = [f"hc_{site}_{part}" for part in ("fn", "base", "scale")]
    fn, base, scale = [params[name] for name in names]
    maps = []
    for streams_ND in streams_TND:
        pre, post, mix = raw_maps(streams_ND, fn, base, scale, config.rms_norm_eps)
        pre_N = read_weights(pre, config.hc_eps, form)
        post_N = write_weights(post)
        carry_NN = sinkhorn(mix, config.hc_sinkhorn_iters, config.hc_eps, form)
        maps.append((pre_N, post_N, carry_NN))
    return maps


def head_collapse(streams_ND, fn, base, scale, hc_eps=1e-6, eps=1e-6):
    """h = sum_i a_i X_i, a = sigmoid(scale (xhat fn) + base) + hc_eps. -> (D,).

    fn (N, N D), base (N,), scale (1,)
    """
    mapped_N = fn @ rms_norm(streams_ND.reshape(-1), eps=eps)
    gate_N = sigmoid(scale * mapped_N + base) + hc_eps
    return sum(gate_N[i] * streams_ND[i] for i in range(len(streams_ND)))


# ---- compression, equations (9) to (12) and (20) to (23) -----------------------------


def csa_series(x_TD, weight):
    """Eq. (9) with `wkv`: values C^a and C^b; eq. (10) with `wgate`: gates Z^a and Z^b.

    weight (2K, D): its SECOND half is series a, used while the token's window is the
    current one; its FIRST half is series b, used when that window has become the
    previous one. Returns (current_TK, previous_TK).
    """
    both = project(x_TD, weight)
    half = both.shape[1] // 2
    return both[:, half:], both[:, :half]


def slot_softmax(logits_SK):
    """Softmax over slots, for each channel on its own. (S, K) -> (S, K).

    A slot at -inf gets weight 0.
    """
    largest_K = np.max(logits_SK, axis=0)
    total_K = sum(np.exp(slot - largest_K) for slot in logits_SK)
    return np.array([np.exp(slot - largest_K) / total_K for slot in logits_SK])


def csa_slot_weights(current_TK, previous_TK, ape, window):
    """Eq. (11): softmax over 2M slots of gate + ape. -> (2M, K).

    Slots 0..M-1 are the previous window, M..2M-1 the current one.

    current_TK, previous_TK  the two gate series
    ape                      (M, 2K), its first half for the previous window
    window                   index i of the current window; window 0 has no previous
                             one: its logits are -inf
    """
    m, width = len(ape), ape.shape[1] // 2
    logits = np.full((2 * m, width), -np.inf)
    for slot in range(m):
        if window > 0:
            logits[slot] = previous_TK[m * (window - 1) + slot] + ape[slot, :width]
        logits[m + slot] = current_TK[m * window + slot] + ape[slot, width:]
    return slot_softmax(logits)


def csa_entry(weights, current_TK, previous_TK, window):
    """Eq. (12): the weighted sum of the window's and the previous window's values.

    weights (2M, K) -> (K,)
    """
    m = len(weights) // 2
    first = m * window
    entry_K = sum(weights[m + slot] * current_TK[first + slot] for slot in range(m))
    if window > 0:
        first = m * (window - 1)
        overlap_K = sum(weights[slot] * previous_TK[first + slot] for slot in range(m))
        entry_K = entry_K + overlap_K
    return entry_K


def hca_series(x_TD, weight):
    """Eq. (20) with `wkv`, the values; eq. (21) with `wgate`, the gates.

    weight (K, D) -> (T, K)
    """
    return project(x_TD, weight)


def hca_slot_weights(gate_TK, ape, window):
    """Eq. (22): softmax of gate + ape over the M tokens of one window, no overlap.

    ape (M, K) -> (M, K)
    """
    m = len(ape)
    logits_SK = [gate_TK[m * window + slot] + ape[slot] for slot in range(m)]
    return slot_softmax(np.array(logits_SK))


def hca_entry(weights, value_TK, window):
    """Eq. (23): the weighted sum of the window's values. weights (M, K) -> (K,)."""
    m = len(weights)
    return sum(weights[slot] * value_TK[m * window + slot] for slot in range(m))


def compressed_entries(params, x_TD, overlap, freqs, eps=1e-6):
    """All entries of the complete windows: pooled, normed, turned to position M i.

    params   `wkv.weight`, `wgate.weight`, `ape`, `norm.weight` of one compressor
    overlap  True for CSA and its indexer, (9)-(12); False for HCA, (20)-(23)
    returns  (C, K) with C = T // M; tokens of an incomplete window give nothing
    """
    ape, norm = params["ape"], params["norm.weight"]
    series = csa_series if overlap else hca_series
    values = series(x_TD, params["wkv.weight"])
    gates = series(x_TD, params["wgate.weight"])
    entries = []
    for window in range(len(x_TD) // len(ape)):
        if overlap:
            pooled_K = csa_entry(csa_slot_weights(*gates, ape, window), *values, window)
        else:
            pooled_K = hca_entry(hca_slot_weights(gates, ape, window), values, window)
        entries.append(rotate(rms_norm(pooled_K, norm, eps), len(ape) * window, freqs))
    return np.array(entries).reshape(-1, len(norm))


# ---- queries, index and core attention, equations (13) to (19) and (24) to (27) ------


def query_latent(x_TD, wq_a, q_norm, eps=1e-6):
    """Eqs. (13), (24): c^Q = RMSNorm(W x). (T, D) -> (T, Q).

    It is the latent of attention queries and of index queries.
    """
    return np.array([rms_norm(latent, q_norm, eps) for latent in project(x_TD, wq_a)])


def index_queries(latent_TQ, wq_b, n_heads, freqs, form="released"):
    """Eq. (14): q^I = W c^Q in n_heads = U heads. -> (T, U, Z).

    The released code then applies RoPE and Hadamard.
    """
    query_TUZ = project(latent_TQ, wq_b).reshape(len(latent_TQ), n_heads, -1)
    if _is_report("form", form):
        return query_TUZ
    hadamard = hadamard_matrix(query_TUZ.shape[-1])
    turned = []
    for t, heads in enumerate(query_TUZ):
        turned.append([hadamard @ rotate(head, t, freqs) for head in heads])
    return np.array(turned)


def index_head_weights(x_TD, weights_proj, index_width, form="released"):
    """Eq. (15): w^I = W x, any sign; released times Z^-0.5 U^-0.5. -> (T, U).

    weights_proj (U, D), index_width Z
    """
    scale = (index_width * len(weights_proj)) ** -0.5
    if _is_report("form", form):
        scale = 1.0
    return project(x_TD, weights_proj) * scale


def index_scores(query_UZ, weight_U, key_CZ):
    """Eq. (16): I_c = sum_u w_u ReLU(q_u . k_c) of a query for each entry. -> (C,)."""
    score_C = np.zeros(len(key_CZ))
    for c in range(len(key_CZ)):
        for u in range(len(query_UZ)):
            score_C[c] += weight_U[u] * max(query_UZ[u] @ key_CZ[c], 0.0)
    return score_C


def select_entries(score_C, top_k, n_visible):
    """Eq. (17): the top_k visible entries, best first; at most top_k of them.

    Of equal scores the lower index comes first.
    """
    # `sorted` is stable, so the order of the indices decides between equals.
    return sorted(range(n_visible), key=lambda c: -score_C[c])[:top_k]


def attention_queries(latent_TQ, wq_b, n_heads, freqs, eps=1e-6):
    """Eqs. (18), (25): q = W c^Q in H heads. -> (T, H, K).

    Each is normed without a weight and turned to its position.
    """
    query_THK = project(latent_TQ, wq_b).reshape(len(latent_TQ), n_heads, -1)
    turned = []
    for t, heads in enumerate(query_THK):
        turned.append([rotate(rms_norm(q_K, eps=eps), t, freqs) for q_K in heads])
    return np.array(turned)


def core_attention(query_HK, entry_SK, sink_H):
    """Eqs. (19), (26): o_h = sum_s p_hs kv_s of one query.

    In (19) s runs over window and picked entries, in (26) over window and all visible
    ones.

    query_HK  (H, K)
    entry_SK  (S, K) both keys and values
    sink_H    (H,)
    returns   (H, K), not yet turned back
    """
    n_heads, width = query_HK.shape
    output_HK = np.zeros((n_heads, width))
    for h in range(n_heads):
        logits_S = [query_HK[h] @ entry_K * width**-0.5 for entry_K in entry_SK]
        weight_S = sink_softmax(np.array(logits_S), sink_H[h])
        for s in range(len(entry_SK)):
            output_HK[h] += weight_S[s] * entry_SK[s]
    return output_HK


def sink_softmax(logits_S, sink):
    """Eq. (27): exp(z_s) / (sum_s' exp(z_s') + exp(sink)). (S,) -> (S,).

    The weights sum to less than 1.
    """
    largest = max(np.max(logits_S), sink)
    exp_S = np.exp(logits_S - largest)
    return exp_S / (sum(exp_S) + math.exp(sink - largest))


def visible_entries(t, m, visibility="released"):
    """How many compressed entries of m tokens query t (from 0) sees.

    Released (t+1) // m, report t // m.
    """
    return t // m if _is_report("visibility", visibility) else (t + 1) // m


def window_tokens(t, window):
    """The tokens that query t sees one by one. -> range.

    They are the last `window` of them, t included.
    """
    return range(max(0, t - window + 1), t + 1)


def hadamard_matrix(width):
    """The orthonormal Walsh-Hadamard matrix (Z, Z).

    Row a has (-1)^(number of ones in a AND b) / sqrt(Z) in column b.
    """
    if width < 1 or width & (width - 1):
        raise ValueError(f"width is {width}; a Hadamard matrix needs a power of two")
    places = range(width)
    signs = [[(-1.0) ** (a & b).bit_count() for b in places] for a in places]
    return np.array(signs) * width**-0.5


def grouped_output(heads_HK, wo_a, wo_b, n_groups):
    """Each group of H/G heads through its own block of wo_a, all through wo_b. -> (D,).

    wo_a (G O, H/G K), wo_b (D, G O)
    """
    per_group, rank = len(heads_HK) // n_groups, len(wo_a) // n_groups
    latent = []
    for g in range(n_groups):
        group = heads_HK[g * per_group : (g + 1) * per_group].reshape(-1)
        latent.append(wo_a[g * rank : (g + 1) * rank] @ group)
    return wo_b @ np.concatenate(latent)


def picked_entries(params, x_TD, latent_TQ, config, freqs, visibility="released"):
    """Eqs. (14)-(17) together: the entries that every query attends to, best first.

    params   tensors under `attn.`, of which `indexer.*` are read
    returns  T lists of at most index_topk indices
    """
    compressor = parameters_under(params, "indexer.compressor.")
    keys = compressed_entries(compressor, x_TD, True, freqs, config.rms_norm_eps)
    key_CZ = project(keys, hadamard_matrix(config.index_head_dim))
    wq_b = params["indexer.wq_b.weight"]
    query_TUZ = index_queries(latent_TQ, wq_b, config.index_n_heads, freqs)
    weights_proj = params["indexer.weights_proj.weight"]
    weight_TU = index_head_weights(x_TD, weights_proj, config.index_head_dim)
    picked = []
    for t in range(len(x_TD)):
        score_C = index_scores(query_TUZ[t], weight_TU[t], key_CZ)
        n_visible = visible_entries(t, len(compressor["ape"]), visibility)
        picked.append(select_entries(score_C, config.index_topk, n_visible))
    return picked


def index_loss(score_C, weight_HC):
    """KL(p || softmax(I)) of one query.

    p_c is the attention weight of entry c, summed over heads, divided by its sum.

    score_C    index scores of the entries that are compared (all visible ones, or the
               picked ones)
    weight_HC  their weights in the joint softmax with window and sink, not renormalised
               within a head
    """
    weight_C = sum(weight_HC[h] for h in range(len(weight_HC)))
    target_C = weight_C / sum(weight_C)
    return sum(target_C * (np.log(target_C) - log_softmax(score_C)))


def window_entries(params, x_TD, freqs, eps=1e-6):
    """kv_t = RMSNorm(W x_t) of every token, turned to its position. -> (T, K)."""
    entries = []
    for t, kv_K in enumerate(project(x_TD, params["wkv.weight"])):
        normed_K = rms_norm(kv_K, params["kv_norm.weight"], eps)
        entries.append(rotate(normed_K, t, freqs))
    return np.array(entries)


def entries_read(params, x_TD, latent_TQ, kind, config, visibility):
    """The compressed entries (C, K), and for every query those that it attends to."""
    if kind == "WINDOW":
        return np.zeros((0, config.head_dim)), [[] for _ in x_TD]
    compressor = parameters_under(params, "compressor.")
    freqs = layer_frequencies(kind, config)
    eps = config.rms_norm_eps
    entry_CK = compressed_entries(compressor, x_TD, kind == "CSA", freqs, eps)
    if kind == "CSA":
        picked = picked_entries(params, x_TD, latent_TQ, config, freqs, visibility)
        return entry_CK, picked
    m = len(compressor["ape"])
    visible = [range(visible_entries(t, m, visibility)) for t in range(len(x_TD))]
    return entry_CK, visible


def attention_layer(params, x_TD, kind, config, visibility="released"):
    """A whole attention layer of one sequence that begins at position 0.

    It is a window, CSA (9)-(19) or HCA (20)-(26).

    params      tensors under `attn.`, e.g. `wq_a.weight`, `compressor.ape`
    kind        "WINDOW", "CSA" or "HCA"
    visibility  "released" or "report", see `visible_entries`
    returns     (T, D)
    """
    freqs = layer_frequencies(kind, config)
    eps = config.rms_norm_eps
    n_heads = config.num_attention_heads
    latent_TQ = query_latent(x_TD, params["wq_a.weight"], params["q_norm.weight"], eps)
    query_THK = attention_queries(latent_TQ, params["wq_b.weight"], n_heads, freqs, eps)
    window_TK = window_entries(params, x_TD, freqs, eps)
    entry_CK, picked = entries_read(params, x_TD, latent_TQ, kind, config, visibility)
    wo_a = params["wo_a.weight"]
    wo_b = params["wo_b.weight"]
    output = []
    for t in range(len(x_TD)):
        entries = [window_TK[s] for s in window_tokens(t, config.sliding_window)]
        entries += [entry_CK[c] for c in picked[t]]
        heads = core_attention(query_THK[t], np.array(entries), params["attn_sink"])
        heads_HK = np.array([rotate(head, t, freqs, inverse=True) for head in heads])
        output.append(grouped_output(heads_HK, wo_a, wo_b, config.o_groups))
    return np.array(output)


# ---- experts (the report gives them no numbers) --------------------------------------


def affinities(x_D, gate):
    """s_e = sqrt(softplus(gate_e . x)), never negative; gate (E, D) -> (E,)."""
    return np.sqrt(np.logaddexp(0.0, gate @ x_D))


def route(score_E, n_active, scale, bias_E=None, fixed=None):
    """Which experts, with what weights: w_e = scale s_e / (sum of chosen s + 1e-20).

    bias_E   added for the choice only, never to the weights (learned layers)
    fixed    the chosen experts of a hash layer, the row of `tid2eid` for this token
    returns  (A expert indices, best first, equal scores lower index first;
             (A,) weights)
    """
    biased_E = score_E if bias_E is None else score_E + bias_E
    if fixed is None:
        chosen = sorted(range(len(score_E)), key=lambda e: -biased_E[e])[:n_active]
    else:
        chosen = list(fixed)
    total = sum(score_E[e] for e in chosen) + 1e-20
    return chosen, np.array([scale * score_E[e] / total for e in chosen])


def expert(x_D, w1, w2, w3, limit=None):
    """w2 (silu(g) u) with g = min(w1 x, limit), u = clip(w3 x, -limit, limit). -> (D,).

    w1, w3 (F, D), w2 (D, F)
    """
    gate_F, up_F = w1 @ x_D, w3 @ x_D
    if limit is not None:
        gate_F, up_F = np.minimum(gate_F, limit), np.clip(up_F, -limit, limit)
    return w2 @ (gate_F * sigmoid(gate_F) * up_F)


def moe_layer(params, x_TD, ids_T, config, clamp_shared=True):
    """y_t = shared(x_t) + sum_e w_e expert_e(x_t). -> (T, D).

    params        tensors under `ffn.`; `gate.tid2eid` makes it a hash layer
    clamp_shared  False leaves the shared expert without limit, as the first released
                  code did
    """

    def run(x_D, name, limit):
        w1, w2, w3 = [params[f"{name}.{w}.weight"] for w in ("w1", "w2", "w3")]
        return expert(x_D, w1, w2, w3, limit)

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
    """sum_e f_e P_e of one sequence.

    f_e = E/(A T) count_e, P_e = mean_t s_te / (sum_j s_tj + 1e-20)
    """
    (n_tokens, n_experts), n_active = score_TE.shape, chosen_TA.shape[1]
    loss = 0.0
    for e in range(n_experts):
        count = sum(int(chosen == e) for row in chosen_TA for chosen in row)
        shares = [score_TE[t, e] / (sum(score_TE[t]) + 1e-20) for t in range(n_tokens)]
        share = sum(shares) / n_tokens
        loss += n_experts / (n_active * n_tokens) * count * share
    return loss


def updated_bias(bias_E, load_E, speed=0.001):
    """b_e + speed * sign(mean load - load_e): the router bias after a step.

    load_E  how many tokens the step sent to each expert
    """
    mean = sum(load_E) / len(load_E)
    pairs = zip(bias_E, load_E, strict=True)
    return np.array([b + speed * np.sign(mean - load) for b, load in pairs])


# ---- the whole model -----------------------------------------------------------------


def block(params, streams_TND, ids_T, kind, config):
    """Attention and experts, each on the normed collapse of the streams.

    params: tensors under `layers.l.`
    """
    eps = config.rms_norm_eps

    def attention(x_TD):
        weight_D = params["attn_norm.weight"]
        normed = np.array([rms_norm(x_D, weight_D, eps) for x_D in x_TD])
        return attention_layer(parameters_under(params, "attn."), normed, kind, config)

    def experts(x_TD):
        weight_D = params["ffn_norm.weight"]
        normed = np.array([rms_norm(x_D, weight_D, eps) for x_D in x_TD])
        return moe_layer(parameters_under(params, "ffn."), normed, ids_T, config)

    maps = stream_maps(streams_TND, params, "attn", config)
    streams_TND = hyper_connection(streams_TND, maps, attention)
    maps = stream_maps(streams_TND, params, "ffn", config)
    return hyper_connection(streams_TND, maps, experts)


def model_streams(params, config, ids_T):
    """Embedding copied to N streams, then every main block. -> (T, N, D).

    MTP reads these streams too: they are not collapsed.
    """
    embed_VD = params["embed.weight"]
    copies = [[embed_VD[token]] * config.hc_mult for token in ids_T]
    streams_TND = np.array(copies, dtype=np.float64)
    for layer in range(config.num_hidden_layers):
        tensors = parameters_under(params, f"layers.{layer}.")
        kind = config.layer_types[layer].name
        streams_TND = block(tensors, streams_TND, ids_T, kind, config)
    return streams_TND


def stream_logits(params, streams_TND, head, config):
    """Head collapse, final norm, LM head. -> (T, V).

    params: `hc_head_*` and `norm.weight`; head (V, D)
    """
    names = [f"hc_head_{part}" for part in ("fn", "base", "scale")]
    fn, base, scale = [params[name] for name in names]
    eps = config.rms_norm_eps
    logits = []
    for streams_ND in streams_TND:
        hidden_D = head_collapse(streams_ND, fn, base, scale, config.hc_eps, eps)
        logits.append(head @ rms_norm(hidden_D, params["norm.weight"], eps))
    return np.array(logits)


def model_logits(params, config, ids_T):
    """Logits (T, V) of one sequence.

    params: every tensor of the main model under its released name
    """
    streams_TND = model_streams(params, config, ids_T)
    return stream_logits(params, streams_TND, params["head.weight"], config)


def mtp_input(streams_TND, next_TD, params, eps=1e-6):
    """Z_n = E_proj RMSNorm(next embedding) + H_proj RMSNorm(X_n), stream by stream.

    streams_TND  the streams after the last main block at positions 0..T-1
    next_TD      the embeddings of the tokens at positions 1..T
    params       tensors under `mtp.0.`
    returns      (T, N, D)
    """
    output_TND = np.zeros_like(streams_TND)
    for t in range(len(streams_TND)):
        normed_D = rms_norm(next_TD[t], params["enorm.weight"], eps)
        token_D = params["e_proj.weight"] @ normed_D
        for n in range(streams_TND.shape[1]):
            stream_D = rms_norm(streams_TND[t, n], params["hnorm.weight"], eps)
            output_TND[t, n] = token_D + params["h_proj.weight"] @ stream_D
    return output_TND


def mtp_logits(params, config, ids_T):
    """Logits (T - 1, V): row t has read tokens 0..t+1 and predicts token t + 2."""
    tensors, next_T = parameters_under(params, "mtp.0."), ids_T[1:]
    next_TD = np.array([params["embed.weight"][token] for token in next_T])
    streams_TND = model_streams(params, config, ids_T)[:-1]
    streams_TND = mtp_input(streams_TND, next_TD, tensors, config.rms_norm_eps)
    kind = config.layer_types[-1].name
    streams_TND = block(tensors, streams_TND, next_T, kind, config)
    return stream_logits(tensors, streams_TND, params["head.weight"], config)


# ---- training, equations (28) and (29) -----------------------------------------------


def newton_schulz_step(x, a, b, c):
    """Eq. (28), one step: X <- a X + b (X X^T) X + c (X X^T)^2 X.

    Each singular value s becomes a s + b s^3 + c s^5.
    """
    gram = x @ x.T
    return a * x + b * gram @ x + c * gram @ gram @ x


def newton_schulz(matrix, n_fast=8, n_exact=2):
    """Eq. (28): n_fast steps bring singular values to 0.68-1.13, n_exact to 1 + 5e-4.

    That holds for singular values above 1e-3 of the norm.
    """
    x = matrix / math.sqrt(np.sum(matrix * matrix))
    for step in range(n_fast + n_exact):
        factors = (3.4445, -4.7750, 2.0315) if step < n_fast else (2.0, -1.5, 0.5)
        x = newton_schulz_step(x, *factors)
    return x


def muon_update(weight, gradient, momentum, lr, mu=0.95, decay=0.1, rms=0.18):
    """M <- mu M + G; O = NS(mu M + G) sqrt(max(n, m)) rms; then the weight moves.

    W <- W (1 - lr decay) - lr O.

    weight, gradient, momentum  one logically independent matrix (n, m)
    returns                     (new weight, new momentum); O has root mean square rms
    """
    momentum = mu * momentum + gradient
    step = newton_schulz(mu * momentum + gradient) * math.sqrt(max(weight.shape)) * rms
    return weight * (1 - lr * decay) - lr * step, momentum


def distillation_loss(student_TV, teachers, weights):
    """Eq. (29): sum_i w_i KL(student || teacher_i), mean over positions.

    The divergence is reverse and over the full vocabulary.

    student_TV  logits on a trajectory that the student sampled
    teachers    logits of each teacher on the same tokens, each (T, V)
    weights     one number each
    """
    loss = 0.0
    for weight, teacher_TV in zip(weights, teachers, strict=True):
        for student_V, teacher_V in zip(student_TV, teacher_TV, strict=True):
            log_p, log_q = log_softmax(student_V), log_softmax(teacher_V)
            loss += weight * sum(np.exp(log_p) * (log_p - log_q)) / len(student_TV)
    return loss


class Equation(NamedTuple):
    """Where a numbered equation stands: the loop here, the line that a model runs."""

    loop: Callable
    operation: str
    file: str


# Number of an equation: the loop that defines it, what computes it in a model, where.
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
