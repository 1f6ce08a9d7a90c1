"""Mixture of experts: router, hash table, clamp of the shared expert and the whole layer against loops."""

import pytest
import torch
from small import EXACT, TINY, both_tables, disturb, normal, numpy_of, token_ids, with_ops
from torch.overrides import TorchFunctionMode

import minidsv4 as v4
from minidsv4 import paper
from minidsv4.model.moe import HashRouter, LearnedRouter, MoE, SharedExpert, hash_table
from minidsv4.ops import swiglu

B, T, D, E, F = 2, 5, TINY.hidden_size, TINY.n_routed_experts, TINY.moe_intermediate_size
LEARNED, HASH = v4.Routing.LEARNED, v4.Routing.HASH


def example(n_tokens=T, seed=0):
    return normal(B, n_tokens, D, seed=seed), token_ids(B, n_tokens, seed=seed)


def build(module, seed=0):
    return disturb(module.double(), seed)


# ---- the clamp ----


def test_what_an_expert_passes_on_is_bounded():
    assert swiglu(1e6 * normal(40, F), 1e6 * normal(40, F, seed=1), 10.0).abs().max() <= 100


def test_the_shared_expert_is_clamped_as_well():
    shared, x_BTD = build(SharedExpert(TINY)), 50 * normal(B, T, D)
    gate, up = shared.w1(x_BTD), shared.w3(x_BTD)
    expected = shared.w2(torch.nn.functional.silu(gate.clamp(max=0.7)) * up.clamp(-0.7, 0.7))
    assert torch.equal(shared(x_BTD), expected) and (gate > 0.7).any() and (up.abs() > 0.7).any()


# ---- routers ----


@both_tables
def test_a_learned_router_agrees_with_the_loops_of_the_paper(table):
    router, (x_BTD, ids_BT) = with_ops(build(LearnedRouter(TINY)), table), example(40)
    routed, gate = router(x_BTD, ids_BT), router.weight.detach().numpy()
    for b in range(B):
        for t in range(40):
            score_E = paper.affinities(x_BTD[b, t].numpy(), gate)
            chosen, weight_A = paper.route(score_E, TINY.num_experts_per_tok, 1.5, router.bias.numpy())
            assert (routed.score_BTE[b, t] - torch.from_numpy(score_E)).abs().max() < EXACT
            assert set(routed.picked_BTA[b, t].tolist()) == set(chosen)
            ours = dict(zip(routed.picked_BTA[b, t].tolist(), routed.weight_BTA[b, t].tolist()))
            assert all(abs(ours[e] - w) < EXACT for e, w in zip(chosen, weight_A))


def test_weights_sum_to_the_route_scale():
    config = TINY.replace(routed_scaling_factor=2.5, num_experts_per_tok=3)
    for router in (LearnedRouter(config), HashRouter(config)):
        assert (build(router)(*example()).weight_BTA.sum(-1) - 2.5).abs().max() < EXACT


def test_a_constant_added_to_the_bias_changes_nothing_and_one_experts_bias_its_choice_only():
    router, (x_BTD, ids_BT) = build(LearnedRouter(TINY)), example(40)
    before = router(x_BTD, ids_BT)
    router.bias += 3.0
    assert all(torch.equal(*pair) for pair in zip(router(x_BTD, ids_BT), before))
    router.bias[4] += 100.0
    after = router(x_BTD, ids_BT)
    assert (after.picked_BTA == 4).any(-1).all() and torch.equal(after.score_BTE, before.score_BTE)
    chosen = after.score_BTE.gather(-1, after.picked_BTA)
    assert (after.weight_BTA - 1.5 * chosen / chosen.sum(-1, keepdim=True)).abs().max() < EXACT


def test_equal_scores_choose_the_lower_experts():
    router = LearnedRouter(TINY).double()
    router.weight.data.zero_()
    assert (router(*example()).picked_BTA == torch.tensor([0, 1])).all()


def test_large_affinities_stay_finite():
    router, (x_BTD, ids_BT) = build(LearnedRouter(TINY)), example()
    routed = router(1e4 * x_BTD, ids_BT)
    assert routed.weight_BTA.isfinite().all() and routed.score_BTE.max() > 50
    tiny = router(torch.full_like(x_BTD, 0.0), ids_BT)
    assert (tiny.weight_BTA.sum(-1) - 1.5).abs().max() < EXACT


