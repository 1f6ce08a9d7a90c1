"""Compressors: agreement with the loops, what an entry depends on, and any cutting into chunks."""

import pytest
import torch
from small import EXACT, TINY, angles_of, disturb, memory_of, normal, numpy_of

import minidsv4 as v4
from minidsv4 import paper
from minidsv4.model.compressor import Compressor, OverlapCompressor, Pool, slot_shares

CSA, HCA = v4.LayerKind.CSA, v4.LayerKind.HCA
KINDS = {"CSA": (OverlapCompressor, CSA, 3), "HCA": (Compressor, HCA, 12)}
both = pytest.mark.parametrize("name", KINDS)


def build(name, seed=0):
    cls, _, ratio = KINDS[name]
    return disturb(cls(TINY.hidden_size, TINY.head_dim, ratio, TINY.rms_norm_eps).double(), seed)


def entries(layer, name, x_BTD, cuts=None, n_tokens=60):
    kind = KINDS[name][1]
    memory, angles = memory_of(kind, len(x_BTD)).main, angles_of(kind, n_tokens)
    for chunk in x_BTD.split(cuts or [x_BTD.shape[1]], dim=1):
        out = layer(chunk, memory, angles)
    return out


@both
@pytest.mark.parametrize("n_tokens", [1, 11, 12, 13, 38])
def test_entries_agree_with_the_loops_of_the_paper(name, n_tokens):
    layer, x_BTD = build(name), normal(2, n_tokens, TINY.hidden_size)
    freqs = paper.layer_frequencies(name, TINY)
    ours = entries(layer, name, x_BTD)
    assert ours.shape == (2, n_tokens // KINDS[name][2], TINY.head_dim)
    for b in range(2):
        expected = paper.compressed_entries(numpy_of(layer), x_BTD[b].numpy(), name == "CSA", freqs, TINY.rms_norm_eps)
        assert torch.allclose(ours[b], torch.from_numpy(expected), rtol=0, atol=EXACT)


@both
@pytest.mark.parametrize("cuts", [[1] * 38, [2, 1, 9, 12, 14], [37, 1], [5, 7, 24, 2], [3, 3, 32]])
def test_any_cutting_into_chunks_gives_the_same_entries(name, cuts):
    layer, x_BTD = build(name), normal(2, 38, TINY.hidden_size)
    assert (entries(layer, name, x_BTD, cuts) - entries(layer, name, x_BTD)).abs().max() < EXACT


@both
def test_an_entry_depends_on_its_own_window_and_in_csa_on_the_one_before(name):
    layer, x_BTD, ratio = build(name), normal(2, 38, TINY.hidden_size), KINDS[name][2]
    before = entries(layer, name, x_BTD)
    for token in (0, ratio - 1, ratio, 2 * ratio + 1, 37):
        changed = x_BTD.clone()
        changed[:, token] += 1
        moved = (entries(layer, name, changed) - before).abs().amax(dim=(0, 2)) > 0
        own = token // ratio
        expected = {own, own + 1} if name == "CSA" else {own}
        assert set(moved.nonzero().flatten().tolist()) == {i for i in expected if i < len(moved)}


@both
def test_a_constant_sequence_gives_the_same_entry_in_every_full_window_but_for_its_turn(name):
    layer = build(name)
    out = entries(layer, name, normal(1, 1, TINY.hidden_size).expand(2, 38, -1))
    still = TINY.head_dim - TINY.qk_rope_head_dim
    first = 1 if name == "CSA" else 0  # window 0 of CSA has no predecessor
    assert (out[:, first:, :still] - out[:, first : first + 1, :still]).abs().max() < EXACT
    assert (out[:, first + 1 :, still:] - out[:, first : first + 1, still:]).abs().max() > 1e-3


def test_without_gates_and_biases_an_entry_is_the_mean_of_two_windows_and_the_first_one_of_its_own():
    layer = build("CSA")
    layer.wgate.weight.data.zero_(), layer.ape.data.zero_()
    x_BTD, seen = normal(2, 12, TINY.hidden_size), []
    layer.pool.register_forward_hook(lambda module, inputs, output: seen.append(output))
    entries(layer, "CSA", x_BTD)
    previous, current = layer.wkv(x_BTD).unflatten(1, (4, 3)).chunk(2, dim=-1)  # the second half is the own window's
    assert torch.allclose(seen[0][:, 0], current[:, 0].mean(1), rtol=0, atol=EXACT)
    for i in range(1, 4):
        mean = torch.cat([previous[:, i - 1], current[:, i]], dim=1).mean(1)
        assert torch.allclose(seen[0][:, i], mean, rtol=0, atol=EXACT)


def test_window_0_gives_no_weight_to_the_window_that_is_not_there():
    layer, shares = build("CSA"), []
    layer.pool.register_forward_pre_hook(lambda module, args: shares.append(slot_shares(*args[1:])))
    entries(layer, "CSA", normal(2, 12, TINY.hidden_size))
    assert (shares[0][:, 0, :3] == 0).all() and (shares[0][:, 1:, :3] > 0).all()
    assert (shares[0].sum(2) - 1).abs().max() < EXACT


def test_shares_are_a_softmax_over_slots_for_each_channel_alone():
    gates, bias = normal(2, 4, 5, 6), normal(5, 6, seed=1)
    shares = slot_shares(gates, bias)
    expected = torch.from_numpy(paper.slot_softmax((gates[1, 2] + bias).numpy()))
    assert torch.allclose(shares[1, 2], expected, rtol=0, atol=1e-15)
    gates[..., 3] += normal(2, 4, 5)
    assert torch.equal(slot_shares(gates, bias)[..., [0, 1, 2, 4, 5]], shares[..., [0, 1, 2, 4, 5]])


def test_the_gradient_of_pooling_is_right():
    tensors = [t.requires_grad_() for t in (normal(1, 2, 3, 4), normal(1, 2, 3, 4, seed=1), normal(3, 4, seed=2))]
    assert torch.autograd.gradcheck(Pool(), tensors)


@both
def test_the_position_bias_counts_from_the_window_and_not_from_the_chunk(name):
    layer, x_BTD = build(name), normal(2, 38, TINY.hidden_size)
    whole = entries(layer, name, x_BTD)
    with torch.no_grad():
        layer.ape += normal(*layer.ape.shape, seed=5)
    other = entries(layer, name, x_BTD, [1, 37])
    assert (other - entries(layer, name, x_BTD)).abs().max() < EXACT < (other - whole).abs().max()
