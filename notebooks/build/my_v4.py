"""Your DeepSeek-V4: each `raise NotImplementedError` is yours to write, in the order of the notebooks.

A function's docstring says what it returns, in shapes; constructors are given, so that tensors have their released
names. In a notebook `build.check("rotate")` loads this file as it is saved, and says how that step stands.

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
    raise NotImplementedError


def frequencies(n_rotary, base, yarn=None):
    """Radians per token of each channel pair [R/2]: `base^(-2i/R)`; with YaRN slow pairs are slowed by its factor."""
    raise NotImplementedError


def rotate(x, angle):
    """`x` [..., K] with its last R channels turned as pairs (2i, 2i + 1) by `angle` [..., R/2]."""
    raise NotImplementedError


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
    raise NotImplementedError


def entry_map(n_tokens, n_entries, ratio):
    """Whether query t sees entry c [T, C]: once the last of its M tokens is at t or before."""
    raise NotImplementedError


def attend(query_BTHK, entries_BSK, sees_BTS, sinks_H):
    """Core attention [B, T, H, K], eqs. (19), (26), (27): an entry is key and value, a sink only takes weight.

    query_BTHK   normed and turned
    entries_BSK  one series of entries for all heads
    sees_BTS     whether a query sees an entry, [1 or B, T, S]
    sinks_H      a logit for each head
    """
    raise NotImplementedError


def pool(values_BCSK, gates_BCSK, bias_SK):
    """Entries [B, C, K]: values weighed by a softmax of gate + bias over slots, in each channel; (11), (12)."""
    raise NotImplementedError


def overlapped(series_BCMK, nothing):
    """Slots [B, C, 2 M, K]: the window before in the first half of the channels, then the window in the second half.

    series_BCMK  each of C windows of M tokens, 2 K channels
    nothing      number in the slots before window 0
    """
    raise NotImplementedError


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
        raise NotImplementedError


def index_scores(query_BTUZ, weight_BTU, keys_BCZ):
    """`I[t, c] = sum_u w[t, u] relu(q[t, u] . k[c])` [B, T, C]; eq. (16)."""
    raise NotImplementedError


def pick(score_BTC, sees_TC, n_picked):
    """Whether query t reads entry c [B, T, C]: the best of those it sees; of equal scores the lower index; eq. (17)."""
    raise NotImplementedError


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
        raise NotImplementedError


def grouped_output(out_BTHK, wo_a, wo_b, n_groups):
    """Heads to [B, T, D]: each of G groups of neighbouring heads to O channels, all of these to D.

    wo_a  [G O, H / G K], the groups' matrices one below the other
    wo_b  [D, G O]
    """
    raise NotImplementedError


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
        raise NotImplementedError

    def compressed(self, x_BTD, latent_BTQ, angle_TR):
        """Compressed entries [B, C, K], and whether a query reads them [1 or B, T, C]: all it sees, or its picks."""
        raise NotImplementedError

    def forward(self, x_BTD):
        """The layer's output [B, T, D]; eqs. (13), (18), (19) and (24)-(27)."""
        raise NotImplementedError


# ---- streams ----


def sinkhorn(logits_BTij, iterations, eps):
    """Nearly doubly stochastic matrices [B, T, old, new]: a softmax, then columns, rows, columns ...; (2), (8)."""
    raise NotImplementedError


def stream_logits(streams_BTND, fn, eps):
    """`fn` times a token's streams as one vector, normed without a weight [B, T, rows of fn]; in eqs. (3)-(5)."""
    raise NotImplementedError


def mix(streams_BTND, fn, base, scale, config):
    """What a site reads, writes and carries: pre [B, T, N], post [B, T, N], carry [B, T, old, new]; eqs. (3)-(8).

    fn     [(2 + N) N, N D], rows for pre, post, carry (old by old)
    base   biases [(2 + N) N], in the same order
    scale  [3], of pre, post and carry
    """
    raise NotImplementedError


def collapse(streams_BTND, pre_BTN):
    """What a sub-layer reads [B, T, D]: `sum_n pre[n] stream[n]`; eq. (1)."""
    raise NotImplementedError


def write(streams_BTND, y_BTD, post_BTN, carry_BTij):
    """New stream j: `post[j] y + sum_i carry[i, j] stream[i]` [B, T, N, D]; eq. (1)."""
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
        raise NotImplementedError


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
        raise NotImplementedError


class MoE(nn.Module):
    """One shared expert, and E routed ones."""

    def __init__(self, config, layer):
        super().__init__()
        self.gate = Router(config, layer)
        self.experts = nn.ModuleList(Expert(config) for _ in range(config.n_routed_experts))
        self.shared_experts = Expert(config)

    def forward(self, x_BTD, ids_BT):
        """The shared expert, and the picked ones times their weights [B, T, D]."""
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
        for site in ("hc_attn", "hc_ffn"):
            self.register_parameter(f"{site}_fn", nn.Parameter(torch.zeros((2 + n) * n, n * config.hidden_size)))
            self.register_parameter(f"{site}_base", nn.Parameter(torch.zeros((2 + n) * n)))
            self.register_parameter(f"{site}_scale", nn.Parameter(torch.zeros(3)))

    def forward(self, streams_BTND, ids_BT):
        """The streams [B, T, N, D] after attention and then experts, each as collapse, norm, sub-layer, write."""
        raise NotImplementedError


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
        raise NotImplementedError


@torch.no_grad()
def write_on(model, ids, n_tokens):
    """The `n_tokens` token ids that follow the list `ids`, always the likeliest; one full pass a token."""
    raise NotImplementedError
