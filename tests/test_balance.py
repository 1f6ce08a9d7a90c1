"""The bias rule balances learned routers without a gradient, hash layers stay as they are, and counts are counts."""

import pytest
import torch
from torch import nn

import minidsv4 as v4
from minidsv4 import paper
from minidsv4.experiments import routers
from minidsv4.model.layer import watch
from minidsv4.model.moe import HashRouter, LearnedRouter, MoE, Routed, Router, hash_table
from minidsv4.ops import swiglu
from minidsv4.train.balance import (
    balanced,
    balanced_hash_table,
    count_clamped,
    loads,
    max_violation,
    rank_loads,
    updated_bias,
)

CONFIG = v4.Config.tiny()  # 9 experts, 2 active, width 24
NO_IDS = torch.zeros(1, 256, dtype=torch.int64)


def skewed_stream(seed: int, speed: float, n_steps: int = 400) -> float:
    """MaxVio over the last 100 steps of a router whose tokens all lean the same way."""
    generator = torch.Generator().manual_seed(seed)
    router = LearnedRouter(CONFIG).double()
    nn.init.normal_(router.weight, std=0.3, generator=generator)
    lean, total = 1.5 * torch.randn(CONFIG.hidden_size, generator=generator, dtype=torch.float64), 0
    for step in range(n_steps):
        x = lean + torch.randn(1, 256, CONFIG.hidden_size, generator=generator, dtype=torch.float64)
        with balanced(router, speed), watch(router, Router) as calls:
            router(x, NO_IDS)
        total = total + loads(calls)[router] * (step >= n_steps - 100)
    return max_violation(total)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_on_a_skewed_stream_the_bias_rule_brings_maxvio_below_a_tenth_and_without_it_stays_above_one(seed):
    assert skewed_stream(seed, speed=0.0) > 1
    # 100 steps of 256 tokens: each expert's 5,689 visits scatter by 1%, and the bias swings by one speed.
    assert skewed_stream(seed, speed=0.01) < 0.1


def small_model(**changes) -> v4.Model:
    torch.manual_seed(0)
    return v4.Model(CONFIG.replace(num_hash_layers=2, **changes)).double()


def some_ids(seed: int = 0) -> torch.Tensor:
    return torch.randint(CONFIG.vocab_size, (2, 15), generator=torch.Generator().manual_seed(seed))


def some_vectors() -> torch.Tensor:
    return torch.randn(2, 15, CONFIG.hidden_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_a_step_moves_every_learned_bias_by_the_loads_of_that_step_and_nothing_else_as_paper_does():
    model, before = small_model(), {name: value.clone() for name, value in small_model().state_dict().items()}
    with balanced(model, 0.02), watch(model, Router) as calls:
        model.loss(some_ids())
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"layers.2.ffn.gate.bias", "layers.3.ffn.gate.bias", "mtp.0.ffn.gate.bias"}
    for router, load_E in loads(calls).items():
        if isinstance(router, LearnedRouter):
            wanted = paper.updated_bias(torch.zeros(9).numpy(), load_E.tolist(), 0.02)
            # The bias is a buffer in the model's float64.
            assert torch.allclose(router.bias, torch.from_numpy(wanted), atol=1e-12)


def test_hash_layers_have_no_bias_and_the_loads_of_their_table_whatever_the_biases_do():
    model, ids_BT = small_model(), some_ids()
    with watch(model, HashRouter) as before:
        model(ids_BT)
    for _ in range(5):
        with balanced(model, 0.5):
            model.loss(ids_BT)
    with watch(model, Router) as after:
        model(ids_BT)
    tables = [
        (router.tid2eid[ids_BT].flatten().bincount(minlength=9), load_E) for router, load_E in loads(before).items()
    ]
    assert len(tables) == 2 and all(torch.equal(by_table, load_E) for by_table, load_E in tables)
    assert all(torch.equal(loads(after)[router], load_E) for router, load_E in loads(before).items())
    assert not any(hasattr(router, "bias") for router in loads(before))


def test_the_bias_is_no_parameter_and_gets_no_gradient_and_gives_none_away():
    model, other = small_model(), small_model()
    other.load_state_dict(model.state_dict())
    with balanced(model, 0.01):
        model.loss(some_ids()).total.backward()
    other.loss(some_ids()).total.backward()
    biases = [module.bias for module in model.modules() if isinstance(module, LearnedRouter)]
    assert len(biases) == 3 and not any(bias.requires_grad or bias.grad is not None for bias in biases)
    assert not any(name.endswith("gate.bias") for name, _ in model.named_parameters())
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(p.grad, q.grad) for p, q in pairs if p.grad is not None or q.grad is not None)


