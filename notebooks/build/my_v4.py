"""Your DeepSeek-V4: every `raise NotImplementedError` is yours to write.

The notebooks beside this file say what, in which order. A docstring says what is to be
returned, in shapes; constructors are given, so that tensors have their released names.
`build.check("rotate")` in a notebook loads this file as it is saved, and says how that
step stands.

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
    raise NotImplementedError


def frequencies(n_rotary, base, yarn=None):
    """Radians per token of each channel pair [R/2]: `base^(-2i/R)`.

    n_rotary  R
    yarn      None, or YaRN's settings: pairs up to `low` stay as they are, from `high`
              on they are divided by `factor`, between them it fades
    """
    raise NotImplementedError


def rotate(x, angle):
    """`x` with its last R channels turned, as pairs (2i, 2i + 1), by their angles.

    x      [..., K]
    angle  [..., R/2] radians
    """
    raise NotImplementedError


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
    raise NotImplementedError


def entry_map(n_tokens, n_entries, ratio):
    """Whether query t sees entry c [T, C]: its last token is at t or before."""
    raise NotImplementedError


def attend(query_BTHK, entries_BSK, sees_BTS, sinks_H):
    """Core attention [B, T, H, K], an entry being key and value; (19), (26), (27).

    query_BTHK   normed and turned
    entries_BSK  one series of entries for all heads
    sees_BTS     whether a query sees an entry, [1 or B, T, S]
    sinks_H      a logit for each head, which takes weight and has no value
    """
    raise NotImplementedError


def pool(values_BCSK, gates_BCSK, bias_SK):
    """Entries [B, C, K]: in each channel a weighted sum over slots; (11), (12).

    The weights are the softmax of gate + bias over slots.
    """
    raise NotImplementedError


def overlapped(series_BCMK, nothing):
    """Slots [B, C, 2 M, K]: those of the window before, then those of the own window.

    series_BCMK  windows of M tokens with 2 K channels: the first half is what a token
                 gives to the next window, the second what it gives to its own
    nothing      the number in the slots before window 0
    """
    raise NotImplementedError


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
        raise NotImplementedError


def index_scores(query_BTUZ, weight_BTU, keys_BCZ):
    """`I[t, c] = sum_u w[t, u] relu(q[t, u] . k[c])` [B, T, C]; (16)."""
    raise NotImplementedError


def pick(score_BTC, sees_TC, n_picked):
    """Whether query t reads entry c [B, T, C]: the best of those it sees; (17).

    Of equal scores the lower index wins.
    """
    raise NotImplementedError


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
        raise NotImplementedError


def grouped_output(out_BTHK, wo_a, wo_b, n_groups):
    """Heads to [B, T, D]: each of G groups of neighbours to O channels, these to D.

    wo_a  [G O, H / G K], the groups' matrices one below the other
    wo_b  [D, G O]
    """
    raise NotImplementedError


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
        raise NotImplementedError

    def compressed(self, x_BTD, latent_BTQ, angle_TR):
        """Compressed entries, and which each query reads, of a CSA or HCA layer.

        returns  [B, C, K], and a map [1 or B, T, C]: all it sees (HCA), or its picks
        """
        raise NotImplementedError

    def forward(self, x_BTD):
        """The layer's output [B, T, D]; (13), (18), (19) and (24)-(27)."""
        raise NotImplementedError


# ---- streams ----


def sinkhorn(logits_BTij, iterations, eps):
    """Nearly doubly stochastic matrices [B, T, old, new]; (2), (8).

    A round divides rows by their sums, then columns; the first division of rows is a
    softmax. eps is added to the softmax, and to every sum that divides.
    """
    raise NotImplementedError


def stream_logits(streams_BTND, fn, eps):
    """`fn` times a token's streams as one normed vector [B, T, rows of fn]; (3)-(5)."""
    raise NotImplementedError


def mix(streams_BTND, fn, base, scale, config):
    """How a site reads, writes and carries on: pre, post and carry; (3)-(8).

    fn       [(2 + N) N, N D], rows for pre, post, and carry (old stream by old stream)
    base     biases [(2 + N) N], in the same order
    scale    [3], of pre, post and carry
    returns  pre [B, T, N], post [B, T, N], carry [B, T, old, new]
    """
    raise NotImplementedError


def collapse(streams_BTND, pre_BTN):
    """What a sub-layer reads [B, T, D]: `sum_n pre[n] stream[n]`; (1)."""
    raise NotImplementedError


def write(streams_BTND, y_BTD, post_BTN, carry_BTij):
    """New stream j [B, T, N, D]: `post[j] y + sum_i carry[i, j] stream[i]`; (1)."""
    raise NotImplementedError


# ---- experts ----


def swiglu(gate, up, limit):
    """`silu(min(gate, limit)) * clip(up, -limit, limit)`."""
    raise NotImplementedError


def affinities(x_BTD, weight_ED):
    """A router's scores [B, T, E]: `sqrt(softplus(x . weight))`."""
    raise NotImplementedError


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
        raise NotImplementedError


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
        raise NotImplementedError


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
        raise NotImplementedError


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
        raise NotImplementedError


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
        raise NotImplementedError


@torch.no_grad()
def write_on(model, ids, n_tokens):
    """A list of the `n_tokens` ids that follow the list `ids`, always the likeliest."""
    raise NotImplementedError
