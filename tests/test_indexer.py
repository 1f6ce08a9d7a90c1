"""The lightning indexer: scores and picks as in the loops, the Hadamard step, and chunks that change nothing."""

import pytest
import torch
from small import CPU, EXACT, TINY, both_tables, disturb, memory_of, normal, numpy_of, positions_of, with_ops

import minidsv4 as v4
from minidsv4 import paper
from minidsv4.model.indexer import Hadamard, Indexer, hadamard_signs
from minidsv4.ops import index_scores
from minidsv4.visibility import Visibility

CSA = v4.LayerKind.CSA


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


@both_tables
@pytest.mark.parametrize("n_tokens", [1, 2, 3, 17, 18, 21, 38])
def test_picks_agree_with_the_loops_of_the_paper(n_tokens, table):
    layer, (x_BTD, latent_BTQ) = with_ops(build(), table), example(n_tokens)
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