def test_an_error_inside_leaves_the_biases_and_a_speed_below_zero_is_refused():
    model = small_model()
    with pytest.raises(RuntimeError, match="stop"), balanced(model, 1.0):
        model.loss(some_ids())
        raise RuntimeError("stop")
    assert not any(module.bias.any() for module in model.modules() if isinstance(module, LearnedRouter))
    with pytest.raises(ValueError, match="speed = -1 .* 0 or more"), balanced(model, -1):
        pass


def test_an_expert_at_the_mean_stays_the_fuller_go_down_and_the_emptier_up():
    load_E, bias_E = torch.tensor([7, 3, 5, 5]), torch.tensor([0.0, 0.1, 0.2, -0.3], dtype=torch.float64)
    assert torch.allclose(updated_bias(bias_E, load_E, 0.01) - bias_E, torch.tensor([-0.01, 0.01, 0, 0]).double())


def test_loads_add_up_over_calls_and_maxvio_and_ranks_are_those_counted_by_hand():
    router = HashRouter(CONFIG)
    picked = torch.tensor([[[0, 2], [0, 1], [0, 8]]])
    routed = Routed(picked, torch.ones(1, 3, 2), torch.ones(1, 3, 9))
    (load_E,) = loads([(router, (), routed), (router, (), routed)]).values()
    assert load_E.tolist() == [6, 2, 2, 0, 0, 0, 0, 0, 2]
    assert max_violation(load_E) == pytest.approx(6 / (12 / 9) - 1, abs=1e-12)  # one division in float64
    assert rank_loads(load_E, 3).tolist() == [10, 0, 2]
    assert max_violation(rank_loads(load_E, 3)) == 1.5
    with pytest.raises(ValueError, match="n_ranks = 2 cannot share 9 experts"):
        rank_loads(load_E, 2)


def test_padding_is_no_load_and_moves_no_bias():
    model, plain = small_model(), small_model()
    ids_BT = some_ids()
    real_BT = torch.ones(2, 15, dtype=torch.bool)
    real_BT[0, 11:] = False
    real_BT[1, 4:12] = False
    with balanced(model, 0.02, real_BT), watch(model, Router) as calls:
        model.loss(ids_BT)
    counted = loads(calls, real_BT)
    assert len(counted) == 5  # four layers and the MTP block, which has a token less
    for router, _, routed in calls:
        n_tokens = routed.picked_BTA.shape[1]
        by_hand = [0] * 9
        for b, t in real_BT[:, :n_tokens].nonzero().tolist():
            for expert in routed.picked_BTA[b, t].tolist():
                by_hand[expert] += 1
        assert counted[router].tolist() == by_hand
        if isinstance(router, LearnedRouter):
            assert torch.equal(router.bias, updated_bias(torch.zeros_like(router.bias), counted[router], 0.02))
    with balanced(plain, 0.02):
        plain.loss(ids_BT)
    assert any(not torch.equal(ours, other) for ours, other in zip(model.buffers(), plain.buffers(), strict=True))


@pytest.mark.parametrize("shape", [(1, 15), (2, 14)])
def test_a_mask_of_real_tokens_that_does_not_fit_the_calls_is_refused_and_moves_nothing(shape):
    model = small_model()
    with pytest.raises(ValueError, match="real_BT of shape .* does not fit a call of 2 rows of 15 tokens"):
        with balanced(model, 0.02, torch.ones(shape, dtype=torch.bool)):
            model.loss(some_ids())
    assert not any(module.bias.any() for module in model.modules() if isinstance(module, LearnedRouter))


def caught(gate, up, limit):
    """How many gates and ups get no gradient through the released expression."""
    gate, up = (part.detach().clone().requires_grad_() for part in (gate, up))
    swiglu(gate, up, limit).sum().backward()
    return int((gate.grad == 0).sum()), int((up.grad == 0).sum())


def test_clamped_numbers_are_those_that_get_no_gradient():
    moe, x = small_model(swiglu_limit=0.1).layers[3].ffn, 40 * some_vectors()
    counted = count_clamped(moe, x, some_ids())
    shared, total = moe.shared_experts, [0, 0]
    assert counted["shared"] == (*caught(shared.w1(x), shared.w3(x), 0.1), 2 * 15 * 18)
    for x_D, picked in zip(x.flatten(0, 1), moe.gate(x, some_ids()).picked_BTA.flatten(0, 1)):
        for e in picked:
            total = [n + more for n, more in zip(total, caught(*(moe.experts.w13[e] @ x_D).chunk(2), 0.1))]
    assert counted["routed"] == (*total, 2 * 15 * 2 * 18)
    assert 0 < total[0] < total[1]  # a gate has no bound below


