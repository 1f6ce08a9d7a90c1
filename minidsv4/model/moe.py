"""Mixture of experts: one shared expert, and A of E routed ones per token, chosen by a table or by a learned router.

B batch, T tokens, D width, E experts, A active experts, F expert width, V vocabulary. Report section 2.1. Released
names: `ffn.gate.{weight, bias | tid2eid}`, `ffn.experts.N.{w1, w2, w3}`, `ffn.shared_experts.{w1, w2, w3}`.
"""

from typing import NamedTuple

import torch
from einops import reduce
from torch import Tensor, nn
from torch.nn import functional as F

from minidsv4.config import Config, Routing
from minidsv4.model.indexer import stable_topk
from minidsv4.model.norm import precise


class Routed(NamedTuple):
    """The router's word on each token: which experts, with what weights, and the score of every expert."""

    picked_BTA: Tensor
    weight_BTA: Tensor
    score_BTE: Tensor


class Router(nn.Module):
    """Scores `sqrt(softplus(x @ weight.T))`; the picked experts' scores, normalised and scaled, are their weights."""

    def __init__(self, config: Config):
        super().__init__()
        self.active, self.route_scale = config.num_experts_per_tok, config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))

    def forward(self, x_BTD: Tensor, ids_BT: Tensor) -> Routed:
        """Route each token; scores in float32 at least, weights sum to the route scale."""
        score_BTE = F.softplus(F.linear(precise(x_BTD), precise(self.weight))).sqrt()
        picked_BTA = self.pick(score_BTE, ids_BT)
        chosen = score_BTE.gather(-1, picked_BTA)
        return Routed(picked_BTA, self.route_scale * chosen / (chosen.sum(-1, keepdim=True) + 1e-20), score_BTE)


class LearnedRouter(Router):
    """The A experts with the highest `score + bias`; the bias balances loads, and is no part of the weights."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.register_buffer("bias", torch.zeros(config.n_routed_experts))

    def pick(self, score_BTE: Tensor, ids_BT: Tensor) -> Tensor:
        return stable_topk(score_BTE.detach() + self.bias, self.active)


class HashRouter(Router):
    """The A experts that a frozen table names for the token id; their weights are learned all the same."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.register_buffer("tid2eid", hash_table(config.vocab_size, config.n_routed_experts, self.active))

    def pick(self, score_BTE: Tensor, ids_BT: Tensor) -> Tensor:
        return self.tid2eid[ids_BT]


def hash_table(n_tokens: int, n_experts: int, n_active: int, seed: int = 0) -> Tensor:
    """Distinct random experts for each token id [V, A]. This construction is ours: V4's is not disclosed."""
    device = torch.empty(0).device  # the default one, so that a model on the meta device stays there
    generator = None if device.type == "meta" else torch.Generator(device).manual_seed(seed)
    return torch.rand(n_tokens, n_experts, generator=generator, dtype=torch.float32).argsort(-1)[:, :n_active].clone()


def swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    """`silu(min(gate, limit)) * clip(up, -limit, limit)`: clamped before the nonlinearity, the gate from above only.

    No gradient flows strictly beyond a bound.
    """
    return F.silu(gate.clamp(max=limit)) * up.clamp(-limit, limit)


