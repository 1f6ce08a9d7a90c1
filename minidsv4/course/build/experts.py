"""Steps of notebook 3, second half: SwiGLU, the scores of a router, its two kinds, an expert, the mixture.

Letters: B batch, T tokens, D width, E experts, A active experts, F expert width.
"""

import math
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch.nn import functional as F

from minidsv4 import ops
from minidsv4.config import Routing
from minidsv4.course.build.parts import HASH, LEARNED, filled, random_config, random_weights, swapped
from minidsv4.course.build.steps import Step, step
from minidsv4.model.moe import HashRouter, LearnedRouter, MoE, SharedExpert

clamped = step("swiglu", "BTF")


@clamped.cases
def clamped_cases(draw):
    shape = draw.sizes(3)
    yield 3 * draw.normal(*shape), 3 * draw.normal(*shape), draw.whole(5, 30) / 10


@clamped.answer
def clamped_swiglu(gate, up, limit):
    return ops.swiglu(gate, up, limit)


clamped.museum("clamp_after_the_product", "gate_clamped_from_below")


@clamped.mistake
def nothing_clamped(gate, up, limit):
    """Nothing is clamped: `limit` bounds the gate from above, and `up` on both sides, before anything else."""
    return clamped_swiglu(gate, up, math.inf)


@clamped.mistake
def silu_on_up(gate, up, limit):
    """The silu is on `up`. It is on the gate."""
    return F.silu(up.clamp(max=limit)) * gate.clamp(-limit, limit)


@clamped.mistake
def silu_then_clamp(gate, up, limit):
    """The gate is clamped after the silu. It is clamped before."""
    return F.silu(gate).clamp(max=limit) * up.clamp(-limit, limit)


@clamped.mistake
def up_clamped_from_above(gate, up, limit):
    """`up` is clamped from above only. It is clamped on both sides; the gate from above only."""
    return F.silu(gate.clamp(max=limit)) * up.clamp(max=limit)


@clamped.mistake
def up_not_clamped(gate, up, limit):
    """`up` is not clamped. It is clamped on both sides."""
    return F.silu(gate.clamp(max=limit)) * up


@clamped.mistake
def gate_not_clamped(gate, up, limit):
    """The gate is not clamped. It is clamped from above."""
    return F.silu(gate) * up.clamp(-limit, limit)


@clamped.mistake
def sigmoid_for_silu(gate, up, limit):
    """The gate passes a sigmoid. silu(g) is g times sigmoid(g)."""
    return gate.clamp(max=limit).sigmoid() * up.clamp(-limit, limit)


@clamped.mistake
def gelu_for_silu(gate, up, limit):
    """The gate passes a GELU. It passes a silu: g times sigmoid(g)."""
    return F.gelu(gate.clamp(max=limit)) * up.clamp(-limit, limit)


@clamped.mistake
def rough_gelu_for_silu(gate, up, limit):
    """The gate passes a GELU (by tanh). It passes a silu: g times sigmoid(g)."""
    return F.gelu(gate.clamp(max=limit), approximate="tanh") * up.clamp(-limit, limit)


scored = step("affinities", "BTE")


@scored.cases
def scored_cases(draw):
    n_batch, n_tokens, width, n_experts = draw.sizes(4)
    yield draw.normal(n_batch, n_tokens, width), draw.normal(n_experts, width)


@scored.answer
def router_scores(x_BTD, weight_ED):
    return ops.affinities(x_BTD, weight_ED)


@scored.mistake
def root_left_out(x, weight):
    """The root is missing: sqrt(softplus(z))."""
    return router_scores(x, weight).square()


@scored.mistake
def sigmoid_scores(x, weight):
    """Scores are a sigmoid, as in V3. In V4 they are sqrt(softplus(z))."""
    return F.linear(x, weight).sigmoid()


@scored.mistake
def softmax_scores(x, weight):
    """Scores are a softmax over experts. In V4 each is sqrt(softplus(z)) by itself."""
    return F.linear(x, weight).softmax(-1)


@scored.mistake
def root_inside(x, weight):
    """The root is inside. Softplus comes first, then the root."""
    return F.softplus(F.linear(x, weight).clamp(min=0).sqrt())


