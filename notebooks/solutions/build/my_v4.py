"""DeepSeek-V4 in one file: `Model(config)(ids_BT)` gives logits, by one full pass without a cache.

Tensors have their released names, so `Model.load_state_dict` takes a released checkpoint. Numbers of equations are
those of the report.

Letters: B batch, T tokens (queries), S tokens or entries attended to, D model width, H query heads, K head width, R its
rotary part, Q query rank, G output groups, O rank of a group, W window, M tokens per compressed entry, C compressed
entries, P picked ones, U index heads, Z index width, E experts, A active ones, F expert width, N streams (i old, j
new), V vocabulary.
"""

import math

import torch
from einops import einsum, rearrange, reduce, repeat
from torch import nn
from torch.nn import functional as F

# ---- pieces ----


def rms_norm(x, weight, eps):
    """`weight * x / sqrt(mean(x^2) + eps)` over the last axis; a weight of None is left out."""
    normed = x * torch.rsqrt(reduce(x * x, "... d -> ... 1", "mean") + eps)
    return normed if weight is None else normed * weight


def frequencies(n_rotary, base, yarn=None):
    """Radians per token of each channel pair [R/2]: `base^(-2i/R)`; with YaRN slow pairs are slowed by its factor."""
    pair = torch.arange(n_rotary // 2)
    radians = base ** (-2 * pair / n_rotary)
    if yarn is None:
        return radians

    def pair_that_turns(times):
        tokens_per_turn = yarn.original_max_position_embeddings / times
        return n_rotary * math.log(tokens_per_turn / (2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(pair_that_turns(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(yarn.beta_slow)), n_rotary - 1)
    slowed = ((pair - low) / max(high - low, 0.001)).clamp(0, 1)  # 0: as it was; 1: slowed by the whole factor
    return (1 - slowed) * radians + slowed * radians / yarn.factor


def rotate(x, angle):
    """`x` [..., K] with its last R channels turned as pairs (2i, 2i + 1) by `angle` [..., R/2]."""
    n_rotary = 2 * angle.shape[-1]
    still = x[..., :-n_rotary]
    rotary = x[..., -n_rotary:]
    even, odd = rearrange(rotary, "... (r pair) -> pair ... r", pair=2)
    turned_even = even * angle.cos() - odd * angle.sin()
    turned_odd = even * angle.sin() + odd * angle.cos()
    turned = rearrange([turned_even, turned_odd], "pair ... r -> ... (r pair)", pair=2)
    return torch.cat([still, turned], dim=-1)


class RMSNorm(nn.Module):
    """A norm with its weight."""

    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return rms_norm(x, self.weight, self.eps)


# ---- attention: who sees what, and what is read ----


def window_map(n_tokens, window):
    """Whether query t sees token s [T, S]: the last W tokens, its own included."""
    position = torch.arange(n_tokens)
    age = rearrange(position, "t -> t 1") - position
    return (age >= 0) & (age < window)


def entry_map(n_tokens, n_entries, ratio):
    """Whether query t sees entry c [T, C]: once the last of its M tokens is at t or before."""
    n_finished = (torch.arange(n_tokens) + 1) // ratio
    return torch.arange(n_entries) < rearrange(n_finished, "t -> t 1")


def attend(query_BTHK, entries_BSK, sees_BTS, sinks_H):
    """Core attention [B, T, H, K], eqs. (19), (26), (27): an entry is key and value, a sink only takes weight.

    query_BTHK   normed and turned
    entries_BSK  one series of entries for all heads
    sees_BTS     whether a query sees an entry, [1 or B, T, S]
    sinks_H      a logit for each head
    """
    score_BTHS = einsum(query_BTHK, entries_BSK, "b t h k, b s k -> b t h s") * query_BTHK.shape[-1] ** -0.5
    score_BTHS = score_BTHS.masked_fill(~rearrange(sees_BTS, "b t s -> b t 1 s"), -math.inf)
    sink_BTH1 = repeat(sinks_H, "h -> b t h 1", b=query_BTHK.shape[0], t=query_BTHK.shape[1])
    weight_BTHS = torch.cat([score_BTHS, sink_BTH1], dim=-1).softmax(dim=-1)[..., :-1]
    return einsum(weight_BTHS, entries_BSK, "b t h s, b s k -> b t h k")


def pool(values_BCSK, gates_BCSK, bias_SK):
    """Entries [B, C, K]: values weighed by a softmax of gate + bias over slots, in each channel; (11), (12)."""
    weight_BCSK = (gates_BCSK + bias_SK).softmax(dim=2)
    return reduce(weight_BCSK * values_BCSK, "b c s k -> b c k", "sum")


def overlapped(series_BCMK, nothing):
    """Slots [B, C, 2 M, K]: the window before in the first half of the channels, then the window in the second half.

    series_BCMK  each of C windows of M tokens, 2 K channels
    nothing      number in the slots before window 0
    """
    as_previous, as_current = rearrange(series_BCMK, "b c m (two k) -> two b c m k", two=2)
    before = torch.full_like(as_previous[:, :1], nothing)
    previous = torch.cat([before, as_previous[:, :-1]], dim=1)
    return torch.cat([previous, as_current], dim=2)


class Compressor(nn.Module):
    """M tokens become one entry; with `overlap` (CSA) the M tokens before them take part."""

    def __init__(self, config, entry_width, ratio, overlap):
        super().__init__()
        n_channels = entry_width * (2 if overlap else 1)
        self.ratio = ratio
        self.overlap = overlap
        self.wkv = nn.Linear(config.hidden_size, n_channels, bias=False)
        self.wgate = nn.Linear(config.hidden_size, n_channels, bias=False)
        self.ape = nn.Parameter(torch.zeros(ratio, n_channels))
        self.norm = RMSNorm(entry_width, config.rms_norm_eps)

    def forward(self, x_BTD, angle_TR):
        """Entries [B, C, K] of the C = T // M full windows, normed, turned as their first token; (9)-(12), (20)-(23).

        x_BTD     tokens
        angle_TR  the angles [T, R/2] of their positions
        """
        n_full = x_BTD.shape[1] // self.ratio * self.ratio
        full = x_BTD[:, :n_full]
        values = rearrange(self.wkv(full), "b (c m) k -> b c m k", m=self.ratio)
        gates = rearrange(self.wgate(full), "b (c m) k -> b c m k", m=self.ratio)
        bias_SK = self.ape
        if self.overlap:
            values = overlapped(values, 0.0)
            gates = overlapped(gates, -math.inf)
            bias_SK = rearrange(self.ape, "m (two k) -> (two m) k", two=2)
        return rotate(self.norm(pool(values, gates, bias_SK)), angle_TR[: n_full : self.ratio])


def index_scores(query_BTUZ, weight_BTU, keys_BCZ):
    """`I[t, c] = sum_u w[t, u] relu(q[t, u] . k[c])` [B, T, C]; eq. (16)."""
    dots_BTUC = einsum(query_BTUZ, keys_BCZ, "b t u z, b c z -> b t u c")
    return einsum(weight_BTU, dots_BTUC.relu(), "b t u, b t u c -> b t c")


def pick(score_BTC, sees_TC, n_picked):
    """Whether query t reads entry c [B, T, C]: the best of those it sees; of equal scores the lower index; eq. (17)."""
    score_BTC = score_BTC.masked_fill(~sees_TC, -math.inf)
    best_BTP = score_BTC.sort(dim=-1, descending=True, stable=True).indices[..., :n_picked]
    picked_BTC = torch.zeros_like(score_BTC, dtype=torch.bool).scatter(-1, best_BTP, True)
    return picked_BTC & sees_TC


class Indexer(nn.Module):
    """Cheap scores by which CSA picks entries."""

    def __init__(self, config, ratio):
        super().__init__()
        self.heads = config.index_n_heads
        self.scale = (config.index_n_heads * config.index_head_dim) ** -0.5
        self.wq_b = nn.Linear(config.q_lora_rank, config.index_n_heads * config.index_head_dim, bias=False)
        self.weights_proj = nn.Linear(config.hidden_size, config.index_n_heads, bias=False)
        self.compressor = Compressor(config, config.index_head_dim, ratio, overlap=True)

    def forward(self, x_BTD, latent_BTQ, angle_TR):
        """Scores of all entries for all queries [B, T, C]; eqs. (14)-(16)."""
        query_BTUZ = rearrange(self.wq_b(latent_BTQ), "b t (u z) -> b t u z", u=self.heads)
        query_BTUZ = rotate(query_BTUZ, rearrange(angle_TR, "t r -> t 1 r"))
        weight_BTU = self.weights_proj(x_BTD) * self.scale
        return index_scores(query_BTUZ, weight_BTU, self.compressor(x_BTD, angle_TR))


def grouped_output(out_BTHK, wo_a, wo_b, n_groups):
    """Heads to [B, T, D]: each of G groups of neighbouring heads to O channels, all of these to D.

    wo_a  [G O, H / G K], the groups' matrices one below the other
    wo_b  [D, G O]
    """
    grouped = rearrange(out_BTHK, "b t (g h) k -> b t g (h k)", g=n_groups)
    weight_GOK = rearrange(wo_a, "(g o) k -> g o k", g=n_groups)
    latent = einsum(grouped, weight_GOK, "b t g k, g o k -> b t g o")
    return F.linear(rearrange(latent, "b t g o -> b t (g o)"), wo_b)


class Attention(nn.Module):
    """A layer of kind WINDOW, CSA or HCA."""

    def __init__(self, config, layer):
        super().__init__()
        self.config = config
        self.kind = config.layer_types[layer].name
        self.ratio = config.compress_ratios[layer]  # M; 0 in a WINDOW layer
        inner = config.num_attention_heads * config.head_dim
        latent = config.o_groups * config.o_lora_rank
        self.wq_a = nn.Linear(config.hidden_size, config.q_lora_rank, bias=False)
        self.q_norm = RMSNorm(config.q_lora_rank, config.rms_norm_eps)
        self.wq_b = nn.Linear(config.q_lora_rank, inner, bias=False)
        self.wkv = nn.Linear(config.hidden_size, config.head_dim, bias=False)
        self.kv_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.attn_sink = nn.Parameter(torch.zeros(config.num_attention_heads))
        self.wo_a = nn.Linear(inner // config.o_groups, latent, bias=False)
        self.wo_b = nn.Linear(latent, config.hidden_size, bias=False)
        if self.kind != "WINDOW":
            self.compressor = Compressor(config, config.head_dim, self.ratio, overlap=self.kind == "CSA")
        if self.kind == "CSA":
            self.indexer = Indexer(config, self.ratio)

    def angles(self, n_tokens):
        """The angles [T, R/2] of positions 0 to T - 1; layers that compress have a base of their own, and YaRN."""
        config = self.config
        if self.kind == "WINDOW":
            speed_R = frequencies(config.qk_rope_head_dim, config.rope_theta)
        else:
            speed_R = frequencies(config.qk_rope_head_dim, config.compress_rope_theta, config.rope_scaling)
        return rearrange(torch.arange(n_tokens), "t -> t 1") * speed_R

    def compressed(self, x_BTD, latent_BTQ, angle_TR):
        """Compressed entries [B, C, K], and whether a query reads them [1 or B, T, C]: all it sees, or its picks."""
        entries_BCK = self.compressor(x_BTD, angle_TR)
        sees_TC = entry_map(x_BTD.shape[1], entries_BCK.shape[1], self.ratio)
        if self.kind == "HCA":
            return entries_BCK, rearrange(sees_TC, "t c -> 1 t c")
        return entries_BCK, pick(self.indexer(x_BTD, latent_BTQ, angle_TR), sees_TC, self.config.index_topk)

    def forward(self, x_BTD):
        """The layer's output [B, T, D]; eqs. (13), (18), (19) and (24)-(27)."""
        config = self.config
        n_tokens = x_BTD.shape[1]
        angle_TR = self.angles(n_tokens)
        angle_T1R = rearrange(angle_TR, "t r -> t 1 r")  # the same for all heads
        latent_BTQ = self.q_norm(self.wq_a(x_BTD))
        query_BTHK = rearrange(self.wq_b(latent_BTQ), "b t (h k) -> b t h k", h=config.num_attention_heads)
        query_BTHK = rotate(rms_norm(query_BTHK, None, config.rms_norm_eps), angle_T1R)
        entries = rotate(self.kv_norm(self.wkv(x_BTD)), angle_TR)
        sees = rearrange(window_map(n_tokens, config.sliding_window), "t s -> 1 t s")
        if self.kind != "WINDOW":
            entries_BCK, reads_BTC = self.compressed(x_BTD, latent_BTQ, angle_TR)
            entries = torch.cat([entries, entries_BCK], dim=1)
            sees = torch.cat([sees.expand(len(reads_BTC), -1, -1), reads_BTC], dim=-1)
        out_BTHK = rotate(attend(query_BTHK, entries, sees, self.attn_sink), -angle_T1R)  # values were turned as keys
        return grouped_output(out_BTHK, self.wo_a.weight, self.wo_b.weight, config.o_groups)


# ---- streams ----


def sinkhorn(logits_BTij, iterations, eps):
    """Nearly doubly stochastic matrices [B, T, old, new]: a softmax, then columns, rows, columns ...; (2), (8)."""
    carry = logits_BTij.softmax(dim=-1) + eps
    carry = carry / (reduce(carry, "b t i j -> b t 1 j", "sum") + eps)
    for _ in range(iterations - 1):
        carry = carry / (reduce(carry, "b t i j -> b t i 1", "sum") + eps)
        carry = carry / (reduce(carry, "b t i j -> b t 1 j", "sum") + eps)
    return carry


def stream_logits(streams_BTND, fn, eps):
    """`fn` times a token's streams as one vector, normed without a weight [B, T, rows of fn]; in eqs. (3)-(5)."""
    return F.linear(rms_norm(rearrange(streams_BTND, "b t n d -> b t (n d)"), None, eps), fn)


def mix(streams_BTND, fn, base, scale, config):
    """What a site reads, writes and carries: pre [B, T, N], post [B, T, N], carry [B, T, old, new]; eqs. (3)-(8).

    fn     [(2 + N) N, N D], rows for pre, post, carry (old by old)
    base   biases [(2 + N) N], in the same order
    scale  [3], of pre, post and carry
    """
    n = config.hc_mult
    sizes = [n, n, n * n]
    pre, post, carry = stream_logits(streams_BTND, fn, config.rms_norm_eps).split(sizes, dim=-1)
    pre_base, post_base, carry_base = base.split(sizes)
    pre_BTN = (scale[0] * pre + pre_base).sigmoid() + config.hc_eps
    post_BTN = 2 * (scale[1] * post + post_base).sigmoid()
    carry_BTij = rearrange(scale[2] * carry + carry_base, "b t (i j) -> b t i j", i=n)
    return pre_BTN, post_BTN, sinkhorn(carry_BTij, config.hc_sinkhorn_iters, config.hc_eps)


def collapse(streams_BTND, pre_BTN):
    """What a sub-layer reads [B, T, D]: `sum_n pre[n] stream[n]`; eq. (1)."""
    return einsum(pre_BTN, streams_BTND, "b t n, b t n d -> b t d")


def write(streams_BTND, y_BTD, post_BTN, carry_BTij):
    """New stream j: `post[j] y + sum_i carry[i, j] stream[i]` [B, T, N, D]; eq. (1)."""
    carried_BTND = einsum(carry_BTij, streams_BTND, "b t i j, b t i d -> b t j d")
    return carried_BTND + einsum(post_BTN, y_BTD, "b t n, b t d -> b t n d")


# ---- experts ----


def swiglu(gate, up, limit):
    """`silu(min(gate, limit)) * clip(up, -limit, limit)`."""
    return F.silu(gate.clamp(max=limit)) * up.clamp(-limit, limit)


def affinities(x_BTD, weight_ED):
    """A router's scores [B, T, E]: `sqrt(softplus(x . weight))`."""
    return F.softplus(F.linear(x_BTD, weight_ED)).sqrt()  # to train, see `minidsv4.ops`: the slope at 0 is 0 / 0


class Router(nn.Module):
    """Which experts a token visits, by score or by a table, and how loud each is."""

    def __init__(self, config, layer):
        super().__init__()
        self.by_hash = config.mlp_layer_types[layer].name == "HASH"
        self.active = config.num_experts_per_tok
        self.route_scale = config.routed_scaling_factor
        self.weight = nn.Parameter(torch.zeros(config.n_routed_experts, config.hidden_size))
        if self.by_hash:
            table = torch.zeros(config.vocab_size, self.active, dtype=torch.int64)
            self.register_buffer("tid2eid", table)  # experts of each token id
        else:
            self.register_buffer("bias", torch.zeros(config.n_routed_experts))

    def forward(self, x_BTD, ids_BT):
        """The experts of each token [B, T, A], by table or as the best of score + bias, and their weights [B, T, A]."""
        score_BTE = affinities(x_BTD, self.weight)
        if self.by_hash:
            picked_BTA = self.tid2eid[ids_BT]
        else:
            biased_BTE = score_BTE + self.bias
            picked_BTA = biased_BTE.sort(dim=-1, descending=True, stable=True).indices[..., : self.active]
        chosen_BTA = score_BTE.gather(-1, picked_BTA)
        total = reduce(chosen_BTA, "b t a -> b t 1", "sum") + 1e-20
        return picked_BTA, self.route_scale * chosen_BTA / total


class Expert(nn.Module):
    """A gated network."""

    def __init__(self, config):
        super().__init__()
        self.limit = config.swiglu_limit
        self.w1 = nn.Linear(config.hidden_size, config.moe_intermediate_size, bias=False)
        self.w2 = nn.Linear(config.moe_intermediate_size, config.hidden_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.moe_intermediate_size, bias=False)

    def forward(self, x_BTD):
        """`w2 swiglu(w1 x, w3 x)` [B, T, D]."""
        return self.w2(swiglu(self.w1(x_BTD), self.w3(x_BTD), self.limit))


class MoE(nn.Module):
    """One shared expert, and E routed ones."""

    def __init__(self, config, layer):
        super().__init__()
        self.gate = Router(config, layer)
        self.experts = nn.ModuleList(Expert(config) for _ in range(config.n_routed_experts))
        self.shared_experts = Expert(config)

    def forward(self, x_BTD, ids_BT):
        """The shared expert, and the picked ones times their weights [B, T, D]."""
        picked_BTA, weight_BTA = self.gate(x_BTD, ids_BT)
        y_BTD = self.shared_experts(x_BTD)
        for e, expert in enumerate(self.experts):
            weight_BT1 = reduce(weight_BTA * (picked_BTA == e), "b t a -> b t 1", "sum")
            y_BTD = y_BTD + weight_BT1 * expert(x_BTD)
        return y_BTD


# ---- the whole ----


class Block(nn.Module):
    """Attention and experts, each between an mHC site's read and write."""

    def __init__(self, config, layer):
        super().__init__()
        self.config = config
        self.attn = Attention(config, layer)
        self.ffn = MoE(config, layer)
        self.attn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.ffn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        n = config.hc_mult
        for site in ("hc_attn", "hc_ffn"):
            self.register_parameter(f"{site}_fn", nn.Parameter(torch.zeros((2 + n) * n, n * config.hidden_size)))
            self.register_parameter(f"{site}_base", nn.Parameter(torch.zeros((2 + n) * n)))
            self.register_parameter(f"{site}_scale", nn.Parameter(torch.zeros(3)))

    def forward(self, streams_BTND, ids_BT):
        """The streams [B, T, N, D] after attention and then experts, each as collapse, norm, sub-layer, write."""
        pre, post, carry = mix(streams_BTND, self.hc_attn_fn, self.hc_attn_base, self.hc_attn_scale, self.config)
        y_BTD = self.attn(self.attn_norm(collapse(streams_BTND, pre)))
        streams_BTND = write(streams_BTND, y_BTD, post, carry)
        pre, post, carry = mix(streams_BTND, self.hc_ffn_fn, self.hc_ffn_base, self.hc_ffn_scale, self.config)
        y_BTD = self.ffn(self.ffn_norm(collapse(streams_BTND, pre)), ids_BT)
        return write(streams_BTND, y_BTD, post, carry)


class Model(nn.Module):
    """The whole."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        n = config.hc_mult
        self.hc_head_fn = nn.Parameter(torch.zeros(n, n * config.hidden_size))
        self.hc_head_base = nn.Parameter(torch.zeros(n))
        self.hc_head_scale = nn.Parameter(torch.zeros(1))

    def forward(self, ids_BT):
        """Logits [B, T, V]: N equal streams, the blocks, the head's collapse by sigmoid gates + eps, norm, head."""
        streams_BTND = repeat(self.embed(ids_BT), "b t d -> b t n d", n=self.config.hc_mult)
        for block in self.layers:
            streams_BTND = block(streams_BTND, ids_BT)
        logits_BTN = stream_logits(streams_BTND, self.hc_head_fn, self.config.rms_norm_eps)
        gate_BTN = (self.hc_head_scale * logits_BTN + self.hc_head_base).sigmoid() + self.config.hc_eps
        return self.head(self.norm(collapse(streams_BTND, gate_BTN)))


@torch.no_grad()
def write_on(model, ids, n_tokens):
    """The `n_tokens` token ids that follow the list `ids`, always the likeliest; one full pass a token."""
    ids = list(ids)
    n_prompt = len(ids)
    for _ in range(n_tokens):
        logits_BTV = model(torch.tensor([ids]))
        ids.append(logits_BTV[0, -1].argmax().item())
    return ids[n_prompt:]
