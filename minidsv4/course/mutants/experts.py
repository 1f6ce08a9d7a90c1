"""Mistakes in routers and experts."""

import math
from unittest.mock import patch

import torch
from torch.nn import functional as F

from minidsv4 import ops
from minidsv4.course.mutants.museum import BOTH, SEES_AHEAD, coarse, trap
from minidsv4.model.moe import HashRouter, LearnedRouter, Router, SharedExpert


@trap(
    34,
    at=[(Router, "forward")],
    symptom="Near-ties flip: single tokens visit another expert, and only they are far off.",
    found="Automodel#2201, vllm-ascend#9831",
)
def router_in_bfloat16(right, router, x_BTD, ids_BT):
    """The router reads and scores in bfloat16; it wants float32."""
    return right(router, coarse(x_BTD), ids_BT)


@trap(
    35,
    at=[(LearnedRouter, "forward")],
    symptom="Balancing changes the output: experts that were idle speak louder.",
)
def biased_scores_as_weights(right, router, x_BTD, ids_BT):
    """An expert's weight is its score plus the bias; the bias is for the choice alone."""
    routed = right(router, x_BTD, ids_BT)
    chosen = (routed.score_BTE + router.bias).gather(-1, routed.picked_BTA)
    return routed._replace(weight_BTA=router.route_scale * chosen / chosen.sum(dim=-1, keepdim=True))


@trap(
    35,
    at=[(Router, "forward")],
    symptom="Experts speak louder for tokens that the router scores high.",
    killed_by=(*BOTH, "routing_weights_sum_to_the_scale"),
)
def routing_weights_not_normalised(right, router, x_BTD, ids_BT):
    """The chosen scores are not divided by their sum."""
    routed = right(router, x_BTD, ids_BT)
    return routed._replace(weight_BTA=router.route_scale * routed.score_BTE.gather(-1, routed.picked_BTA))


@trap(
    35,
    at=[(Router, "forward")],
    symptom="Routed experts are too quiet by 1.5 (Flash) or 2.5 (Pro).",
    killed_by=(*BOTH, "routing_weights_sum_to_the_scale"),
)
def route_scale_forgotten(right, router, x_BTD, ids_BT):
    """Routing weights sum to 1; they sum to the route scale."""
    routed = right(router, x_BTD, ids_BT)
    return routed._replace(weight_BTA=routed.weight_BTA / router.route_scale)


@trap(
    36,
    at=[(HashRouter, "forward")],
    symptom="The first three layers are wrong, and their gate gets no gradient.",
)
def hash_layers_weigh_uniformly(right, router, x_BTD, ids_BT):
    """Experts that the table chose share the weight equally; they are weighed by the layer's own gate."""
    routed = right(router, x_BTD, ids_BT)
    return routed._replace(weight_BTA=torch.full_like(routed.weight_BTA, router.route_scale / router.active))


@trap(
    37,
    at=[(ops, "swiglu")],
    symptom="Nothing until an outlier comes; then one token turns to garbage.",
    found="SGLang#23776, pypto#470, mlx-vlm#1469",
)
def clamp_after_the_product(right, gate, up, limit):
    """The product is clamped; gate and up are, before the nonlinearity."""
    return right(gate, up, math.inf).clamp(-limit, limit)


@trap(
    37,
    at=[(ops, "swiglu")],
    symptom="Only gates below -limit differ, where silu is almost 0 anyway: found by nobody's eye.",
    found="SGLang#23776, pypto#470, mlx-vlm#1469",
)
def gate_clamped_from_below(right, gate, up, limit):
    """The gate is clamped on both sides; it has a bound above only."""
    return right(gate.clamp(min=-limit), up, limit)


@trap(
    37,
    at=[(SharedExpert, "forward")],
    symptom="Garbage tokens on rare inputs.",
    found="the first released Flash code; SGLang#23752",
)
def shared_expert_not_clamped(right, expert, x_BTD):
    """The clamp is left out on the shared expert."""
    with patch.object(expert, "limit", math.inf):
        return right(expert, x_BTD)


@trap(
    38,
    at=[(HashRouter, "pick")],
    symptom="In training the next token's id leaks into the choice of experts; in decoding it is not there.",
    killed_by=(*SEES_AHEAD, "a_padded_row_is_what_it_is_alone", "a_prefix_hit_goes_on_with_its_own_text"),
)
def hash_of_the_next_token(right, router, score_BTE, ids_BT):
    """Hash layers look up the ids shifted by one, as the labels and the MTP block have them."""
    return right(router, score_BTE, ids_BT.roll(-1, dims=1))


@trap(
    34,
    at=[(ops, "affinities")],
    symptom="The forward is right; one logit below -104 in float32, of an expert that nobody picks, makes weights NaN.",
    found="transformers",
    killed_by=("gradients_are_finite_where_softplus_underflows",),
)
def slope_of_an_underflowing_softplus(right, x_BTD, weight_ED):
    """The root of softplus is left to autograd, whose slope is 0 / 0 where softplus is 0."""
    return F.softplus(F.linear(x_BTD, weight_ED)).sqrt()


@trap(
    36,
    at=[(HashRouter, "pick")],
    symptom="Every token of a hash layer visits expert 0, as often as there are active experts.",
)
def hash_table_of_zeros(right, router, score_BTE, ids_BT):
    """The table was made and never filled: a loader that skips integer tensors leaves zeros."""
    return torch.zeros_like(right(router, score_BTE, ids_BT))
