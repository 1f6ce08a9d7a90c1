"""Experts, plain and fast: affinities, routing weights, the clamp and the sum over picked experts, by loops."""

import numpy as np
import pytest
import torch
from small import EXACT, both_tables, normal

from minidsv4 import paper
from minidsv4.ops import expert, swiglu

D, E, F, LIMIT = 8, 9, 5, 0.7


def example(n_tokens, n_active, seed=0):
    """Arguments of `experts`: tokens, distinct picks, weights, matrices of E experts, the limit of the clamp."""
    picked_TA = normal(n_tokens, E, seed=seed).argsort(-1)[:, :n_active]
    weight_TA = normal(n_tokens, n_active, seed=seed + 1).abs()
    w13_EFD, w2_EDF = normal(E, 2 * F, D, seed=seed + 2), normal(E, D, F, seed=seed + 3)
    return normal(n_tokens, D, seed=seed + 4), picked_TA, weight_TA, w13_EFD, w2_EDF, LIMIT


def loop_over_experts(x_TD, picked_TA, weight_TA, w13_EFD, w2_EDF, limit):
    """Each expert on the tokens that picked it, its results put where they belong, and a sum over the picks."""
    out_TAD = torch.zeros(*picked_TA.shape, x_TD.shape[1], dtype=x_TD.dtype)
    for e in range(len(w13_EFD)):
        token, place = (picked_TA == e).nonzero(as_tuple=True)
        if len(token) == 0:
            continue
        gate, up = (x_TD[token] @ w13_EFD[e].T).chunk(2, dim=1)
        inner = swiglu(gate, up, limit) * weight_TA[token, place][:, None]
        out_TAD[token, place] = inner @ w2_EDF[e].T
    return out_TAD.sum(1)  # torch adds many terms in another order than one after the other: the same sum on both sides


# ---- the router ----


@both_tables
def test_affinities_agree_with_the_loops_of_the_paper(table):
    x_BTD, weight_ED = 3 * normal(2, 5, D), normal(E, D, seed=1)
    score_BTE = table.affinities(x_BTD, weight_ED)
    for b, t in [(0, 0), (1, 3)]:
        expected = paper.affinities(x_BTD[b, t].numpy(), weight_ED.numpy())
        assert torch.allclose(score_BTE[b, t], torch.from_numpy(expected), rtol=1e-13, atol=0)


