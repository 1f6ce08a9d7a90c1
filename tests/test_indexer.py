"""The lightning indexer: scores and picks as in the loops, a stable top-k, and streaming that changes nothing."""

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import CPU, EXACT, TINY, disturb, memory_of, normal, numpy_of, positions_of

import minidsv4 as v4
from minidsv4 import paper
from minidsv4.fast.top_entries import stable_topk
from minidsv4.model.indexer import Hadamard, Indexer, hadamard_signs
from minidsv4.ops import index_scores
from minidsv4.visibility import Visibility

CSA = v4.LayerKind.CSA
top_entries = importlib.import_module("minidsv4.fast.top_entries")  # the module, not the function of its name


def build(config=TINY, seed=0):
    return disturb(Indexer(config).double(), seed)


def example(n_tokens, seed=0):
    return normal(2, n_tokens, TINY.hidden_size, seed=seed), normal(2, n_tokens, TINY.q_lora_rank, seed=seed + 1)


def picks(layer, x_BTD, latent_BTQ, cuts=None):
    memory, out, start = memory_of(CSA, len(x_BTD)).index, [], 0
    for n in cuts or [x_BTD.shape[1]]:
        x, latent = x_BTD[:, start : start + n], latent_BTQ[:, start : start + n]
        sees = Visibility(start, n, window=1, n_window=n, device=CPU, ratio=3, n_entries=(start + n) // 3)
        out.append(layer(x, latent, positions_of(CSA, n, start), memory, sees))
        start += n
    return out


def as_sets(picks_BTP, start=0):
    """The visible picks of each query, batch by batch."""
    rows = [row for batch in picks_BTP.tolist() for row in enumerate(batch)]
    return [{entry for entry in row if entry < (start + t + 1) // 3} for t, row in rows]


# ---- the top-k ----


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 12).flatmap(
        lambda n: st.lists(
            st.lists(st.sampled_from([-torch.inf, -1.0, 0.0, 0.5, 2.0]), min_size=n, max_size=n), min_size=1, max_size=4
        )
    ),
    k=st.integers(1, 14),
)
def test_among_equal_scores_the_lower_place_wins_whatever_the_ties(rows, k):
    found = stable_topk(torch.tensor(rows), k).tolist()
    for row, places in zip(rows, found):
        best = sorted(range(len(row)), key=lambda place: -row[place])[:k]
        assert places == sorted(places) and len(set(places)) == len(places) == min(k, len(row))
        assert {p for p in places if row[p] > -torch.inf} == {p for p in best if row[p] > -torch.inf}


@pytest.mark.parametrize("hidden", [0.0, 0.9], ids=["all visible", "a tenth visible"])
@pytest.mark.parametrize("levels", [2, 40, 1000000], ids=["nearly all tie", "many ties", "no tie"])
@pytest.mark.parametrize(("n_entries", "k"), [(997, 3), (1000, 16), (4096, 5)])
def test_the_places_are_those_of_a_stable_sort(n_entries, k, levels, hidden):
    score = (normal(3, 11, n_entries).sigmoid() * levels).floor()
    score[..., int(n_entries * (1 - hidden)) :] = -torch.inf
    best = score.sort(dim=-1, descending=True, stable=True).indices[..., :k].sort(-1).values
    assert torch.equal(stable_topk(score, k), best)


def test_all_equal_scores_give_the_first_places():
    assert stable_topk(torch.zeros(2, 5, 9), 4).tolist() == [[[0, 1, 2, 3]] * 5] * 2


def test_a_tie_in_one_row_does_not_disturb_the_others():
    score = torch.stack([torch.tensor([0.0, 3.0, 0.0, 0.0, 1.0]), torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])])
    score = torch.cat([score, torch.full((1, 5), -torch.inf)])
    assert stable_topk(score, 3)[:2].tolist() == [[0, 1, 4], [0, 1, 2]]


# ---- Hadamard ----


@pytest.mark.parametrize("width", [1, 2, 16, 128])
def test_the_hadamard_matrix_is_that_of_the_paper_orthonormal_and_its_own_inverse(width):
    step = Hadamard(width).double()  # made in float32 and widened: the signs are exact in every dtype
    matrix = step(torch.eye(width).double())
    assert torch.allclose(matrix, torch.from_numpy(paper.hadamard_matrix(width)), rtol=0, atol=1e-15)
    assert torch.allclose(step(matrix), torch.eye(width).double(), rtol=0, atol=1e-13)  # 128 rounded terms


@pytest.mark.parametrize("width", [3, 20, 96])
def test_a_width_that_is_no_power_of_two_is_left_alone(width):
    assert torch.equal(Hadamard(width)(hadamard_signs(width)), torch.eye(width))


def test_the_hadamard_step_changes_vectors_but_no_score_and_no_pick():
    layer, (x_BTD, latent_BTQ) = build(), example(38)
    layer.hadamard.reset_constants()
    with_step = picks(layer, x_BTD, latent_BTQ)[0]
    positions = positions_of(CSA, 38)
    query, weight = layer.queries(x_BTD, latent_BTQ, positions)
    keys = layer.compressor(x_BTD, positions, memory_of(CSA, 2).index)
    score = index_scores(query, weight, keys)
    for step in (layer.hadamard, layer.compressor.hadamard):
        step.signs.copy_(torch.eye(TINY.index_head_dim))
        step.scale = 1.0
    plain_query, _ = layer.queries(x_BTD, latent_BTQ, positions)
    plain_keys = layer.compressor(x_BTD, positions, memory_of(CSA, 2).index)
    assert (plain_query - query).abs().max() > 0.1 and (plain_keys - keys).abs().max() > 0.1
    assert (index_scores(plain_query, weight, plain_keys) - score).abs().max() < EXACT
    assert as_sets(picks(layer, x_BTD, latent_BTQ)[0]) == as_sets(with_step)


