"""DeepSeek-V4 in one file: `Model(config)(ids_BT)` gives logits, without a cache.

Tensors have their released names, so `Model.load_state_dict` takes a released
checkpoint. Numbers of equations are those of the report.

Letters: B batch, T tokens (queries), S tokens or entries attended to, D model width,
H query heads, K head width, R its rotary part, Q query rank, G output groups, O rank
of a group, W window, M tokens per compressed entry, C compressed entries, P picked
ones, U index heads, Z index width, E experts, A active ones, F expert width,
N streams (i old, j new), V vocabulary.
"""

import math

import torch
from einops import einsum, rearrange, reduce, repeat
from torch import nn
from torch.nn import functional as F

# ---- pieces ----


def rms_norm(x, weight, eps):
    """`weight * x / sqrt(mean(x^2) + eps)` over the last axis; None is no weight."""
    normed = x * torch.rsqrt(reduce(x * x, "... d -> ... 1", "mean") + eps)
    return normed if weight is None else normed * weight


def frequencies(n_rotary, base, yarn=None):
    """Radians per token of each channel pair [R/2]: `base^(-2i/R)`.

    n_rotary  R
    yarn      None, or YaRN's settings: pairs up to `low` stay as they are, from `high`
              on they are divided by `factor`, between them it fades
    """
    pair = torch.arange(n_rotary // 2)
    radians = base ** (-2 * pair / n_rotary)
    if yarn is None:
        return radians

    def pair_that_turns(times):
        period = yarn.original_max_position_embeddings / times
        return n_rotary * math.log(period / (2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(pair_that_turns(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(yarn.beta_slow)), n_rotary - 1)
    slowed = ((pair - low) / max(high - low, 0.001)).clamp(0, 1)
    return (1 - slowed) * radians + slowed * radians / yarn.factor


def rotate(x, angle):
    """`x` with its last R channels turned, as pairs (2i, 2i + 1), by their angles.

    x      [..., K]
    angle  [..., R/2] radians
    """
    n_rotary = 2 * angle.shape[-1]
    still = x[..., :-n_rotary]
    rotary = x[..., -n_rotary:]
    even, odd = rearrange(rotary, "... (r pair) -> pair ... r", pair=2)
    turned_even = even * angle.cos() - odd * angle.sin()
    turned_odd = even * angle.sin() + odd * angle.cos()
    turned = [turned_even, turned_odd]
    turned = rearrange(turned, "pair ... r -> ... (r pair)", pair=2)
    return torch.cat([still, turned], dim=-1)


class RMSNorm(nn.Module):
    """A norm with its weight."""

    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return rms_norm(x, self.weight, self.eps)


def linear(n_in, n_out):
    """A matrix, the only kind of layer with weights that V4 has."""
    return nn.Linear(n_in, n_out, bias=False)


# ---- attention: who sees what, and what is read ----


def window_map(n_tokens, window):
    """Whether query t sees token s [T, S]: the last W tokens, its own included."""
    position = torch.arange(n_tokens)
    age = rearrange(position, "t -> t 1") - position
    return (age >= 0) & (age < window)


def entry_map(n_tokens, n_entries, ratio):
    """Whether query t sees entry c [T, C]: its last token is at t or before."""
    n_finished = (torch.arange(n_tokens) + 1) // ratio
    return torch.arange(n_entries) < rearrange(n_finished, "t -> t 1")


def attend(query_BTHK, entries_BSK, sees_BTS, sinks_H):
    """Core attention [B, T, H, K], an entry being key and value; (19), (26), (27).

    query_BTHK   normed and turned
    entries_BSK  one series of entries for all heads
    sees_BTS     whether a query sees an entry, [1 or B, T, S]
    sinks_H      a logit for each head, which takes weight and has no value
    """
    n_batch, n_tokens, _, width = query_BTHK.shape
    dots = einsum(query_BTHK, entries_BSK, "b t h k, b s k -> b t h s")
    hidden = ~rearrange(sees_BTS, "b t s -> b t 1 s")
    score_BTHS = (dots * width**-0.5).masked_fill(hidden, -math.inf)
    sink = repeat(sinks_H, "h -> b t h 1", b=n_batch, t=n_tokens)
    weight_BTHS = torch.cat([score_BTHS, sink], dim=-1).softmax(dim=-1)[..., :-1]
    return einsum(weight_BTHS, entries_BSK, "b t h s, b s k -> b t h k")


def pool(values_BCSK, gates_BCSK, bias_SK):
    """Entries [B, C, K]: in each channel a weighted sum over slots; (11), (12).

    The weights are the softmax of gate + bias over slots.
    """
    weight_BCSK = (gates_BCSK + bias_SK).softmax(dim=2)
    return reduce(weight_BCSK * values_BCSK, "b c s k -> b c k", "sum")


def overlapped(series_BCMK, nothing):
    """Slots [B, C, 2 M, K]: those of the window before, then those of the own window.

    series_BCMK  windows of M tokens with 2 K channels: the first half is what a token
                 gives to the next window, the second what it gives to its own
    nothing      the number in the slots before window 0
    """
    halves = rearrange(series_BCMK, "b c m (two k) -> two b c m k", two=2)
    as_previous, as_current = halves
    before = torch.full_like(as_previous[:, :1], nothing)
    previous = torch.cat([before, as_previous[:, :-1]], dim=1)
    return torch.cat([previous, as_current], dim=2)


class Compressor(nn.Module):
    """M tokens become one entry; with `overlap` (CSA) the M before them take part."""

    def __init__(self, config, entry_width, ratio, overlap):
        super().__init__()
        n_channels = entry_width * (2 if overlap else 1)
        self.ratio = ratio  # M
        self.overlap = overlap
        self.wkv = linear(config.hidden_size, n_channels)
        self.wgate = linear(config.hidden_size, n_channels)
        self.ape = nn.Parameter(torch.zeros(ratio, n_channels))
        self.norm = RMSNorm(entry_width, config.rms_norm_eps)

    def forward(self, x_BTD, angle_TR):
        """Entries [B, C, K] of the C = T // M full windows; (9)-(12), (20)-(23).

        Pooled, normed, and turned to the position of the window's first token.

        angle_TR  the angles [T, R/2] of the tokens' positions
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
        entries_BCK = self.norm(pool(values, gates, bias_SK))
        return rotate(entries_BCK, angle_TR[: n_full : self.ratio])


def index_scores(query_BTUZ, weight_BTU, keys_BCZ):
    """`I[t, c] = sum_u w[t, u] relu(q[t, u] . k[c])` [B, T, C]; (16)."""
    dots_BTUC = einsum(query_BTUZ, keys_BCZ, "b t u z, b c z -> b t u c")
    return einsum(weight_BTU, dots_BTUC.relu(), "b t u, b t u c -> b t c")


def pick(score_BTC, sees_TC, n_picked):
    """Whether query t reads entry c [B, T, C]: the best of those it sees; (17).

    Of equal scores the lower index wins.
    """
    score_BTC = score_BTC.masked_fill(~sees_TC, -math.inf)
    order = score_BTC.sort(dim=-1, descending=True, stable=True).indices
    nothing = torch.zeros_like(score_BTC, dtype=torch.bool)
    return nothing.scatter(-1, order[..., :n_picked], True) & sees_TC


class Indexer(nn.Module):
    """Cheap scores by which CSA picks entries."""

    def __init__(self, config, ratio):
        super().__init__()
        inner = config.index_n_heads * config.index_head_dim
        self.heads = config.index_n_heads
        self.scale = inner**-0.5
        self.wq_b = linear(config.q_lora_rank, inner)
        self.weights_proj = linear(config.hidden_size, config.index_n_heads)
        self.compressor = Compressor(config, config.index_head_dim, ratio, overlap=True)

    def forward(self, x_BTD, latent_BTQ, angle_TR):
        """Scores of all entries for all queries [B, T, C]; (14)-(16)."""
        query = rearrange(self.wq_b(latent_BTQ), "b t (u z) -> b t u z", u=self.heads)
        query_BTUZ = rotate(query, rearrange(angle_TR, "t r -> t 1 r"))
        weight_BTU = self.weights_proj(x_BTD) * self.scale
        return index_scores(query_BTUZ, weight_BTU, self.compressor(x_BTD, angle_TR))


def grouped_output(out_BTHK, wo_a, wo_b, n_groups):
    """Heads to [B, T, D]: each of G groups of neighbours to O channels, these to D.

    wo_a  [G O, H / G K], the groups' matrices one below the other
    wo_b  [D, G O]
    """
    heads = rearrange(out_BTHK, "b t (g h) k -> b t g (h k)", g=n_groups)
    weight_GOK = rearrange(wo_a, "(g o) k -> g o k", g=n_groups)
    latent = einsum(heads, weight_GOK, "b t g k, g o k -> b t g o")
    return F.linear(rearrange(latent, "b t g o -> b t (g o)"), wo_b)


class Attention(nn.Module):
    """A layer of kind "WINDOW", "CSA" or "HCA"."""

    def __init__(self, config, layer):
        super().__init__()
        inner = config.num_attention_heads * config.head_dim
        latent = config.o_groups * config.o_lora_rank
        self.config = config
        self.kind = config.layer_types[layer].name
        self.ratio = config.compress_ratios[layer]  # M; 0 in a WINDOW layer
        self.wq_a = linear(config.hidden_size, config.q_lora_rank)
        self.q_norm = RMSNorm(config.q_lora_rank, config.rms_norm_eps)
        self.wq_b = linear(config.q_lora_rank, inner)
        self.wkv = linear(config.hidden_size, config.head_dim)
        self.kv_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.attn_sink = nn.Parameter(torch.zeros(config.num_attention_heads))
        self.wo_a = linear(inner // config.o_groups, latent)
        self.wo_b = linear(latent, config.hidden_size)
        overlap = self.kind == "CSA"
        if self.kind != "WINDOW":
            self.compressor = Compressor(config, config.head_dim, self.ratio, overlap)
        if self.kind == "CSA":
            self.indexer = Indexer(config, self.ratio)

    def angles(self, n_tokens):
        """The angles [T, R/2] of positions 0 to T - 1, by the layer's own base."""
        config = self.config
        base = config.compress_rope_theta
        yarn = config.rope_scaling
        if self.kind == "WINDOW":
            base = config.rope_theta
            yarn = None
        speed_R = frequencies(config.qk_rope_head_dim, base, yarn)
        return rearrange(torch.arange(n_tokens), "t -> t 1") * speed_R

    def compressed(self, x_BTD, latent_BTQ, angle_TR):
        """Compressed entries, and which each query reads, of a CSA or HCA layer.

        returns  [B, C, K], and a map [1 or B, T, C]: all it sees (HCA), or its picks
        """
        entries_BCK = self.compressor(x_BTD, angle_TR)
        sees_TC = entry_map(x_BTD.shape[1], entries_BCK.shape[1], self.ratio)
        if self.kind == "HCA":
            return entries_BCK, rearrange(sees_TC, "t c -> 1 t c")
        score_BTC = self.indexer(x_BTD, latent_BTQ, angle_TR)
        return entries_BCK, pick(score_BTC, sees_TC, self.config.index_topk)

    def forward(self, x_BTD):
        """The layer's output [B, T, D]; (13), (18), (19) and (24)-(27)."""
        config = self.config
        n_tokens = x_BTD.shape[1]
        angle_TR = self.angles(n_tokens)
        angle_THR = rearrange(angle_TR, "t r -> t 1 r")  # the same for all heads
        latent_BTQ = self.q_norm(self.wq_a(x_BTD))
        heads = config.num_attention_heads
        query = rearrange(self.wq_b(latent_BTQ), "b t (h k) -> b t h k", h=heads)
        query_BTHK = rotate(rms_norm(query, None, config.rms_norm_eps), angle_THR)
        entries = rotate(self.kv_norm(self.wkv(x_BTD)), angle_TR)
        sees = window_map(n_tokens, config.sliding_window)
        sees = rearrange(sees, "t s -> 1 t s")
        if self.kind != "WINDOW":
            entries_BCK, reads_BTC = self.compressed(x_BTD, latent_BTQ, angle_TR)
            entries = torch.cat([entries, entries_BCK], dim=1)
            sees = torch.cat([sees.expand(len(reads_BTC), -1, -1), reads_BTC], dim=-1)
        out_BTHK = attend(query_BTHK, entries, sees, self.attn_sink)
        out_BTHK = rotate(out_BTHK, -angle_THR)  # values were turned, being the keys
        wo_a = self.wo_a.weight
        return grouped_output(out_BTHK, wo_a, self.wo_b.weight, config.o_groups)


# ---- streams ----


def sinkhorn(logits_BTij, iterations, eps):
    """Nearly doubly stochastic matrices [B, T, old, new]; (2), (8).

    A round divides rows by their sums, then columns; the first division of rows is a
    softmax. eps is added to the softmax, and to every sum that divides.
    """
    mixed = logits_BTij.softmax(dim=-1) + eps
    mixed = mixed / (reduce(mixed, "b t i j -> b t 1 j", "sum") + eps)
    for _ in range(iterations - 1):
        mixed = mixed / (reduce(mixed, "b t i j -> b t i 1", "sum") + eps)
        mixed = mixed / (reduce(mixed, "b t i j -> b t 1 j", "sum") + eps)
    return mixed


def stream_logits(streams_BTND, fn, eps):
    """`fn` times a token's streams as one normed vector [B, T, rows of fn]; (3)-(5)."""
    flat = rearrange(streams_BTND, "b t n d -> b t (n d)")
    return F.linear(rms_norm(flat, None, eps), fn)


def mix(streams_BTND, fn, base, scale, config):
    """How a site reads, writes and carries on: pre, post and carry; (3)-(8).

    fn       [(2 + N) N, N D], rows for pre, post, and carry (old stream by old stream)
    base     biases [(2 + N) N], in the same order
    scale    [3], of pre, post and carry
    returns  pre [B, T, N], post [B, T, N], carry [B, T, old, new]
    """
    n = config.hc_mult
    sizes = [n, n, n * n]
    logits = stream_logits(streams_BTND, fn, config.rms_norm_eps)
    pre, post, carry = logits.split(sizes, dim=-1)
    pre_base, post_base, carry_base = base.split(sizes)
    pre_BTN = (scale[0] * pre + pre_base).sigmoid() + config.hc_eps
    post_BTN = 2 * (scale[1] * post + post_base).sigmoid()
    carry = rearrange(scale[2] * carry + carry_base, "b t (i j) -> b t i j", i=n)
    carry_BTij = sinkhorn(carry, config.hc_sinkhorn_iters, config.hc_eps)
    return pre_BTN, post_BTN, carry_BTij


def collapse(streams_BTND, pre_BTN):
    """What a sub-layer reads [B, T, D]: `sum_n pre[n] stream[n]`; (1)."""
    return einsum(pre_BTN, streams_BTND, "b t n, b t n d -> b t d")


def write(streams_BTND, y_BTD, post_BTN, carry_BTij):
    """New stream j [B, T, N, D]: `post[j] y + sum_i carry[i, j] stream[i]`; (1)."""
    carried_BTND = einsum(carry_BTij, streams_BTND, "b t i j, b t i d -> b t j d")
    return carried_BTND + einsum(post_BTN, y_BTD, "b t n, b t d -> b t n d")


# ---- experts ----


def swiglu(gate, up, limit):
    """`silu(min(gate, limit)) * clip(up, -limit, limit)`."""
    return F.silu(gate.clamp(max=limit)) * up.clamp(-limit, limit)


def affinities(x_BTD, weight_ED):
    """A router's scores [B, T, E]: `sqrt(softplus(x . weight))`."""
    # To train, see `minidsv4.ops`: where softplus underflows, this slope is 0 / 0.
    return F.softplus(F.linear(x_BTD, weight_ED)).sqrt()


class Router(nn.Module):
    """Which experts a token visits, by score or by a table, and how loud each is."""

    def __init__(self, config, layer):
        super().__init__()
        n_experts = config.n_routed_experts
        self.active = config.num_experts_per_tok  # A
        self.route_scale = config.routed_scaling_factor
        self.weight = nn.Parameter(torch.zeros(n_experts, config.hidden_size))
        self.by_hash = config.mlp_layer_types[layer].name == "HASH"
        if self.by_hash:  # the experts of each token id
            table = torch.zeros(config.vocab_size, self.active, dtype=torch.int64)
            self.register_buffer("tid2eid", table)
        else:
            self.register_buffer("bias", torch.zeros(n_experts))

    def forward(self, x_BTD, ids_BT):
        """The experts of each token [B, T, A] and their weights [B, T, A].

        By table, or the best of score + bias. Weights are the scores of the chosen,
        divided by their sum, times the route scale.
        """
        score_BTE = affinities(x_BTD, self.weight)
        if self.by_hash:
            picked_BTA = self.tid2eid[ids_BT]
        else:
            biased = score_BTE + self.bias
            order = biased.sort(dim=-1, descending=True, stable=True).indices
            picked_BTA = order[..., : self.active]
        chosen_BTA = score_BTE.gather(-1, picked_BTA)
        total = reduce(chosen_BTA, "b t a -> b t 1", "sum") + 1e-20
        return picked_BTA, self.route_scale * chosen_BTA / total


class Expert(nn.Module):
    """A gated network of width F."""

    def __init__(self, config):
        super().__init__()
        self.limit = config.swiglu_limit
        self.w1 = linear(config.hidden_size, config.moe_intermediate_size)
        self.w2 = linear(config.moe_intermediate_size, config.hidden_size)
        self.w3 = linear(config.hidden_size, config.moe_intermediate_size)

    def forward(self, x_BTD):
        """`w2 swiglu(w1 x, w3 x)` [B, T, D]."""
        return self.w2(swiglu(self.w1(x_BTD), self.w3(x_BTD), self.limit))


class MoE(nn.Module):
    """One shared expert, and E routed ones."""

    def __init__(self, config, layer):
        super().__init__()
        self.gate = Router(config, layer)
        routed = [Expert(config) for _ in range(config.n_routed_experts)]
        self.experts = nn.ModuleList(routed)
        self.shared_experts = Expert(config)

    def forward(self, x_BTD, ids_BT):
        """The shared expert, and the chosen ones times their weights [B, T, D]."""
        picked_BTA, weight_BTA = self.gate(x_BTD, ids_BT)
        y_BTD = self.shared_experts(x_BTD)
        for e, expert in enumerate(self.experts):
            weight = reduce(weight_BTA * (picked_BTA == e), "b t a -> b t 1", "sum")
            y_BTD = y_BTD + weight * expert(x_BTD)
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
        rows = (2 + n) * n
        self.hc_attn_fn = nn.Parameter(torch.zeros(rows, n * config.hidden_size))
        self.hc_attn_base = nn.Parameter(torch.zeros(rows))
        self.hc_attn_scale = nn.Parameter(torch.zeros(3))
        self.hc_ffn_fn = nn.Parameter(torch.zeros(rows, n * config.hidden_size))
        self.hc_ffn_base = nn.Parameter(torch.zeros(rows))
        self.hc_ffn_scale = nn.Parameter(torch.zeros(3))

    def forward(self, streams_BTND, ids_BT):
        """The streams [B, T, N, D] after both; each is mix, collapse, norm, write."""
        attn_site = self.hc_attn_fn, self.hc_attn_base, self.hc_attn_scale
        pre, post, carry = mix(streams_BTND, *attn_site, self.config)
        y_BTD = self.attn(self.attn_norm(collapse(streams_BTND, pre)))
        streams_BTND = write(streams_BTND, y_BTD, post, carry)

        ffn_site = self.hc_ffn_fn, self.hc_ffn_base, self.hc_ffn_scale
        pre, post, carry = mix(streams_BTND, *ffn_site, self.config)
        y_BTD = self.ffn(self.ffn_norm(collapse(streams_BTND, pre)), ids_BT)
        return write(streams_BTND, y_BTD, post, carry)


class Model(nn.Module):
    """The whole, but for the MTP block, which only training and drafts need."""

    def __init__(self, config):
        super().__init__()
        n = config.hc_mult
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        blocks = [Block(config, layer) for layer in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList(blocks)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = linear(config.hidden_size, config.vocab_size)
        self.hc_head_fn = nn.Parameter(torch.zeros(n, n * config.hidden_size))
        self.hc_head_base = nn.Parameter(torch.zeros(n))
        self.hc_head_scale = nn.Parameter(torch.zeros(1))

    def forward(self, ids_BT):
        """Logits [B, T, V]: N equal streams, the blocks, a last collapse, norm, head.

        The last collapse has gates like a site's `pre`: sigmoid, and hc_eps.
        """
        config = self.config
        streams_BTND = repeat(self.embed(ids_BT), "b t d -> b t n d", n=config.hc_mult)
        for block in self.layers:
            streams_BTND = block(streams_BTND, ids_BT)
        logits = stream_logits(streams_BTND, self.hc_head_fn, config.rms_norm_eps)
        gate = (self.hc_head_scale * logits + self.hc_head_base).sigmoid()
        x_BTD = collapse(streams_BTND, gate + config.hc_eps)
        return self.head(self.norm(x_BTD))


@torch.no_grad()
def write_on(model, ids, n_tokens):
    """A list of the `n_tokens` ids that follow the list `ids`, always the likeliest."""
    new = []
    for _ in range(n_tokens):
        logits_BTV = model(torch.tensor([[*ids, *new]]))
        new.append(logits_BTV[0, -1].argmax().item())
    return new