class SharedExpert(nn.Module):
    """The expert that every token visits, clamped like the others."""

    def __init__(self, config: Config):
        super().__init__()
        width, inner, self.limit = config.hidden_size, config.moe_intermediate_size, config.swiglu_limit
        self.w1, self.w3 = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.w2 = nn.Linear(inner, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.w2(swiglu(self.w1(x_BTD), self.w3(x_BTD), self.limit))


class Experts(nn.Module):
    """E experts as stacked matrices: `w13` holds gate over up, `w2` leads back."""

    def __init__(self, config: Config):
        super().__init__()
        n, width, inner = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.limit = config.swiglu_limit
        self.w13, self.w2 = nn.Parameter(torch.empty(n, 2 * inner, width)), nn.Parameter(torch.empty(n, width, inner))

    def forward(self, x_TD: Tensor, picked_TA: Tensor, weight_TA: Tensor) -> Tensor:
        """`sum_a weight[a] expert[picked[a]](x)`: pairs of token and expert sorted by expert, one product an expert.

        returns  [T, D]; each token's experts are summed in the order of its picks
        """
        expert, order = picked_TA.flatten().sort(stable=True)
        visited, counts = (part.tolist() for part in expert.unique_consecutive(return_counts=True))
        parts = x_TD, weight_TA.to(x_TD.dtype), self.w13, self.w2, order
        return PickedExperts.apply(*parts, visited, counts, self.limit, torch.is_grad_enabled())

    def one(self, e: int, x_TD: Tensor, weight: Tensor) -> Tensor:
        """Expert `e` on its tokens; the routing weight [T, 1] enters before the way back, as released."""
        gate, up = (x_TD @ self.w13[e].T).chunk(2, dim=-1)
        return (swiglu(gate, up, self.limit) * weight.to(x_TD.dtype)) @ self.w2[e].T


class PickedExperts(torch.autograd.Function):
    """`Experts` on pairs of token and pick, `order` sorting them by expert; gates and ups are all that it keeps.

    Its backward gathers an expert's rows, uses them and forgets them while they are in the processor's cache.
    """

    @staticmethod
    def forward(ctx, x_TD, weight_TA, w13, w2, order, visited: list, counts: list, limit: float, learning: bool):
        n_active, raws, outs = weight_TA.shape[1], [], []
        rows, weights = x_TD.index_select(0, order // n_active), weight_TA.flatten()[order, None]
        for e, x, weight in zip(visited, rows.split(counts), weights.split(counts)):
            raw = x @ w13[e].T
            outs.append((swiglu(*raw.chunk(2, dim=-1), limit) * weight) @ w2[e].T)
            raws += [raw] * learning
        ctx.save_for_backward(x_TD, weight_TA, w13, w2, order, *raws)
        ctx.visited, ctx.counts, ctx.limit = visited, counts, limit
        out = torch.empty_like(rows).index_copy_(0, order, torch.cat(outs))
        return reduce(out, "(t a) d -> t d", "sum", a=n_active)

    @staticmethod
    def backward(ctx, grad_TD: Tensor):
        x_TD, weight_TA, w13, w2, order, *raws = ctx.saved_tensors
        d_x, d_weight, d_w13, d_w2 = (torch.zeros_like(part) for part in (x_TD, weight_TA, w13, w2))
        for e, pair, raw in zip(ctx.visited, order.split(ctx.counts), raws):
            token, weight = pair // weight_TA.shape[1], weight_TA.flatten()[pair, None]
            rows, grad = x_TD.index_select(0, token), grad_TD.index_select(0, token)
            with torch.enable_grad():
                raw = raw.detach().requires_grad_()
                inner = swiglu(*raw.chunk(2, dim=-1), ctx.limit)
            d_inner = grad @ w2[e]
            d_raw = torch.autograd.grad(inner, raw, d_inner * weight)[0]
            d_weight.view(-1)[pair] = (d_inner * inner).sum(-1)
            torch.mm(grad.T, inner * weight, out=d_w2[e])
            torch.mm(d_raw.T, rows, out=d_w13[e])
            d_x.index_add_(0, token, d_raw @ w13[e])
        return d_x, d_weight, d_w13, d_w2, *[None] * 5


class MoE(nn.Module):
    """`shared(x) + sum over the routed experts`."""

    def __init__(self, config: Config, routing: Routing):
        super().__init__()
        self.gate = HashRouter(config) if routing is Routing.HASH else LearnedRouter(config)
        self.experts, self.shared_experts = Experts(config), SharedExpert(config)

    def forward(self, x_BTD: Tensor, ids_BT: Tensor) -> Tensor:
        routed = self.gate(x_BTD, ids_BT)
        flat = (part.flatten(0, 1) for part in (x_BTD, routed.picked_BTA, routed.weight_BTA))
        return self.shared_experts(x_BTD) + self.experts(*flat).view_as(x_BTD)