def test_the_hadamard_step_of_a_float64_model_is_exact_in_float64():
    step = Indexer(TINY.replace(index_head_dim=32)).double().hadamard  # 32^-0.5 is not a float32, 16^-0.5 = 1/4 is
    turned = step(torch.eye(32).double())
    assert torch.allclose(turned, torch.from_numpy(paper.hadamard_matrix(32)), rtol=0, atol=1e-15)


# ---- scores and picks ----


def test_scores_agree_with_the_loops_of_the_paper():
    query, weight, keys = normal(2, 5, 11, 16), normal(2, 5, 11, seed=1), normal(2, 7, 16, seed=2)
    score = index_scores(query, weight, keys)
    assert score.shape == (2, 5, 7)
    for b, t in [(0, 0), (1, 3)]:
        expected = paper.index_scores(query[b, t].numpy(), weight[b, t].numpy(), keys[b].numpy())
        assert torch.allclose(score[b, t], torch.from_numpy(expected), rtol=0, atol=EXACT)


@pytest.mark.parametrize("n_tokens", [1, 2, 3, 17, 18, 21, 38])
def test_picks_agree_with_the_loops_of_the_paper(n_tokens):
    layer, (x_BTD, latent_BTQ) = build(), example(n_tokens)
    params = {f"indexer.{name}": tensor for name, tensor in numpy_of(layer).items()}
    freqs = paper.layer_frequencies("CSA", TINY)
    ours = as_sets(picks(layer, x_BTD, latent_BTQ)[0])
    for b in range(2):
        expected = paper.picked_entries(params, x_BTD[b].numpy(), latent_BTQ[b].numpy(), TINY, freqs)
        assert ours[b * n_tokens : (b + 1) * n_tokens] == [set(row) for row in expected]


def test_a_query_picks_as_many_entries_as_it_may_and_all_while_there_are_few():
    layer, (x_BTD, latent_BTQ) = build(), example(38)
    for t, picked in enumerate(as_sets(picks(layer, x_BTD, latent_BTQ)[0])):
        assert len(picked) == min(TINY.index_topk, (t % 38 + 1) // 3)


@pytest.mark.parametrize("at_once", [1, 100, 700, 5000])
def test_streaming_over_entries_picks_what_one_block_picks(at_once, monkeypatch):
    layer, (x_BTD, latent_BTQ) = build(), example(100)
    whole = picks(layer, x_BTD, latent_BTQ)[0]
    monkeypatch.setattr(top_entries, "SCORES_AT_ONCE", at_once)
    streamed = picks(layer, x_BTD, latent_BTQ)[0]
    assert streamed.shape == whole.shape and as_sets(streamed) == as_sets(whole)


def test_streaming_over_equal_scores_keeps_the_lower_entries(monkeypatch):
    layer, (x_BTD, latent_BTQ) = build(), example(100)
    layer.weights_proj.weight.data.zero_()  # every score is 0
    monkeypatch.setattr(top_entries, "SCORES_AT_ONCE", 1)
    for t, picked in enumerate(as_sets(picks(layer, x_BTD, latent_BTQ)[0])):
        assert picked == set(range(min(TINY.index_topk, (t % 100 + 1) // 3)))


def test_no_matrix_of_all_tokens_by_all_entries_is_ever_whole(monkeypatch):
    layer, (x_BTD, latent_BTQ) = build(), example(300)
    sizes, right = [], top_entries.index_scores
    monkeypatch.setattr(top_entries, "SCORES_AT_ONCE", 1 << 14)
    monkeypatch.setattr(
        top_entries, "index_scores", lambda q, w, k: sizes.append(q[..., 0].numel() * k.shape[1]) or right(q, w, k)
    )
    picks(layer, x_BTD, latent_BTQ)
    assert max(sizes) <= 1 << 14 and len(sizes) > 10


@pytest.mark.parametrize("cuts", [[1] * 38, [2, 1, 9, 12, 14], [37, 1]])
def test_any_cutting_into_chunks_picks_the_same_entries(cuts):
    layer, (x_BTD, latent_BTQ) = build(), example(38)
    start, whole = 0, picks(layer, x_BTD, latent_BTQ)[0]
    for part in picks(layer, x_BTD, latent_BTQ, cuts):
        n = part.shape[1]
        expected = [s for b in range(2) for s in as_sets(whole)[38 * b + start : 38 * b + start + n]]
        assert as_sets(part, start) == expected
        start += n


def test_scaling_the_head_weights_by_a_positive_number_moves_no_pick():
    layer, (x_BTD, latent_BTQ) = build(), example(38)
    whole = picks(layer, x_BTD, latent_BTQ)[0]
    layer.weights_proj.weight.data *= 37.0
    assert as_sets(picks(layer, x_BTD, latent_BTQ)[0]) == as_sets(whole)
    layer.weights_proj.weight.data *= -1.0
    assert as_sets(picks(layer, x_BTD, latent_BTQ)[0]) != as_sets(whole)


def test_choosing_has_no_gradient():
    layer, (x_BTD, latent_BTQ) = build(), example(38)
    assert not picks(layer, x_BTD.requires_grad_(), latent_BTQ)[0].requires_grad