def test_numbers_of_padding_are_not_counted_as_clamped():
    """Kind: counts equal those without padding; before, each token of padding counted 4 F numbers."""
    moe, x, real_BT = small_model(swiglu_limit=0.1).layers[3].ffn, 40 * some_vectors(), torch.ones(2, 15).bool()
    real_BT[:, 11:] = False
    real_BT[1] = False
    counted = count_clamped(moe, x, some_ids(), real_BT)
    assert counted == count_clamped(moe, x[:1, :11], some_ids()[:1, :11])
    assert counted["routed"].total == 11 * 2 * 18 < count_clamped(moe, x, some_ids())["routed"].total
    with pytest.raises(ValueError, match="real_BT of shape .* does not fit a call of 2 rows of 15 tokens"):
        count_clamped(moe, x, some_ids(), real_BT[:, :14])


def test_a_number_on_the_bound_is_not_counted_and_gets_its_gradient():
    moe = MoE(CONFIG, v4.Routing.LEARNED)
    with torch.no_grad():
        for weight in (moe.experts.w13, moe.shared_experts.w1.weight, moe.shared_experts.w3.weight):
            weight.zero_()[..., 0] = 1
    x = torch.zeros(2, 15, 24)
    x[..., 0] = CONFIG.swiglu_limit
    assert count_clamped(moe, x, some_ids())["shared"] == (0, 0, 540) == (*caught(x[..., 0], x[..., 0], 0.7), 540)
    assert count_clamped(moe, 1.001 * x, some_ids())["routed"] == (1080, 1080, 1080)


ZIPF = 1e5 / torch.arange(1, 1501, dtype=torch.float64)


def table_loads(table, frequencies, n_experts):
    rows = table.flatten()
    return torch.zeros(n_experts, dtype=torch.float64).index_add_(
        0, rows, frequencies.repeat_interleave(table.shape[1])
    )


@pytest.mark.parametrize(("n_experts", "n_active"), [(16, 2), (9, 5), (48, 4), (7, 7)])
def test_a_balanced_table_reaches_the_bound_that_the_most_frequent_id_sets(n_experts, n_active):
    bound = max(0.0, (n_experts / n_active * ZIPF[0] / ZIPF.sum() - 1).item())
    found = max_violation(table_loads(balanced_hash_table(ZIPF, n_experts, n_active), ZIPF, n_experts))
    # The rarest ids come last and weigh 1e-4 of all: that is the grain of what is left.
    assert bound - 1e-9 <= found < bound + 0.01
    if n_active < n_experts:
        assert max_violation(table_loads(hash_table(1500, n_experts, n_active), ZIPF, n_experts)) > found + 0.1


def test_a_balanced_table_names_distinct_experts_in_many_teams_and_is_the_same_for_the_same_seed():
    table = balanced_hash_table(ZIPF, 16, 2, seed=3)
    assert table.shape == (1500, 2) and table.min() == 0 and table.max() == 15
    assert (table[:, 0] != table[:, 1]).all()
    assert len(torch.unique(table.sort(dim=1).values, dim=0)) > 60  # of 120 pairs; always the two least loaded makes 8
    assert torch.equal(table, balanced_hash_table(ZIPF, 16, 2, seed=3))
    assert not torch.equal(table, balanced_hash_table(ZIPF, 16, 2, seed=4))


def test_ids_that_never_occur_are_spread_evenly_too():
    frequencies = torch.cat([torch.tensor([900.0, 50.0, 3.0]), torch.zeros(4000)])
    unseen = balanced_hash_table(frequencies, 8, 2)[3:]
    assert max_violation(unseen.flatten().bincount(minlength=8)) < 0.34  # two full experts may get none: 8 / 6 - 1


def test_a_hash_layer_takes_a_balanced_table_in_place_of_its_own():
    moe = MoE(CONFIG, v4.Routing.HASH)
    moe.gate.tid2eid.copy_(balanced_hash_table(torch.ones(61), 9, 2))
    assert max_violation(moe.gate.tid2eid.flatten().bincount(minlength=9)) < 0.05  # 122 places on 9 experts


@pytest.mark.parametrize(
    ("frequencies", "sizes", "words"),
    [
        (torch.tensor([1.0, -1.0]), (4, 2), "one number from 0"),
        (torch.tensor([1.0, float("nan")]), (4, 2), "one number from 0"),
        (torch.ones(3, 2), (4, 2), "one number from 0"),
        (torch.ones(3), (4, 5), "n_active = 5 cannot be had of n_experts = 4"),
    ],
)
def test_frequencies_and_sizes_that_make_no_table_are_refused(frequencies, sizes, words):
    with pytest.raises(ValueError, match=words):
        balanced_hash_table(frequencies, *sizes)


def test_a_seed_of_the_toy_draws_text_and_table_as_well():
    """Kind: seeds that share what they should vary, so that the hash layer gives one number three times."""
    first, again, other = (routers.train_toy(seed, speed=0.0, n_steps=2).loads for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(routers.batch(1, 0)[0], routers.batch(1, 1)[0])
    tables = [routers.Toy(seed).layers[0].gate.tid2eid for seed in (0, 1)]
    assert not torch.equal(*tables) and not torch.equal(first[:, 0], other[:, 0])
