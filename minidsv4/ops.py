"""DeepSeek-V4's mathematics on one page: every operation but plain matrix products.

Letters are those of `dims.py`: B batch, T tokens (queries), S window tokens or pooled
slots, D width, H heads, K head width, R rotary part, M tokens per entry, C compressed
entries, P picked entries, U index heads, Z index width, E experts, A active experts, F
expert width, N streams (i old, j new), V vocabulary. Equation numbers are the report's.
`PLAIN` names those that a layer calls; the others are parts of these.
`minidsv4.fast.FAST` holds exact replacements with the same signatures, held equal by
tests. What is held in 16 bits is computed in float32 where the released model does so;
float64 stays float64.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from einops import einsum, rearrange, reduce, repeat
from torch import Tensor
from torch.nn import functional as F

from minidsv4.visibility import Visibility

NO_TARGET = -100  # the target of a token that predicts nothing
EXP_IS_SOFTPLUS = -36.0  # below it log(1 + exp(z)) is exp(z) to a float64's last digit


def upcast(x: Tensor) -> Tensor:
    """`x` in float32 if it is held in 16 bits; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """`weight * x / sqrt(mean(x^2) + eps)`, last axis; query heads have no weight."""
    scale = None if weight is None else upcast(weight)
    return F.rms_norm(upcast(x), x.shape[-1:], scale, eps).to(x.dtype)


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Partial RoPE: the last R channels of `x`, as pairs, each turned by its angle.

    The pairs are (2i, 2i + 1).

    x     [..., K]
    turn  [..., R/2] complex of unit length; its conjugate turns back
    """
    n_rotary = 2 * turn.shape[-1]
    still, rotary = x[..., :-n_rotary], upcast(x[..., -n_rotary:])
    even, odd = rearrange(rotary, "... (r pair) -> pair ... r", pair=2)
    turned_even = even * turn.real - odd * turn.imag
    turned_odd = even * turn.imag + odd * turn.real
    turned = rearrange([turned_even, turned_odd], "pair ... r -> ... (r pair)", pair=2)
    return torch.cat([still, turned.to(x.dtype)], dim=-1)


# ---- compressed entries and their choice ---------------------------------------------


def slot_weights(gates_BCSK: Tensor, bias_SK: Tensor) -> Tensor:
    """`softmax(gate + position bias)` over slots [B, C, S, K]; eqs. (11), (22).

    Each channel has a softmax of its own.
    """
    return (upcast(gates_BCSK) + upcast(bias_SK)).softmax(dim=2)


def pool(values_BCSK: Tensor, gates_BCSK: Tensor, bias_SK: Tensor) -> Tensor:
    """Entries [B, C, K]: weighted sums of S slots, by channel; eqs. (12), (23)."""
    weighted_BCSK = slot_weights(gates_BCSK, bias_SK) * upcast(values_BCSK)
    return reduce(weighted_BCSK, "b c s k -> b c k", "sum")


def index_scores(query_BTUZ: Tensor, weight_BTU: Tensor, keys_BCZ: Tensor) -> Tensor:
    """`I[t, c] = sum_u w[t, u] relu(q[t, u] . k[c])` [B, T, C]; eq. (16)."""
    keys_BCZ = upcast(keys_BCZ)
    dots_BTUC = einsum(upcast(query_BTUZ), keys_BCZ, "b t u z, b c z -> b t u c")
    return einsum(upcast(weight_BTU), dots_BTUC.relu(), "b t u, b t u c -> b t c")


def stable_topk(score: Tensor, k: int) -> Tensor:
    """Indices of the k largest values of the last axis, in ascending order.

    On ties the lower index wins.
    """
    best = score.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return best.sort(dim=-1).values


def top_entries(
    query_BTUZ: Tensor,
    weight_BTU: Tensor,
    keys_BCZ: Tensor,
    sees: Visibility,
    k: int,
) -> Tensor:
    """`picks_BTP`: indices of the P = min(k, C) best visible entries, sorted; eq. (17).

    The best are those that score highest. A query that sees fewer gets hidden ones as
    well: `Visibility.entry_map` drops them.
    """
    score_BTC = index_scores(query_BTUZ, weight_BTU, keys_BCZ)
    return stable_topk(score_BTC.masked_fill(~sees.entry_map(), -torch.inf), k)


# ---- core attention ------------------------------------------------------------------


def attention_weights(
    query_BTHK: Tensor,
    window_BSK: Tensor,
    entries_BCK: Tensor,
    sees: Visibility,
    sinks_H: Tensor,
) -> Tensor:
    """`exp(z_s) / (sum_r exp(z_r) + exp(sink))` [B, T, H, S + C]; eq. (27).

    `z_s = q . k_s / sqrt(K)`; s and r run over what the query sees, and the rest has
    weight 0.
    """
    keys_BSK = torch.cat([upcast(window_BSK), upcast(entries_BCK)], dim=1)
    dots_BTHS = einsum(upcast(query_BTHK), keys_BSK, "b t h k, b s k -> b t h s")
    score_BTHS = dots_BTHS * query_BTHK.shape[-1] ** -0.5
    hidden_BTHS = rearrange(~sees.map(), "b t s -> b t 1 s")
    score_BTHS = score_BTHS.masked_fill(hidden_BTHS, -torch.inf)
    n_batch, n_queries = query_BTHK.shape[:2]
    sink_BTHS = repeat(upcast(sinks_H), "h -> b t h 1", b=n_batch, t=n_queries)
    return torch.cat([score_BTHS, sink_BTHS], dim=-1).softmax(dim=-1)[..., :-1]


def attend(
    query_BTHK: Tensor,
    window_BSK: Tensor,
    entries_BCK: Tensor,
    sees: Visibility,
    sinks_H: Tensor,
) -> Tensor:
    """Core attention; an entry is key and value at once. Eqs. (19), (26).

    query_BTHK   RMS-normalised and rotated
    window_BSK   entries of the last S tokens
    entries_BCK  compressed entries
    sinks_H      the logit of an entry whose value is zero, one a head
    returns      [B, T, H, K], not yet rotated back
    """
    weight_BTHS = attention_weights(query_BTHK, window_BSK, entries_BCK, sees, sinks_H)
    values_BSK = torch.cat([upcast(window_BSK), upcast(entries_BCK)], dim=1)
    out_BTHK = einsum(weight_BTHS, values_BSK, "b t h s, b s k -> b t h k")
    return out_BTHK.to(query_BTHK.dtype)


def index_loss(attended: tuple, indexed: tuple) -> Tensor:
    """`KL(p || softmax(I))` over the entries read, as in V3.2.

    p is the attention on each entry, summed over heads and divided by its sum over
    entries. A head that attends more to entries counts for more. The mean is taken over
    queries that read any entry.

    attended  the arguments of `attend`, in order
    indexed   the arguments of `index_scores`, in order
    """
    sees = attended[3]
    target_BTC = teacher(attention_weights(*attended)[..., sees.n_window :])
    reads_BTC = sees.entry_map()
    lowest = torch.finfo(target_BTC.dtype).min
    score_BTC = index_scores(*indexed).masked_fill(~reads_BTC, lowest)
    nats = F.kl_div(score_BTC.log_softmax(-1), target_BTC.detach(), reduction="sum")
    n_reading = reads_BTC.any(-1).expand(target_BTC.shape[:2]).sum()
    return nats / n_reading.clamp(min=1)


def teacher(weight_BTHC: Tensor) -> Tensor:
    """The indexer's target [B, T, C]: attention on entries, summed over heads.

    It is made to sum to 1; for a query that reads no entry it is 0.
    """
    mass_BTC = reduce(weight_BTHC, "b t h c -> b t c", "sum")
    total = reduce(mass_BTC, "b t c -> b t 1", "sum")
    return mass_BTC / total.clamp(min=torch.finfo(total.dtype).tiny)


# ---- residual streams ----------------------------------------------------------------


def stream_logits(streams_BTND: Tensor, fn: Tensor, eps: float) -> Tensor:
    """`RMSNorm(a token's streams as one vector) fn^T`, no norm weight; eqs. (3)-(5)."""
    flat = rearrange(upcast(streams_BTND), "b t n d -> b t (n d)")
    return F.linear(rms_norm(flat, None, eps), upcast(fn))


def sinkhorn(logits_BTij: Tensor, iterations: int, eps: float) -> Tensor:
    """Nearly doubly stochastic matrices, eq. (2), by Sinkhorn's iteration, eq. (8).

    Rows and columns are divided by their sums in turn. The report writes it on the
    transpose, so that its columns are our rows; its exp and its first division are the
    softmax.

    returns  [B, T, old, new]; over old streams the sum is 1 within 2 eps, over new ones
             nearly 1
    """
    mix = logits_BTij.softmax(dim=-1) + eps  # the first division of the rows
    mix = mix / (reduce(mix, "b t i j -> b t 1 j", "sum") + eps)
    for _ in range(iterations - 1):
        mix = mix / (reduce(mix, "b t i j -> b t i 1", "sum") + eps)
        mix = mix / (reduce(mix, "b t i j -> b t 1 j", "sum") + eps)
    return mix


def collapse(streams_BTND: Tensor, pre_BTN: Tensor) -> Tensor:
    """What a sub-layer reads [B, T, D]: `sum_n pre[n] stream[n]`; A X in eq. (1)."""
    read_BTD = einsum(pre_BTN, upcast(streams_BTND), "b t n, b t n d -> b t d")
    return read_BTD.to(streams_BTND.dtype)


def write(
    streams_BTND: Tensor,
    y_BTD: Tensor,
    post_BTN: Tensor,
    carry_BTij: Tensor,
) -> Tensor:
    """New stream j: `post[j] y + sum_i carry[i, j] stream[i]`; eq. (1), B = carry^T."""
    old_BTND = upcast(streams_BTND)
    carried_BTND = einsum(carry_BTij, old_BTND, "b t i j, b t i d -> b t j d")
    written_BTND = einsum(post_BTN, upcast(y_BTD), "b t n, b t d -> b t n d")
    return (carried_BTND + written_BTND).to(streams_BTND.dtype)


# ---- experts -------------------------------------------------------------------------


def affinities(x_BTD: Tensor, weight_ED: Tensor) -> Tensor:
    """The router's scores `sqrt(softplus(z))`, `z = x . weight` [B, T, E].

    Far below zero softplus underflows, and the slope of its root would be 0 / 0; there
    the score is `exp(z / 2)`, which is the same.
    """
    logit = F.linear(upcast(x_BTD), upcast(weight_ED))
    tiny = logit < EXP_IS_SOFTPLUS
    root = F.softplus(logit.masked_fill(tiny, 0.0)).sqrt()
    return torch.where(tiny, torch.exp(logit.clamp(max=0.0) / 2), root)


def routing_weights(score_BTE: Tensor, picked_BTA: Tensor, scale: float) -> Tensor:
    """Scores of the picked experts [B, T, A] over their sum, times the route scale."""
    chosen_BTA = score_BTE.gather(-1, picked_BTA)
    total = reduce(chosen_BTA, "b t a -> b t 1", "sum")
    return scale * chosen_BTA / (total + 1e-20)


def swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    """`silu(min(gate, limit)) * clip(up, -limit, limit)`.

    The gate is clamped from above only.
    """
    return F.silu(upcast(gate).clamp(max=limit)) * upcast(up).clamp(-limit, limit)


def expert(
    x: Tensor,
    w13_FD: Tensor,
    w2_DF: Tensor,
    limit: float,
    weight: Tensor,
) -> Tensor:
    """`w2 (weight * swiglu(w1 x, w3 x))` of tokens [..., D].

    `w13_FD`, [2 F, D], is w1 over w3.
    """
    gate, up = F.linear(x, w13_FD).chunk(2, dim=-1)
    inner = swiglu(gate, up, limit) * weight
    return F.linear(inner.to(x.dtype), w2_DF)


def experts(
    x: Tensor,
    picked: Tensor,
    weight: Tensor,
    w13_EFD: Tensor,
    w2_EDF: Tensor,
    limit: float,
) -> Tensor:
    """`sum_e weight[e] expert_e(x)`; an expert that is not picked has weight 0.

    x       tokens [..., D]
    picked  indices of the experts of each token [..., A]
    weight  their routing weights [..., A]
    """
    nothing = upcast(x).new_zeros(*x.shape[:-1], len(w13_EFD))
    by_expert = nothing.scatter_add(-1, picked, weight.to(nothing.dtype))
    total = torch.zeros_like(upcast(x))
    for e in range(len(w13_EFD)):
        own_weight = by_expert[..., e : e + 1]
        total = total + upcast(expert(x, w13_EFD[e], w2_EDF[e], limit, own_weight))
    return total.to(x.dtype)


# ---- losses --------------------------------------------------------------------------


def cross_entropy(hidden_TD: Tensor, head_VD: Tensor, target_T: Tensor) -> Tensor:
    """Nats per token of the vocabulary head, mean over tokens with a target.

    0 if none has one.
    """
    logits_TV = F.linear(upcast(hidden_TD), upcast(head_VD))
    nats = F.cross_entropy(logits_TV, target_T, ignore_index=NO_TARGET, reduction="sum")
    return nats / (target_T != NO_TARGET).sum().clamp(min=1)


class Ops(NamedTuple):
    """A table of the operations of a model; `_replace(attend=...)` gives another."""

    rms_norm: Callable[..., Tensor]
    rotate: Callable[..., Tensor]
    pool: Callable[..., Tensor]
    stable_topk: Callable[..., Tensor]
    top_entries: Callable[..., Tensor]
    attend: Callable[..., Tensor]
    index_loss: Callable[..., Tensor]
    stream_logits: Callable[..., Tensor]
    sinkhorn: Callable[..., Tensor]
    collapse: Callable[..., Tensor]
    write: Callable[..., Tensor]
    affinities: Callable[..., Tensor]
    routing_weights: Callable[..., Tensor]
    swiglu: Callable[..., Tensor]
    experts: Callable[..., Tensor]
    cross_entropy: Callable[..., Tensor]


PLAIN = Ops(
    rms_norm=rms_norm,
    rotate=rotate,
    pool=pool,
    stable_topk=stable_topk,
    top_entries=top_entries,
    attend=attend,
    index_loss=index_loss,
    stream_logits=stream_logits,
    sinkhorn=sinkhorn,
    collapse=collapse,
    write=write,
    affinities=affinities,
    routing_weights=routing_weights,
    swiglu=swiglu,
    experts=experts,
    cross_entropy=cross_entropy,
)
