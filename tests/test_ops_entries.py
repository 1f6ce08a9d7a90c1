"""Compressed entries and their choice, plain and fast: pooling, index scores, a stable top-k, by the paper's loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import CASES
from small import EXACT, both_tables, normal, one_document

from minidsv4 import paper
from minidsv4.fast.top_entries import index_scores as fast_index_scores
from minidsv4.fast.top_entries import scores_in_parts
from minidsv4.ops import PLAIN, index_scores, pool, slot_weights

both_scores = pytest.mark.parametrize(
    "scores", [index_scores, fast_index_scores, scores_in_parts], ids=["plain", "fast", "in parts"]
)


# ---- pooling ----


def test_slot_weights_are_a_softmax_over_slots_for_each_channel_alone():
    gates, bias = normal(2, 4, 5, 6), normal(5, 6, seed=1)
    weights = slot_weights(gates, bias)
    expected = torch.from_numpy(paper.slot_softmax((gates[1, 2] + bias).numpy()))
    assert torch.allclose(weights[1, 2], expected, rtol=0, atol=1e-15)
    gates[..., 3] += normal(2, 4, 5)
    assert torch.equal(slot_weights(gates, bias)[..., [0, 1, 2, 4, 5]], weights[..., [0, 1, 2, 4, 5]])


def test_pooling_agrees_with_the_loops_of_the_paper():
    values, gates, bias = normal(2, 4, 5, 6), normal(2, 4, 5, 6, seed=1), normal(5, 6, seed=2)
    ours = pool(values, gates, bias)
    for b, c in [(0, 0), (1, 3)]:
        weights = paper.slot_softmax((gates[b, c] + bias).numpy())
        expected = paper.hca_entry(weights, values[b, c].numpy(), 0)
        assert torch.allclose(ours[b, c], torch.from_numpy(expected), rtol=0, atol=EXACT)


def test_a_slot_with_a_gate_of_minus_infinity_has_no_weight_and_no_gradient():
    values, gates, bias = normal(2, 4, 5, 6), normal(2, 4, 5, 6, seed=1), normal(5, 6, seed=2)
    gates[:, 0, :2] = -torch.inf
    weights = slot_weights(gates, bias)
    assert (weights[:, 0, :2] == 0).all() and (weights[:, 1:] > 0).all()
    assert (weights.sum(2) - 1).abs().max() < EXACT
    tensors = [part.requires_grad_() for part in (values, gates, bias)]
    gradients = torch.autograd.grad(pool(*tensors).square().sum(), tensors)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[0][:, 0, :2] == 0).all() and (gradients[1][:, 0, :2] == 0).all()


def test_the_gradient_of_pooling_is_right():
    tensors = [t.requires_grad_() for t in (normal(1, 2, 3, 4), normal(1, 2, 3, 4, seed=1), normal(3, 4, seed=2))]
    assert torch.autograd.gradcheck(pool, tensors)


def test_extreme_gates_pool_to_finite_entries_with_finite_gradients():
    values, gates, bias = normal(1, 2, 3, 4), 1e4 * normal(1, 2, 3, 4, seed=1), normal(3, 4, seed=2)
    tensors = [part.requires_grad_() for part in (values, gates, bias)]
    pooled = pool(*tensors)
    expected = paper.hca_entry(
        paper.slot_softmax((gates[0, 1] + bias).detach().numpy()), values[0, 1].detach().numpy(), 0
    )
    assert (pooled[0, 1] - torch.from_numpy(expected)).abs().max() < EXACT
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(pooled.sum(), tensors))


def test_16_bits_are_pooled_in_float32():
    narrow = [part.bfloat16() for part in (normal(2, 4, 5, 6), normal(2, 4, 5, 6, seed=1), normal(5, 6, seed=2))]
    pooled = pool(*narrow)
    assert pooled.dtype == torch.float32 and torch.equal(pooled, pool(*(part.float() for part in narrow)))


# ---- index scores ----


@both_scores
def test_scores_agree_with_the_loops_of_the_paper(scores):
    query, weight, keys = normal(2, 5, 11, 16), normal(2, 5, 11, seed=1), normal(2, 7, 16, seed=2)
    score = scores(query, weight, keys)
    assert score.shape == (2, 5, 7)
    for b, t in [(0, 0), (1, 3)]:
        expected = paper.index_scores(query[b, t].numpy(), weight[b, t].numpy(), keys[b].numpy())
        assert torch.allclose(score[b, t], torch.from_numpy(expected), rtol=0, atol=EXACT)


@both_scores
def test_scores_of_16_bits_are_those_of_float32(scores):
    narrow = [part.bfloat16() for part in (normal(2, 5, 11, 16), normal(2, 5, 11, seed=1), normal(2, 7, 16, seed=2))]
    score = scores(*narrow)
    assert score.dtype == torch.float32 and torch.equal(score, scores(*(part.float() for part in narrow)))


def test_the_gradient_of_the_scores_is_right():
    tensors = [t.requires_grad_() for t in (normal(1, 3, 2, 4), normal(1, 3, 2, seed=1), normal(1, 5, 4, seed=2))]
    assert torch.autograd.gradcheck(index_scores, tensors)


# ---- the top-k ----


@both_tables
@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 12).flatmap(
        lambda n: st.lists(
            st.lists(st.sampled_from([-torch.inf, -1.0, 0.0, 0.5, 2.0]), min_size=n, max_size=n), min_size=1, max_size=4
        )
    ),
    k=st.integers(1, 14),
)
def test_among_equal_scores_the_lower_place_wins_whatever_the_ties(table, rows, k):
    found = table.stable_topk(torch.tensor(rows), k).tolist()
    for row, places in zip(rows, found):
        best = sorted(range(len(row)), key=lambda place: -row[place])[:k]
        assert places == sorted(places) and len(set(places)) == len(places) == min(k, len(row))
        assert {p for p in places if row[p] > -torch.inf} == {p for p in best if row[p] > -torch.inf}


@both_tables
@pytest.mark.parametrize("hidden", [0.0, 0.9], ids=["all visible", "a tenth visible"])
@pytest.mark.parametrize("levels", [2, 40, 1000000], ids=["nearly all tie", "many ties", "no tie"])
@pytest.mark.parametrize(("n_entries", "k"), [(997, 3), (1000, 16), (4096, 5)])
def test_the_places_are_those_of_a_stable_sort(n_entries, k, levels, hidden, table):
    score = (normal(3, 11, n_entries).sigmoid() * levels).floor()
    score[..., int(n_entries * (1 - hidden)) :] = -torch.inf
    best = score.sort(dim=-1, descending=True, stable=True).indices[..., :k].sort(-1).values
    assert torch.equal(table.stable_topk(score, k), best)


@both_tables
def test_all_equal_scores_give_the_first_places(table):
    assert table.stable_topk(torch.zeros(2, 5, 9), 4).tolist() == [[[0, 1, 2, 3]] * 5] * 2


@both_tables
def test_a_tie_in_one_row_does_not_disturb_the_others(table):
    score = torch.stack([torch.tensor([0.0, 3.0, 0.0, 0.0, 1.0]), torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])])
    score = torch.cat([score, torch.full((1, 5), -torch.inf)])
    assert table.stable_topk(score, 3)[:2].tolist() == [[0, 1, 4], [0, 1, 2]]


@both_tables
@pytest.mark.parametrize("n_nan", [1, 2, 3, 4, 40])
@pytest.mark.parametrize(("n_entries", "k"), [(4, 2), (7, 3), (100, 3), (1000, 16)])
def test_a_row_with_nan_ends_in_no_exception_and_changes_no_healthy_row(n_entries, k, n_nan, table):
    healthy = normal(3, n_entries).round()
    sick = normal(1, n_entries)
    sick[:, :n_nan] = torch.nan
    found = table.stable_topk(torch.cat([sick, healthy]), k)
    assert torch.equal(found[1:], PLAIN.stable_topk(healthy, k))
    assert found.shape == (4, k) and all(len(set(row)) == k for row in found.tolist())
    assert found.min() >= 0 and found.max() < n_entries


@both_tables
def test_a_row_of_nan_beside_a_row_of_zeros_leaves_it_its_first_places(table):
    assert table.stable_topk(torch.tensor([[torch.nan] * 4, [0.0] * 4]), 2)[1].tolist() == [0, 1]


# ---- the choice ----


@pytest.mark.slow
@both_tables
@pytest.mark.parametrize("seed", range(10))
def test_the_picks_of_each_query_are_those_of_the_paper_in_ascending_order(seed, table):
    query, weight, keys, sees, k = CASES["top_entries"](np.random.default_rng(seed))
    sees = sees._replace(document_BT=None)
    picks_BTP = table.top_entries(query, weight, keys, sees, k)
    assert picks_BTP.shape == (*weight.shape[:2], min(k, sees.n_entries))
    assert (picks_BTP.diff(dim=-1) > 0).all()
    for b, t in np.ndindex(weight.shape[:2]):
        score_C = paper.index_scores(query[b, t].numpy(), weight[b, t].numpy(), keys[b].numpy())
        n_visible = min(paper.visible_entries(sees.start + t, sees.ratio), sees.n_entries)
        found = {c for c in picks_BTP[b, t].tolist() if c < n_visible}
        assert found == set(paper.select_entries(score_C, k, n_visible))


@both_tables
def test_a_query_picks_as_many_entries_as_it_may_and_all_while_there_are_few(table):
    sees = one_document(90, ratio=3, n_entries=30)
    query, weight, keys = normal(2, 90, 4, 8), normal(2, 90, 4, seed=1), normal(2, 30, 8, seed=2)
    sees = sees._replace(picks_BTP=table.top_entries(query, weight, keys, sees, 6))
    assert sees.entry_map().sum(-1).tolist() == [[min(6, (t + 1) // 3) for t in range(90)]] * 2


@both_tables
def test_equal_scores_pick_the_lower_entries(table):
    sees = one_document(90, ratio=3, n_entries=30)
    query, weight, keys = normal(2, 90, 4, 8), torch.zeros(2, 90, 4).double(), normal(2, 30, 8, seed=2)
    sees = sees._replace(picks_BTP=table.top_entries(query, weight, keys, sees, 6))
    for t in range(90):
        assert sees.entry_map()[1, t].nonzero().flatten().tolist() == list(range(min(6, (t + 1) // 3)))


@both_tables
def test_nothing_of_another_document_is_picked(table):
    document_BT = (torch.arange(90) // 30 * 30).expand(2, -1)
    sees = one_document(90, ratio=3, n_entries=30, document_BT=document_BT)
    query, weight, keys = normal(2, 90, 4, 8), normal(2, 90, 4, seed=1), normal(2, 30, 8, seed=2)
    picked = sees._replace(picks_BTP=table.top_entries(query, weight, keys, sees, 6)).entry_map()
    for d in range(3):  # each document by itself
        part = slice(30 * d, 30 * d + 30)
        alone = one_document(30, ratio=3, n_entries=10)
        picks_BTP = table.top_entries(query[:, part], weight[:, part], keys[:, 10 * d : 10 * d + 10], alone, 6)
        assert torch.equal(picked[:, part, 10 * d : 10 * d + 10], alone._replace(picks_BTP=picks_BTP).entry_map())
        assert picked[:, part].sum(-1).max() == 6


@both_tables
def test_a_nan_query_does_not_change_what_its_neighbour_picks(table):
    sees = one_document(90, ratio=3, n_entries=30)
    query, weight, keys = normal(2, 90, 4, 8), normal(2, 90, 4, seed=1), normal(2, 30, 8, seed=2)
    before = table.top_entries(query, weight, keys, sees, 6)
    sick = query.clone()
    sick[0, 40:60:2] = torch.nan
    after = table.top_entries(sick, weight, keys, sees, 6)
    healthy = torch.ones(2, 90, dtype=torch.bool)
    healthy[0, 40:60:2] = False
    assert torch.equal(after[healthy], before[healthy])
