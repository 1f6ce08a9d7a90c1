"""Hybrid ZeRO: ranks that each move some whole matrices end where one process ends, bit for bit."""

import functools

import pytest
import torch

from minidsv4 import Model
from minidsv4.parallel.launch import run_ranks
from minidsv4.parallel.zero import ShardedMuon, experts_in_order, padding, round_stochastically, share_out
from minidsv4.train.muon import muon, parameter_specs
from tests.small import TINY, normal, small_model

N_STEPS = 2
RATE = 0.02


def gradient(spec, rank, step):
    """What a rank finds for a parameter in a step; the last layer's index has none anywhere, and rank 1 a few less."""
    number = sum(map(ord, spec.name)) + 1000 * rank + 100_000 * step
    if "weights_proj" in spec.name or (rank == 1 and ("attn_norm" in spec.name or "wq_a" in spec.name)):
        return None
    return normal(*spec.parameter.shape, seed=number)


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def sharded(group, rounded, cap):
    """One rank's life: its own gradients, the common step."""
    model = small_model()
    optimizer = ShardedMuon(model, group, RATE, cap=cap, rounded=rounded, seed=5)
    for step in range(N_STEPS):
        for spec in parameter_specs(model):
            spec.parameter.grad = gradient(spec, group.rank(), step)
        optimizer.step()
    return weights(model), sum(view.numel() for view in optimizer.mine)


def rounded_experts(model, n_ranks, rank, generator):
    """Replace the experts' gradients of one rank by what it sends, with the noise in the order in which it sends."""
    experts = [item for share in share_out(model, n_ranks).experts for item in share]
    numbers = torch.cat([item.gradient() for item in experts])
    sent = round_stochastically(numbers, torch.randint(1 << 16, numbers.shape, generator=generator))
    for item, piece in zip(experts, sent.split([item.size for item in experts])):
        item.of(item.parameter.grad).copy_(piece.view_as(item.of(item.parameter.grad)))


def alone(n_ranks, rounded):
    """One process with the mean of all ranks' gradients: experts' summed in float32, the others' in their own."""
    model = small_model()
    optimizer = muon(model, RATE)
    generators = [torch.Generator().manual_seed(5 * n_ranks + rank) for rank in range(n_ranks)]
    for step in range(N_STEPS):
        found = []
        for rank in range(n_ranks):
            for spec in parameter_specs(model):
                spec.parameter.grad = gradient(spec, rank, step)
            if rounded:
                rounded_experts(model, n_ranks, rank, generators[rank])
            found.append([spec.parameter.grad for spec in parameter_specs(model)])
        for spec, grads in zip(parameter_specs(model), zip(*found)):
            if grads[0] is not None:
                narrow = rounded and spec.parameter.ndim == 3
                grads = [torch.zeros_like(grads[0]) if g is None else g for g in grads]
                mean = functools.reduce(torch.add, [g.float() if narrow else g for g in grads]) / n_ranks
                spec.parameter.grad = mean.to(torch.float64)
        optimizer.step()
    return weights(model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_ranks", "rounded", "cap"), [(1, True, None), (2, False, None), (4, True, None), (4, True, 2)]
)
def test_ranks_that_share_the_matrices_end_where_one_process_ends(n_ranks, rounded, cap):
    """Kind: equal to one process, also for parameters that got no gradient on some ranks, or on none."""
    results = run_ranks(sharded, n_ranks, rounded, cap)
    expected = alone(n_ranks, rounded)
    assert all(torch.equal(ours, expected) for ours, _ in results)
    owned = [n for _, n in results]
    assert (
        (sum(owned) == len(expected) and max(owned) < 1.1 * min(owned)) if cap is None else sum(owned) > len(expected)
    )


# --- who owns what ---


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 4, 7])
def test_every_number_has_one_owner_and_no_matrix_is_cut(n_ranks):
    model = Model(TINY)
    shares = share_out(model, n_ranks)
    owners = {id(parameter): torch.zeros_like(parameter) for parameter in model.parameters()}
    for rank in range(n_ranks):
        for item in shares.owned(rank):
            piece = item.of(owners[id(item.parameter)].detach())
            piece += 1
            assert item.parts is None or piece.ndim == 2
    assert all((count == 1).all() for count in owners.values())
    n_matrices = sum(spec.n_matrices() for spec in parameter_specs(model))
    assert n_matrices == sum(item.parts is not None for rank in range(n_ranks) for item in shares.owned(rank))


