"""Placements: every expert held, ranks equally full, loads shared by copies; and what they do for a hash layer."""

from dataclasses import astuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minidsv4.cost import schedule
from minidsv4.model.moe import hash_table
from minidsv4.parallel.balance import balanced_packing, place, replicate_experts, slowdown, table_loads
from minidsv4.train.balance import max_violation, rank_loads

REPEATABLE = settings(max_examples=80, deadline=None, derandomize=True)
ROUNDED = 1e-9  # sums of some hundred float64 numbers


@st.composite
def cases(draw):
    """Loads, a number of ranks that divides the experts, and copies that the ranks can share."""
    n_ranks, held = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    sizes = st.one_of(st.integers(0, 3), st.integers(0, 10_000))  # ties and empty experts, and spread
    loads = draw(st.lists(sizes, min_size=n_ranks * held, max_size=n_ranks * held).filter(sum))
    return torch.tensor(loads), n_ranks, n_ranks * draw(st.integers(0, 3))


# --- placements of any loads ---


@REPEATABLE
@given(cases())
def test_every_expert_is_placed_and_each_rank_holds_equally_many(case):
    load, n_ranks, n_redundant = case
    placement = place(load, n_ranks, n_redundant)
    assert placement.experts.shape == (n_ranks, (len(load) + n_redundant) // n_ranks)
    assert torch.equal(placement.copies(), replicate_experts(load, len(load) + n_redundant))
    assert placement.copies().min() >= 1


@REPEATABLE
@given(cases())
def test_no_load_is_lost_and_copies_share_it_evenly(case):
    load, n_ranks, n_redundant = case
    placement = place(load, n_ranks, n_redundant)
    found = placement.rank_loads(load)
    assert found.sum().item() == pytest.approx(load.sum().item(), rel=ROUNDED)
    share = [load[e].item() / placement.copies()[e].item() for e in range(len(load))]
    by_hand = [sum(share[e] for e in slots) for slots in placement.experts.tolist()]
    assert found.tolist() == pytest.approx(by_hand, rel=ROUNDED)


@REPEATABLE
@given(cases())
def test_a_copy_always_goes_where_the_load_of_a_copy_is_largest(case):
    load, _, n_redundant = case
    copies = replicate_experts(load, len(load) + n_redundant)
    # Whoever got a second slot or a later one was, one copy ago, at least as loaded a copy as any expert is now.
    before = [load[e].item() / (copies[e].item() - 1) for e in range(len(load)) if copies[e] > 1]
    assert all(share >= (load / copies).max().item() - ROUNDED for share in before)


@REPEATABLE
@given(cases())
def test_more_copies_never_make_the_hottest_copy_hotter(case):
    load, _, n_redundant = case
    hottest = [(load / replicate_experts(load, len(load) + n)).max().item() for n in range(n_redundant + 1)]
    assert hottest == sorted(hottest, reverse=True)


@REPEATABLE
@given(cases())
def test_packed_ranks_differ_by_no_more_than_the_heaviest_item_and_keep_its_bound(case):
    load, n_ranks, n_redundant = case
    found, placement = place(load, n_ranks, n_redundant).rank_loads(load), place(load, n_ranks, n_redundant)
    heaviest = (load / placement.copies()).max().item()
    assert found.max().item() - found.min().item() <= heaviest + ROUNDED * load.sum().item()
    assert found.max().item() >= max(heaviest, found.mean().item()) * (1 - ROUNDED)


@REPEATABLE
@given(cases())
def test_only_ratios_of_loads_matter(case):
    load, n_ranks, n_redundant = case
    assert torch.equal(place(load, n_ranks, n_redundant).experts, place(8 * load, n_ranks, n_redundant).experts)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n_experts", "n_ranks"), [(384, 64), (384, 8), (256, 8), (12, 4)])
def test_packing_skewed_loads_is_no_worse_than_neighbours_together(n_experts, n_ranks, seed):
    load = torch.randn(n_experts, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).exp()
    plain, packed = rank_loads(load, n_ranks), place(load, n_ranks).rank_loads(load)
    assert max_violation(packed) < max_violation(plain)
    if n_ranks == 64:  # one expert is more than a rank's share: copies are what helps
        copied = place(load, n_ranks, n_ranks).rank_loads(load)
        assert max_violation(copied) < 0.1 * max_violation(packed)


def test_a_lucky_order_can_be_better_than_greedy_packing():
    load = torch.tensor([18, 8, 1, 19, 1, 7, 20, 1, 6, 6, 4, 18])
    assert (place(load, 4).rank_loads(load).max(), rank_loads(load, 4).max()) == (29, 28)


# --- by hand ---


def test_heaviest_first_to_the_lightest_pack_with_room():
    # 9 to pack 0, 8 to pack 1, 3 to pack 1, which is then full: 2 goes to pack 0 although that one is not heavier yet.
    assert balanced_packing(torch.tensor([2, 9, 3, 8]), 2, most=2).tolist() == [0, 0, 1, 1]
    assert balanced_packing(torch.tensor([9, 1, 1, 1]), 2, most=2).tolist() == [0, 1, 1, 0]


def test_packs_of_any_number_of_items_take_the_heaviest_first_and_then_what_evens_them():
    assert balanced_packing(torch.tensor([9, 1, 1, 1]), 2).tolist() == [0, 1, 1, 1]
    load = torch.tensor([5, 9, 4, 7, 6, 5])
    pack = balanced_packing(load, 3)
    assert pack.tolist() == [2, 0, 0, 1, 2, 1]
    assert torch.zeros(3, dtype=load.dtype).index_add(0, pack, load).tolist() == [13, 12, 11]
    assert balanced_packing(torch.ones(0), 2).tolist() == []


def test_copies_go_to_the_hottest_expert_until_another_is_hotter():
    assert replicate_experts(torch.tensor([20, 4, 1]), 6).tolist() == [4, 1, 1]
    assert replicate_experts(torch.tensor([10, 6, 1]), 6).tolist() == [3, 2, 1]


def test_a_hot_expert_alone_overfills_its_rank_and_only_a_copy_helps():
    load = torch.tensor([30, 10, 10, 10])
    assert place(load, 2).rank_loads(load).tolist() == [40, 20]
    assert place(load, 2, 2).rank_loads(load).tolist() == [30, 30]


def test_seats_say_where_each_expert_went():
    load = torch.tensor([2, 9, 3, 8])
    placement = place(load, 2)
    assert placement.experts.tolist() == [[0, 1], [2, 3]] and placement.seats() == (0, 1, 2, 3)
    placement = place(torch.tensor([9, 8, 3, 2]), 2)
    assert placement.experts.tolist() == [[0, 3], [1, 2]] and placement.seats() == (0, 2, 3, 1)
    assert [placement.experts.flatten()[seat].item() for seat in placement.seats()] == [0, 1, 2, 3]


def test_a_layer_takes_as_long_as_its_fullest_rank():
    part = schedule.Stages(0.4, 0.6, 0.1, 0.3, 0.8)
    load = torch.tensor([4.0, 1.0, 1.0, 2.0])
    fullest = schedule.Stages(*((load.max() / load.mean()).item() * time for time in astuple(part)))
    assert slowdown(load) == 2
    assert schedule.waves(fullest).time == pytest.approx(2 * schedule.waves(part).time, rel=ROUNDED)


# --- hash layers under Zipf ---


def maxvios(n_experts: int, n_ranks: int, n_ids: int = 20_000, seed: int = 0) -> list[float]:
    """MaxVio of the ranks as the experts come, packed, and with one more slot a rank: six active, the n-th id 1/n."""
    table = hash_table(n_ids, n_experts, 6, seed)
    load = table_loads(table, 1 / torch.arange(1, n_ids + 1, dtype=torch.float64), n_experts)
    placed = (place(load, n_ranks, n).rank_loads(load) for n in (0, n_ranks))
    return [max_violation(ranks) for ranks in (rank_loads(load, n_ranks), *placed)]


@pytest.mark.slow
def test_on_64_ranks_packing_halves_a_hash_layers_overload_and_copies_end_it():
    # Seeds of the table scatter: 1.2 to 1.8, 0.5 to 0.8 here; 1.16, 0.57 and 0.01 at the released vocabulary elsewhere.
    for plain, packed, copied in (maxvios(384, 64, seed=seed) for seed in range(3)):
        assert 0.8 < plain < 2 and 0.4 < packed < 1 and copied < 0.02


def test_on_8_ranks_packing_is_enough_for_a_hash_layer():
    for plain, packed, _ in (maxvios(256, 8, seed=seed) for seed in range(3)):
        assert plain > 0.1 and packed < 0.02


def test_the_load_of_a_table_counts_each_ids_experts():
    table, often = torch.tensor([[0, 2], [2, 1], [0, 1]]), torch.tensor([5, 1, 10])
    assert table_loads(table, often, 4).tolist() == [15, 11, 6, 0]


# --- refused ---


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: place(torch.ones(6), 4), "4 ranks cannot share 6 slots"),
        (lambda: place(torch.ones(6), 0), "0 ranks cannot share 6 slots"),
        (lambda: place(torch.ones(6), 3, 1), "3 ranks cannot share 7 slots"),
        (lambda: balanced_packing(torch.ones(6), 2, most=2), "n_packs = 2 of at most 2 cannot hold 6 items"),
        (lambda: balanced_packing(torch.ones(0), 0), "n_packs = 0"),
        (lambda: place(torch.ones(6), 3, -3), "n_slots = 3 cannot hold 6 experts"),
        (lambda: place(torch.tensor([1.0, -1.0]), 2), "a load counts tokens"),
        (lambda: place(torch.tensor([1.0, float("nan")]), 2), "a load counts tokens"),
        (lambda: place(torch.ones(4), 2).rank_loads(torch.ones(5)), "5 loads for 4 placed experts"),
        (lambda: place(torch.tensor([1, 5]), 2, 2).seats(), "expert 1 has several slots"),
    ],
)
def test_what_cannot_be_placed_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
