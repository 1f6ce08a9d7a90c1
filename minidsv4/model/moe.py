"""Mixture of experts: one shared expert, and A of E routed ones per token.

B batch, T tokens, D width, E experts, A active experts, F expert width, V vocabulary.
Report section 2.1. Released names: `ffn.gate.{weight, bias | tid2eid}`,
`ffn.experts.N.{w1, w2, w3}`, `ffn.shared_experts.{w1, w2, w3}`.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from minidsv4.config import Config, Routing
from minidsv4.model.layer import Layer


class Routed(NamedTuple):
    """What a router decides for each token, and the score of every expert."""

    picked_BTA: Tensor
    weight_BTA: Tensor
    score_BTE: Tensor


class Router(Layer):
    """Scores `sqrt(softplus(x . weight))`; weights: picked ones over their sum, scaled.

    The scale is the config's `routed_scaling_factor`.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.active = config.num_experts_per_tok
        self.route_scale = config.routed_scaling_factor
        n_experts = config.n_routed_experts
        self.weight = nn.Parameter(torch.zeros(n_experts, config.hidden_size))

    def forward(self, x_BTD: Tensor, ids_BT: Tensor) -> Routed:
        """Route each token; its weights sum to the route scale.

        Scores are in float32 at least.
        """
        score_BTE = self.ops.affinities(x_BTD, self.weight)
        picked_BTA = self.pick(score_BTE, ids_BT)
        weight_BTA = self.ops.routing_weights(score_BTE, picked_BTA, self.route_scale)
        return Routed(picked_BTA, weight_BTA, score_BTE)

    def pick(self, score_BTE: Tensor, ids_BT: Tensor) -> Tensor:
        """The experts of each token [B, T, A]."""
        raise NotImplementedError


class LearnedRouter(Router):
    """The A experts with the highest `score + bias`; weights are without the bias."""

    float32 = ("bias",)
    bias: Tensor

    def __init__(self, config: Config):
        super().__init__(config)
        self.register_buffer("bias", torch.zeros(config.n_routed_experts))

    def pick(self, score_BTE: Tensor, ids_BT: Tensor) -> Tensor:
        return self.ops.stable_topk(score_BTE.detach() + self.bias, self.active)


class HashRouter(Router):
    """The A experts that a frozen table names for the token id; weights are learned."""

    tid2eid: Tensor

    def __init__(self, config: Config):
        super().__init__(config)
        self.sizes = (config.vocab_size, config.n_routed_experts, self.active)
        self.register_buffer("tid2eid", hash_table(*self.sizes))

    def draw(self, seed: int) -> None:
        """Give it the table of this seed."""
        self.tid2eid = hash_table(*self.sizes, seed)

    def pick(self, score_BTE: Tensor, ids_BT: Tensor) -> Tensor:
        return self.tid2eid[ids_BT]


def hash_table(n_tokens: int, n_experts: int, n_active: int, seed: int = 0) -> Tensor:
    """Distinct random experts for each token id [V, A]; V4's own are not disclosed.

    A seed gives the same table on every device: the numbers are drawn on the CPU. On
    the meta device nothing is drawn.
    """
    device = torch.empty(0).device  # the default one
    if device.type == "meta":
        return torch.empty(n_tokens, n_active, dtype=torch.int64)
    generator = torch.Generator("cpu").manual_seed(seed)
    score = torch.rand(
        (n_tokens, n_experts),
        generator=generator,
        dtype=torch.float32,
        device="cpu",
    )
    return score.argsort(dim=-1, stable=True)[:, :n_active].to(device, copy=True)


class SharedExpert(Layer):
    """The expert that every token visits, clamped like the others."""

    def __init__(self, config: Config):
        super().__init__()
        width = config.hidden_size
        inner = config.moe_intermediate_size
        self.limit = config.swiglu_limit
        self.w1 = nn.Linear(width, inner, bias=False)
        self.w3 = nn.Linear(width, inner, bias=False)
        self.w2 = nn.Linear(inner, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        inner_BTF = self.ops.swiglu(self.w1(x_BTD), self.w3(x_BTD), self.limit)
        return self.w2(inner_BTF.to(x_BTD.dtype))


class Experts(Layer):
    """E experts as stacked matrices: `w13` holds gate over up, `w2` leads back."""

    def __init__(self, config: Config):
        super().__init__()
        n_experts = config.n_routed_experts
        width = config.hidden_size
        inner = config.moe_intermediate_size
        self.limit = config.swiglu_limit
        self.w13 = nn.Parameter(torch.zeros(n_experts, 2 * inner, width))
        self.w2 = nn.Parameter(torch.zeros(n_experts, width, inner))

    def forward(self, x: Tensor, picked: Tensor, weight: Tensor) -> Tensor:
        """`sum_a weight[a] expert[picked[a]](x)`; tokens [..., D], picks [..., A]."""
        return self.ops.experts(x, picked, weight, self.w13, self.w2, self.limit)


class MoE(Layer):
    """`shared(x) + sum over the routed experts`."""

    def __init__(self, config: Config, routing: Routing):
        super().__init__()
        router = HashRouter if routing is Routing.HASH else LearnedRouter
        self.gate = router(config)
        self.experts = Experts(config)
        self.shared_experts = SharedExpert(config)

    def forward(self, x_BTD: Tensor, ids_BT: Tensor) -> Tensor:
        """The output [B, T, D]; hash layers route by `ids_BT`."""
        routed = self.gate(x_BTD, ids_BT)
        routed_BTD = self.experts(x_BTD, routed.picked_BTA, routed.weight_BTA)
        return self.shared_experts(x_BTD) + routed_BTD