def router_step(name: str, part: type, layer: int) -> Step:
    """The router of one kind, both of which the reader writes in one class."""
    made = step(name, "BTA", "BTA", target="Router.forward", needs="affinities", parts="picked_BTA weight_BTA")

    @made.cases
    def router_cases(draw):
        config = random_config(draw)
        for one in [config, config.replace(n_routed_experts=40)]:
            router = random_weights(part(one), draw)
            if one is not config:  # eight experts each score alike, so many scores tie
                router.weight.data[:] = router.weight[:5].repeat(8, 1)
                if part is LearnedRouter:
                    router.bias.zero_()
            n_batch, n_tokens = draw.sizes(2, 5, 9)
            yield one, router, draw.normal(n_batch, n_tokens, one.hidden_size), draw.ids(n_batch, n_tokens, 30)

    @made.by
    def run(reader, config, router, x_BTD, ids_BT):
        return by_expert(*filled(reader.Router(config, layer), router)(x_BTD, ids_BT))

    made.answer(routed)
    made.museum("routing_weights_not_normalised", "route_scale_forgotten")
    for mistake in (neither_normed_nor_scaled, divided_by_all_scores, softmax_weights):
        made.mistake(mistake)
    return made


def routed(config, router, x_BTD, ids_BT):
    """What the package's router gives."""
    found = router(x_BTD, ids_BT)
    return by_expert(found.picked_BTA, found.weight_BTA)


def neither_normed_nor_scaled(config, router, x_BTD, ids_BT):
    """The weights are the scores as they stand. They are divided by their sum and multiplied by the route scale."""
    found = router(x_BTD, ids_BT)
    return by_expert(found.picked_BTA, found.score_BTE.gather(-1, found.picked_BTA))


def divided_by_all_scores(config, router, x_BTD, ids_BT):
    """The weights are divided by the sum over all experts. They are divided by the sum over the picked ones."""
    found = router(x_BTD, ids_BT)
    chosen = found.score_BTE.gather(-1, found.picked_BTA)
    return by_expert(found.picked_BTA, router.route_scale * chosen / found.score_BTE.sum(-1, keepdim=True))


def softmax_weights(config, router, x_BTD, ids_BT):
    """The weights are a softmax over the picked scores. They are the scores divided by their sum."""
    found = router(x_BTD, ids_BT)
    chosen = found.score_BTE.gather(-1, found.picked_BTA).softmax(-1)
    return by_expert(found.picked_BTA, router.route_scale * chosen)


def by_expert(picked_BTA, weight_BTA):
    """Both in the order of the experts' numbers, which is nobody's concern."""
    if not torch.is_tensor(picked_BTA) or picked_BTA.is_floating_point() or picked_BTA.ndim != 3:
        return picked_BTA, weight_BTA
    if not torch.is_tensor(weight_BTA) or weight_BTA.shape != picked_BTA.shape:
        return picked_BTA, weight_BTA
    order = picked_BTA.argsort(-1)
    return picked_BTA.gather(-1, order), weight_BTA.gather(-1, order)


learned = router_step("router", LearnedRouter, LEARNED)
learned.museum("biased_scores_as_weights", "ties_broken_anyhow")


@learned.mistake
def bias_left_out(config, router, x_BTD, ids_BT):
    """The bias is not used. Experts are chosen by score + bias, and weighed by the score alone."""
    with patch.object(router, "bias", torch.zeros_like(router.bias)):
        return routed(config, router, x_BTD, ids_BT)


@learned.mistake
def lowest_scores(config, router, x_BTD, ids_BT):
    """The experts with the lowest scores are chosen. The highest of score + bias are."""
    scores_BTE = ops.affinities(x_BTD, router.weight)
    picked_BTA = ops.stable_topk(-(scores_BTE + router.bias), router.active)
    return by_expert(picked_BTA, ops.routing_weights(scores_BTE, picked_BTA, router.route_scale))


hashed = router_step("hash_router", HashRouter, HASH)
hashed.museum("hash_layers_weigh_uniformly", "hash_of_the_next_token", "hash_table_of_zeros")