def test_a_hash_router_gives_a_token_the_same_experts_anywhere_and_weighs_them_by_its_own_gate():
    router = build(HashRouter(TINY))
    x_BTD, ids_BT = normal(B, T, D), torch.tensor([[7, 3, 7, 60, 0], [0, 7, 7, 1, 3]])
    routed = router(x_BTD, ids_BT)
    assert torch.equal(routed.picked_BTA, router.tid2eid[ids_BT])
    assert torch.equal(routed.picked_BTA[0, 0], routed.picked_BTA[1, 2])
    assert not torch.equal(routed.weight_BTA[0, 0], routed.weight_BTA[1, 2])
    score_E = paper.affinities(x_BTD[1, 2].numpy(), router.weight.detach().numpy())
    _, weight_A = paper.route(score_E, 2, 1.5, fixed=router.tid2eid[7].tolist())
    assert (routed.weight_BTA[1, 2] - torch.from_numpy(weight_A)).abs().max() < EXACT


def test_the_hash_table_names_distinct_experts_uses_all_of_them_and_is_the_same_every_time():
    table = hash_table(1000, 9, 4)
    assert table.shape == (1000, 4) and table.dtype == torch.long
    assert all(len(set(row)) == 4 for row in table.tolist())
    assert (table.flatten().bincount(minlength=9) > 350).all()  # 444 on average, standard deviation about 16
    assert torch.equal(table, hash_table(1000, 9, 4)) and not torch.equal(table, hash_table(1000, 9, 4, seed=1))


def hash_tables(model):
    return [module.tid2eid for module in model.modules() if isinstance(module, HashRouter)]


class Draws(TorchFunctionMode):
    """The device that each call of `torch.rand` names."""

    def __init__(self):
        super().__init__()
        self.devices = []

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = options or {}
        if function is torch.rand:
            self.devices.append(str(options.get("device")))
        return function(*arguments, **options)


def test_each_hash_layer_has_a_table_of_its_own_and_two_models_have_the_same():
    """Kind: what should differ from layer to layer came from one seed."""
    config = TINY.replace(num_hash_layers=3)
    tables = hash_tables(v4.Model(config))
    assert len(tables) == 3
    assert not any(torch.equal(tables[i], tables[j]) for i in range(3) for j in range(i))
    assert all(map(torch.equal, tables, hash_tables(v4.Model(config))))


def test_a_hash_table_is_drawn_on_the_cpu_whatever_the_default_device():
    """Kind: one seed, another table on another device. The meta device draws nothing."""
    with Draws() as draws:
        hash_table(7, 9, 4)
    assert draws.devices == ["cpu"]
    with torch.device("meta"):
        assert hash_table(7, 9, 4).device.type == "meta"


# ---- the layer ----


@both_tables
@pytest.mark.parametrize("routing", [LEARNED, HASH])
def test_a_layer_agrees_with_the_loops_of_the_paper(routing, table):
    layer, (x_BTD, ids_BT) = with_ops(build(MoE(TINY, routing)), table), example(12)
    ours, params = layer(x_BTD, ids_BT), numpy_of(layer)
    for b in range(B):
        expected = paper.moe_layer(params, x_BTD[b].numpy(), ids_BT[b].tolist(), TINY)
        assert (ours[b] - torch.from_numpy(expected)).abs().max() < EXACT


def test_with_every_expert_active_routing_is_dense():
    config = TINY.replace(num_experts_per_tok=E)
    layer, (x_BTD, ids_BT) = build(MoE(config, LEARNED)), example(12)
    score_BTE = layer.gate(x_BTD, ids_BT).score_BTE
    total = layer.shared_experts(x_BTD)
    for e in range(E):
        share = 1.5 * score_BTE[..., e : e + 1] / score_BTE.sum(-1, keepdim=True)
        gate, up = (x_BTD @ layer.experts.w13[e].T).chunk(2, dim=-1)
        total = total + share * (swiglu(gate, up, config.swiglu_limit) @ layer.experts.w2[e].T)
    assert (layer(x_BTD, ids_BT) - total).abs().max() < EXACT


def test_a_token_gives_the_same_output_alone_and_in_company():
    layer, (x_BTD, ids_BT) = build(MoE(TINY, LEARNED)), example(12)
    whole = layer(x_BTD, ids_BT)
    assert (layer(x_BTD[1:, 4:5], ids_BT[1:, 4:5]) - whole[1:, 4:5]).abs().max() < EXACT


def test_every_parameter_that_was_used_has_a_gradient_and_the_bias_has_none():
    for routing in (LEARNED, HASH):
        layer, (x_BTD, ids_BT) = build(MoE(TINY, routing)), example(40)
        layer(x_BTD, ids_BT).square().sum().backward()
        for name, parameter in layer.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert "gate.bias" not in dict(MoE(TINY, LEARNED).named_parameters())
