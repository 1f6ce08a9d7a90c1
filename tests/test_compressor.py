"""Compressors: agreement with the loops, what an entry depends on, and any cutting into chunks."""

import pytest
import torch
from small import CPU, EXACT, TINY, both_tables, disturb, memory_of, normal, numpy_of, positions_of, with_ops

import minidsv4 as v4
from minidsv4 import paper
from minidsv4.model.cache import new_layer_memory
from minidsv4.model.compressor import Compressor, OverlapCompressor
from minidsv4.model.layer import watch
from minidsv4.ops import slot_weights

CSA, HCA = v4.LayerKind.CSA, v4.LayerKind.HCA
KINDS = {"CSA": (OverlapCompressor, CSA, 3), "HCA": (Compressor, HCA, 12)}
both = pytest.mark.parametrize("name", KINDS)


def build(name, seed=0):
    cls, _, ratio = KINDS[name]
    return disturb(cls(TINY.hidden_size, TINY.head_dim, ratio, TINY.rms_norm_eps).double(), seed)


def entries(layer, name, x_BTD, cuts=None, document_BT=None):
    kind, start = KINDS[name][1], 0
    memory = memory_of(kind, len(x_BTD)).main
    for chunk in x_BTD.split(cuts or [x_BTD.shape[1]], dim=1):
        stop = start + chunk.shape[1]
        documents = None if document_BT is None else document_BT[:, start:stop]
        out = layer(chunk, positions_of(kind, chunk.shape[1], start, document_BT=documents), memory)
        start = stop
    return out


def pooled(layer, x_BTD):
    """Inputs and output of the one call of `ops.pool`."""
    with watch(layer, "pool") as calls:
        entries(layer, "CSA", x_BTD)
    ((_, inputs, output),) = calls
    return inputs, output


@both_tables
@both
@pytest.mark.parametrize("n_tokens", [1, 11, 12, 13, 38])
def test_entries_agree_with_the_loops_of_the_paper(name, n_tokens, table):
    layer, x_BTD = with_ops(build(name), table), normal(2, n_tokens, TINY.hidden_size)
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
    x_BTD = normal(2, 12, TINY.hidden_size)
    _, pooled_BCK = pooled(layer, x_BTD)
    previous, current = layer.wkv(x_BTD).unflatten(1, (4, 3)).chunk(2, dim=-1)  # the second half is the own window's
    assert torch.allclose(pooled_BCK[:, 0], current[:, 0].mean(1), rtol=0, atol=EXACT)
    for i in range(1, 4):
        mean = torch.cat([previous[:, i - 1], current[:, i]], dim=1).mean(1)
        assert torch.allclose(pooled_BCK[:, i], mean, rtol=0, atol=EXACT)


def test_window_0_gives_no_weight_to_the_window_that_is_not_there():
    (_, gates_BCSK, bias_SK), _ = pooled(build("CSA"), normal(2, 12, TINY.hidden_size))
    weights = slot_weights(gates_BCSK, bias_SK)
    assert (weights[:, 0, :3] == 0).all() and (weights[:, 1:, :3] > 0).all()
    assert (weights.sum(2) - 1).abs().max() < EXACT


@pytest.mark.parametrize("cuts", [None, [1] * 38, [2, 1, 9, 12, 14]], ids=str)
def test_the_first_entry_of_a_document_finds_nothing_before_it(cuts):
    layer, x_BTD = build("CSA"), normal(2, 38, TINY.hidden_size)
    document_BT = torch.tensor([[0] * 12 + [12] * 26, [0] * 24 + [24] * 14])  # each row its own
    whole = entries(layer, "CSA", x_BTD, cuts, document_BT)
    for b, start in enumerate((12, 24)):
        for part in (slice(0, start), slice(start, 38)):
            alone = entries(layer, "CSA", x_BTD[b : b + 1, part])
            ours = whole[b : b + 1, part.start // 3 : part.start // 3 + alone.shape[1]]
            still = TINY.head_dim - TINY.qk_rope_head_dim  # the rest is turned by another position
            assert (ours[..., :still] - alone[..., :still]).abs().max() < EXACT


@both
def test_in_a_16_bit_model_values_gates_and_pooling_are_float32(name):
    layer, x_BTD = build(name).bfloat16(), normal(2, 38, TINY.hidden_size).bfloat16()
    assert (layer.ape.dtype, layer.wkv.weight.dtype) == (torch.float32, torch.bfloat16)
    with watch(layer, "pool") as calls:
        memory = new_layer_memory(TINY, KINDS[name][1], 2, torch.bfloat16, CPU).main
        out = layer(x_BTD, positions_of(KINDS[name][1], 38), memory)
    assert {part.dtype for part in (*calls[0][1], calls[0][2], memory.open.contents())} == {torch.float32}
    assert out.dtype == torch.bfloat16


@both
def test_the_position_bias_counts_from_the_window_and_not_from_the_chunk(name):
    layer, x_BTD = build(name), normal(2, 38, TINY.hidden_size)
    whole = entries(layer, name, x_BTD)
    with torch.no_grad():
        layer.ape += normal(*layer.ape.shape, seed=5)
    other = entries(layer, name, x_BTD, [1, 37])
    assert (other - entries(layer, name, x_BTD)).abs().max() < EXACT < (other - whole).abs().max()