@hashed.mistake
def chosen_by_score(config, router, x_BTD, ids_BT):
    """Experts are chosen by score. In a hash layer the table `tid2eid` names them for the token's id."""
    learned_like = SimpleNamespace(bias=0.0, ops=ops.PLAIN, active=router.active)
    scores_BTE = ops.affinities(x_BTD, router.weight)
    picked_BTA = LearnedRouter.pick(learned_like, scores_BTE, ids_BT)
    return by_expert(picked_BTA, ops.routing_weights(scores_BTE, picked_BTA, router.route_scale))


one = step("expert", "BTD", target="Expert.forward", needs="swiglu")


@one.cases
def one_cases(draw):
    config = random_config(draw)
    expert = random_weights(SharedExpert(config), draw)
    yield config, expert, 2 * draw.normal(*draw.sizes(2), config.hidden_size)


@one.answer
def expert_output(config, expert, x_BTD):
    return expert(x_BTD)


@one.by
def run_expert(reader, config, expert, x_BTD):
    return filled(reader.Expert(config), expert)(x_BTD)


one.museum("shared_expert_not_clamped")


@one.mistake
def gate_and_up_swapped(config, expert, x_BTD):
    """`w1` and `w3` have changed places. `w1` gives the gate, which passes the silu; `w3` gives `up`."""
    with swapped(expert, "w1", "w3"):
        return expert(x_BTD)


mixture = step("moe", "BTD", target="MoE.forward", needs="affinities router hash_router expert")


@mixture.cases
def mixture_cases(draw):
    for layer, routing in ((LEARNED, Routing.LEARNED), (HASH, Routing.HASH)):
        config = random_config(draw)
        moe = random_weights(MoE(config, routing), draw)
        n_batch, n_tokens = draw.sizes(2, 3, 6)
        yield config, moe, layer, draw.normal(n_batch, n_tokens, config.hidden_size), draw.ids(n_batch, n_tokens, 30)


@mixture.answer
def moe_output(config, moe, layer, x_BTD, ids_BT):
    return moe(x_BTD, ids_BT)


@mixture.by
def run_moe(reader, config, moe, layer, x_BTD, ids_BT):
    return filled(reader.MoE(config, layer), moe)(x_BTD, ids_BT)


@mixture.mistake
def shared_left_out(config, moe, layer, x_BTD, ids_BT):
    """The shared expert is missing. Every token visits it, and its weight is 1."""
    return moe(x_BTD, ids_BT) - moe.shared_experts(x_BTD)


@mixture.mistake
def routed_left_out(config, moe, layer, x_BTD, ids_BT):
    """The routed experts are missing."""
    return moe.shared_experts(x_BTD)


@mixture.mistake
def weights_left_out(config, moe, layer, x_BTD, ids_BT):
    """The routing weights are not used. Each picked expert's output is multiplied by its weight."""
    picked_BTA, weight_BTA, _ = moe.gate(x_BTD, ids_BT)
    return moe.shared_experts(x_BTD) + moe.experts(x_BTD, picked_BTA, torch.ones_like(weight_BTA))


@mixture.mistake
def all_experts_visited(config, moe, layer, x_BTD, ids_BT):
    """Experts that a token did not pick take part. Their weight is 0."""
    _, _, score_BTE = moe.gate(x_BTD, ids_BT)
    every = torch.arange(score_BTE.shape[-1]).expand_as(score_BTE)
    weight_BTE = ops.routing_weights(score_BTE, every, moe.gate.route_scale)
    return moe.shared_experts(x_BTD) + moe.experts(x_BTD, every, weight_BTE)


@mixture.mistake
def shared_scaled(config, moe, layer, x_BTD, ids_BT):
    """The shared expert is multiplied by the route scale. Its weight is 1."""
    return moe(x_BTD, ids_BT) + (moe.gate.route_scale - 1) * moe.shared_experts(x_BTD)


@mixture.mistake
def weight_inside_the_expert(config, moe, layer, x_BTD, ids_BT):
    """The routing weight multiplies what an expert reads. It multiplies what the expert gives: experts are no linear
    maps."""
    picked_BTA, weight_BTA, _ = moe.gate(x_BTD, ids_BT)
    y_BTD = moe.shared_experts(x_BTD)
    for picked_BT1, weight_BT1 in zip(picked_BTA.split(1, dim=-1), weight_BTA.split(1, dim=-1)):
        y_BTD = y_BTD + moe.experts(weight_BT1 * x_BTD, picked_BT1, torch.ones_like(weight_BT1))
    return y_BTD