def slope_by_hand(logit):
    """`sigmoid(z) / (2 sqrt(softplus(z)))`; where softplus underflows, its limit `exp(z / 2) / 2`."""
    logit = np.asarray(logit, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.exp(-np.logaddexp(0, -logit)) / (2 * np.sqrt(np.logaddexp(0, logit)))
    return np.where(logit < -300, np.exp(logit / 2) / 2, slope)


LOGITS = [-800.0, -745.2, -300.5, -120.0, -104.5, -37.0, -36.0, -35.0, -1.0, 0.0, 1.0, 19.5, 21.0, 200.0]


@both_tables
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_affinities_and_their_slopes_are_right_at_every_logit_where_softplus_underflows_too(dtype, table):
    """Kind: a slope of 0 / 0 where what it is taken of underflows; the forward is finite and hides it."""
    logit, wide = torch.tensor(LOGITS, dtype=dtype), np.array(LOGITS)
    x_BTD, weight_ED = torch.ones(1, 1, 1, dtype=dtype, requires_grad=True), logit[:, None].requires_grad_()
    score_E = table.affinities(x_BTD, weight_ED)[0, 0]
    d_x, d_weight = torch.autograd.grad(score_E.sum(), (x_BTD, weight_ED))
    expected = torch.from_numpy(np.where(wide < -300, np.exp(wide / 2), np.sqrt(np.logaddexp(0.0, wide))))
    slope = torch.from_numpy(slope_by_hand(wide))
    # float32 knows -60 to 4e-6, and so exp(-60); torch's softplus is z itself above 20: 2e-9 of the slope are missing.
    tolerance = torch.where(logit > 20, 2e-9, 1e-14).double() if dtype == torch.float64 else torch.tensor(1e-5)
    lost = torch.finfo(dtype).smallest_normal ** 0.5  # the root of what underflows: 1e-19 in float32, 1e-154 in float64
    assert ((score_E.double() - expected).abs() <= tolerance * expected + lost).all()
    assert ((d_weight[:, 0].double() - slope).abs() <= tolerance * slope + torch.finfo(dtype).tiny).all()
    assert d_x.isfinite().all()


@both_tables
@pytest.mark.parametrize("logit", [-120.0, -800.0])
def test_one_expert_far_below_the_others_leaves_all_gradients_finite(logit, table):
    x_BTD, weight_ED = torch.ones(1, 3, 1, requires_grad=True), torch.tensor([[logit], [0.5], [1.0]]).requires_grad_()
    score_BTE = table.affinities(x_BTD, weight_ED)
    weight_BTA = table.routing_weights(score_BTE, torch.tensor([[[2, 1]] * 3]), 1.5)
    gradients = torch.autograd.grad(weight_BTA[..., 0].sum(), (x_BTD, weight_ED))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[1][1:].abs().min() > 0 and gradients[1][0].abs() < 1e-10


@both_tables
def test_routing_weights_are_those_of_the_paper_and_sum_to_the_route_scale(table):
    score_BTE = table.affinities(normal(2, 5, D), normal(E, D, seed=1))
    picked_BTA = normal(2, 5, E, seed=2).argsort(-1)[..., :3]
    weight_BTA = table.routing_weights(score_BTE, picked_BTA, 2.5)
    assert (weight_BTA.sum(-1) - 2.5).abs().max() < EXACT
    for b, t in [(0, 0), (1, 3)]:
        _, expected = paper.route(score_BTE[b, t].numpy(), 3, 2.5, fixed=picked_BTA[b, t].tolist())
        assert (weight_BTA[b, t] - torch.from_numpy(expected)).abs().max() < EXACT


@both_tables
def test_routing_weights_of_scores_that_are_all_0_are_0_and_finite(table):
    weight_BTA = table.routing_weights(torch.zeros(1, 1, 3).double(), torch.tensor([[[0, 2]]]), 2.5)
    assert (weight_BTA == 0).all()


@both_tables
def test_the_gradients_of_the_router_are_right(table):
    tensors = normal(1, 3, 4).requires_grad_(), normal(5, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(table.affinities, tensors)
    score_BTE = normal(1, 3, 5).abs().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: table.routing_weights(s, torch.tensor([[[0, 4]] * 3]), 1.5), (score_BTE,))


# ---- the clamp ----


def test_the_clamp_bounds_the_gate_from_above_and_the_other_factor_on_both_sides():
    gate, up = torch.tensor([30.0, 30.0, -20.0, 0.5]).double(), torch.tensor([-30.0, 30.0, 3.0, 0.25]).double()
    silu = torch.nn.functional.silu
    bounded = [(10.0, -10), (10.0, 10), (-20.0, 3), (0.5, 0.25)]
    expected = torch.stack([silu(gate.new_tensor(g)) * u for g, u in bounded])
    assert torch.equal(swiglu(gate, up, 10.0), expected)


def test_no_gradient_flows_beyond_the_bound():
    gate = torch.tensor([10.1, 9.9, -50.0, 1.0, 1.0]).double().requires_grad_()
    up = torch.tensor([1.0, 1.0, 1.0, 10.1, -10.1]).double().requires_grad_()
    swiglu(gate, up, 10.0).sum().backward()
    assert (gate.grad != 0).tolist() == [False, True, True, True, True]
    assert (up.grad != 0).tolist() == [True, True, True, False, False]
    inside = (normal(2, 6).requires_grad_(), normal(2, 6, seed=1).requires_grad_())
    assert torch.autograd.gradcheck(lambda g, u: swiglu(g, u, 0.7), inside)


def test_extreme_gates_are_finite_and_so_are_their_gradients():
    gate, up = (1e4 * normal(2, 6)).requires_grad_(), (1e4 * normal(2, 6, seed=1)).requires_grad_()
    found = swiglu(gate, up, 10.0)
    assert found.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(found.sum(), (gate, up)))