def test_ranks_beyond_the_cap_own_the_same_dense_matrices_again():
    shares = share_out(Model(TINY), n_ranks=5, cap=2)
    names = [{(item.name, item.where) for item in shares.owned(rank) if not item.is_expert} for rank in range(5)]
    dense = [{(item.name, item.where) for item in share} for share in shares.dense]
    assert len(dense) == 2 and not dense[0] & dense[1]
    assert all(dense[rank % 2] <= names[rank] and not dense[1 - rank % 2] & names[rank] for rank in range(5))


def test_the_vector_of_experts_holds_all_down_then_all_up_then_all_gate():
    items = experts_in_order(parameter_specs(Model(TINY)))
    third = len(items) // 3
    names = [item.name.rsplit(".", 1)[1] for item in items]
    assert names == ["w2"] * third + ["w13"] * 2 * third
    assert {item.where[0] for item in items[third : 2 * third]} == {1}  # up lies below gate
    assert {item.where[0] for item in items[2 * third :]} == {0}
    assert len({item.size for item in items}) == 1  # so that an even split cuts none


def test_a_limit_on_the_matrices_of_a_share_is_kept_and_leaves_its_matrices_in_order():
    shares = share_out(Model(TINY), n_ranks=16).dense
    n = sum(map(len, shares))
    most = -(-n // 16)
    even = share_out(Model(TINY), n_ranks=16, most=most).dense
    assert max(map(len, shares)) > most >= max(map(len, even))
    order = [spec.name for spec in parameter_specs(Model(TINY))]
    for share in shares + even:
        at = [order.index(item.name) for item in share]
        assert at == sorted(at)


def test_padding_is_what_the_largest_share_asks_of_the_others():
    assert padding([6, 6]) == 0 and padding([8, 4]) == pytest.approx(1 / 3)


def test_dense_matrices_of_a_small_model_are_padded_by_less_than_a_tenth():
    dense = share_out(Model(TINY), n_ranks=4).dense
    assert padding([sum(item.size for item in share) for share in dense]) < 0.1


def test_the_report_has_a_line_for_each_kind_of_parameter():
    lines = share_out(Model(TINY), n_ranks=4).report().splitlines()
    n = sum(spec.n_matrices() for spec in parameter_specs(Model(TINY)) if spec.parameter.ndim == 3)
    assert [line.split()[0] for line in lines] == ["dense", "experts", "AdamW"]
    assert lines[1].split()[1:5] == ["4", "shares", "of", str(n // 4)] or n % 4


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"n_ranks": 0}, "share_out: n_ranks = 0, cap = None"),
        ({"n_ranks": 2, "cap": 0}, "share_out: n_ranks = 2, cap = 0"),
        ({"n_ranks": 2, "most": 3}, "n_packs = 2 of at most 3 cannot hold"),
    ],
)
def test_an_impossible_plan_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        share_out(Model(TINY), **wrong)


# --- rounding ---


def test_stochastic_rounding_has_no_bias_over_all_noise():
    noise = torch.arange(1 << 16)
    for x in (1.0, 1.0 + 2**-9, -3.3, 1e-30, 0.1, -65504.7):
        x = torch.full(noise.shape, x, dtype=torch.float32)
        rounded = round_stochastically(x, noise)
        assert rounded.dtype == torch.bfloat16 and len(rounded.unique()) <= 2
        assert torch.equal(rounded.double().mean(), x[0].double())  # sums of 65536 equal steps are exact in float64


def test_rounding_to_the_nearest_would_lose_what_stochastic_rounding_keeps_on_average():
    x = torch.full((20_000,), 1 + 2.0**-10)  # an eighth of the way from 1 to the next bfloat16
    noise = torch.randint(1 << 16, x.shape, generator=torch.Generator().manual_seed(0))
    assert x.bfloat16().double().mean() == 1
    # 20,000 draws of 2^-7 with probability 1/8: one standard deviation of the mean is 2e-5.
    assert abs(round_stochastically(x, noise).double().mean() - x[0]) < 6e-5
    assert torch.equal(round_stochastically(x.bfloat16().float(), noise).float(), torch.ones(20_000))
