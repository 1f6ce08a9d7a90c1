"""Attention layers: the three kinds against the loops, any cutting, grouped output, and positions that are relative."""

import pytest
import torch
from small import EXACT, TINY, both_tables, disturb, memory_of, normal, numpy_of, positions_of, with_ops

import minidsv4 as v4
from minidsv4 import paper
from minidsv4.model.attention import ATTENTION
from minidsv4.visibility import finished

KINDS = list(v4.LayerKind)
WINDOW, CSA, HCA = KINDS
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def build(kind, config=TINY, seed=0):
    return disturb(ATTENTION[kind](config).double(), seed)


def run(layer, x_BTD, cuts=None, config=TINY, shift=0):
    memory, out, start = memory_of(layer.kind, len(x_BTD), config), [], 0
    for x in x_BTD.split(cuts or [x_BTD.shape[1]], dim=1):
        out.append(layer(x, positions_of(layer.kind, x.shape[1], start, config, shift), memory))
        start += x.shape[1]
    return torch.cat(out, dim=1)


@both_tables
@every_kind
@pytest.mark.parametrize("n_tokens", [1, 11, 12, 13, 38])
def test_a_layer_agrees_with_the_loops_of_the_paper(kind, n_tokens, table):
    layer, x_BTD = with_ops(build(kind), table), normal(2, n_tokens, TINY.hidden_size)
    ours = run(layer, x_BTD)
    for b in range(2):
        expected = torch.from_numpy(paper.attention_layer(numpy_of(layer), x_BTD[b].numpy(), kind.name, TINY))
        assert (ours[b] - expected).abs().max() < EXACT


@both_tables
@every_kind
@pytest.mark.parametrize("cuts", [[1] * 38, [2, 1, 9, 12, 14], [7, 7, 7, 17], [37, 1]], ids=str)
@torch.no_grad()
def test_any_cutting_into_chunks_gives_the_same_output(kind, cuts, table):
    layer, x_BTD = with_ops(build(kind), table), normal(2, 38, TINY.hidden_size)
    assert (run(layer, x_BTD, cuts) - run(layer, x_BTD)).abs().max() < EXACT


@every_kind
@pytest.mark.parametrize("shift", [1, 12, 1200])
def test_moving_all_positions_changes_nothing(kind, shift):
    layer, x_BTD = build(kind), normal(2, 38, TINY.hidden_size)
    # Values carry the turn of their position and the output is turned back, so only distances are left.
    assert (run(layer, x_BTD, shift=shift) - run(layer, x_BTD)).abs().max() < EXACT


def test_text_behind_other_text_gives_the_same_output_once_that_has_left_the_window():
    layer, x_BTD, before = build(WINDOW), normal(2, 19, TINY.hidden_size), normal(2, 12, TINY.hidden_size, seed=1)
    alone, behind = run(layer, x_BTD), run(layer, torch.cat([before, x_BTD], dim=1))[:, 12:]
    full = TINY.sliding_window - 1
    assert (behind[:, full:] - alone[:, full:]).abs().max() < EXACT
    assert (behind[:, :full] - alone[:, :full]).abs().amin(dim=(0, 2)).min() > 0


@every_kind
def test_a_changed_token_moves_only_what_can_see_it(kind):
    layer, x_BTD, token = build(kind), normal(2, 38, TINY.hidden_size), 16
    changed = x_BTD.clone()
    changed[:, token] += 1
    moved = (run(layer, changed) - run(layer, x_BTD)).abs().amax(dim=(0, 2))
    assert (moved[:token] == 0).all() and moved[token] > 1e-3
    reach = token + TINY.sliding_window
    if kind is WINDOW:
        assert (moved[reach:] == 0).all()
    if kind is HCA:  # windows of 12: token 16 is in the second, which is complete at 23
        assert (moved[23:] > 0).all()


def test_heads_of_a_group_go_through_their_own_block_to_the_width_of_the_model():
    layer, out_BTHK = build(WINDOW), normal(2, 7, 10, TINY.head_dim)
    ours = layer.project(out_BTHK)
    for b, t in [(0, 0), (1, 5)]:
        matrices = layer.wo_a.weight.detach().numpy(), layer.wo_b.weight.detach().numpy()
        expected = paper.grouped_output(out_BTHK[b, t].numpy(), *matrices, TINY.o_groups)
        assert (ours[b, t] - torch.from_numpy(expected)).abs().max() < EXACT


def test_moving_whole_groups_with_their_matrices_changes_nothing():
    layer, out_BTHK, groups = build(WINDOW), normal(2, 7, 10, TINY.head_dim), torch.tensor([3, 0, 4, 1, 2])
    ours = layer.project(out_BTHK)
    layer.wo_a.weight.data = layer.wo_a.weight.data.unflatten(0, (5, 13))[groups].flatten(0, 1)
    layer.wo_b.weight.data = layer.wo_b.weight.data.unflatten(1, (5, 13))[:, groups].flatten(1)
    moved = out_BTHK.unflatten(2, (5, 2))[:, :, groups].flatten(2, 3)
    assert (layer.project(moved) - ours).abs().max() < EXACT


def test_enough_picks_make_csa_dense():
    outputs = []
    for n_picked in (6, 12, 13, 40):
        config = TINY.replace(index_topk=n_picked)
        outputs.append(run(build(CSA, config), normal(2, 36, TINY.hidden_size), config=config))
    assert (outputs[1] - outputs[2]).abs().max() < EXACT and (outputs[1] - outputs[3]).abs().max() < EXACT
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


def test_a_window_that_ends_at_a_token_is_visible_to_it():
    assert finished(torch.arange(7), 3).tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert finished(torch.arange(10, 17), 3).tolist() == [3, 4, 4, 4, 5, 5, 5]


@every_kind
def test_every_parameter_but_the_indexers_has_a_gradient(kind):
    layer = build(kind)
    run(layer, normal(2, 38, TINY.hidden_size)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        if name.startswith("indexer."):  # a choice has no gradient; its loss is a thing of its own
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