def test_16_bits_are_clamped_in_float32():
    gate, up = (3 * normal(2, 6)).bfloat16(), normal(2, 6, seed=1).bfloat16()
    found = swiglu(gate, up, 2.0)
    assert found.dtype == torch.float32 and torch.equal(found, swiglu(gate.float(), up.float(), 2.0))


def test_an_expert_agrees_with_the_loops_of_the_paper():
    x_TD, w13_FD, w2_DF = 3 * normal(4, D), normal(2 * F, D, seed=1), normal(D, F, seed=2)
    w1, w3 = w13_FD.numpy()[:F], w13_FD.numpy()[F:]
    weight = normal(4, 1, seed=3)
    ours = expert(x_TD, w13_FD, w2_DF, LIMIT, weight)
    for t in range(4):
        expected = weight[t].item() * paper.expert(x_TD[t].numpy(), w1, w2_DF.numpy(), w3, LIMIT)
        assert (ours[t] - torch.from_numpy(expected)).abs().max() < EXACT


# ---- the sum over experts ----


@both_tables
@pytest.mark.parametrize("n_active", [1, 2, 3, 9])
@pytest.mark.parametrize("n_tokens", [1, 7, 40])
def test_experts_equal_the_loop_over_experts(n_tokens, n_active, table):
    case = example(n_tokens, n_active)
    expected = loop_over_experts(*case)
    assert (table.experts(*case) - expected).abs().max() < EXACT * expected.abs().max()


@both_tables
def test_experts_that_nobody_picks_do_nothing_and_get_no_gradient(table):
    x_TD, _, weight_TA, w13_EFD, w2_EDF, limit = example(7, 2)
    w13_EFD.requires_grad_()
    case = x_TD, torch.tensor([[8, 3]] * 7), weight_TA, w13_EFD, w2_EDF, limit
    out = table.experts(*case)
    assert (out - loop_over_experts(*case)).abs().max() < EXACT
    out.sum().backward()
    touched = w13_EFD.grad.abs().amax(dim=(1, 2)) > 0
    assert touched.nonzero().flatten().tolist() == [3, 8]


@both_tables
def test_an_expert_named_twice_counts_twice(table):
    x_TD, _, _, *weights = example(7, 2)
    twice = table.experts(x_TD, torch.full((7, 2), 4), torch.tensor([[0.25, 0.5]] * 7).double(), *weights)
    once = table.experts(x_TD, torch.full((7, 1), 4), torch.full((7, 1), 0.75).double(), *weights)
    assert (twice - once).abs().max() < EXACT


@both_tables
def test_the_order_of_the_tokens_does_not_matter(table):
    (x_TD, picked_TA, weight_TA, *weights), order = example(40, 2), normal(40, seed=3).argsort()
    mixed = table.experts(x_TD[order], picked_TA[order], weight_TA[order], *weights)
    assert (mixed - table.experts(x_TD, picked_TA, weight_TA, *weights)[order]).abs().max() < EXACT


@both_tables
def test_the_gradient_of_the_experts_is_that_of_the_loop(table):
    found = []
    for form in (table.experts, loop_over_experts):
        x_TD, picked_TA, *weights, limit = example(40, 3)
        learn = [part.requires_grad_() for part in (x_TD, *weights)]
        out = form(x_TD, picked_TA, *weights, limit)
        found.append(torch.autograd.grad(out.square().sum(), learn))
    for ours, expected in zip(*found):
        assert (ours - expected).abs().max() < EXACT * expected.abs().max()


@both_tables
def test_16_bit_experts_are_near_float32_and_keep_their_dtype(table):
    x_TD, picked_TA, weight_TA, w13_EFD, w2_EDF, limit = example(40, 3)
    x, w13, w2, weight = x_TD.bfloat16(), w13_EFD.bfloat16(), w2_EDF.bfloat16(), weight_TA.float()
    out = table.experts(x, picked_TA, weight, w13, w2, limit)
    wide = table.experts(x.float(), picked_TA, weight, w13.float(), w2.float(), limit)
    assert out.dtype == torch.bfloat16
    # 8 bits a number: gate and up, what enters the second matrix, its output, each rounded once
    assert (out.float() - wide).abs().max() < 0.03 * wide.abs().max()
