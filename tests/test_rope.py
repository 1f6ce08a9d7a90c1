"""Rotary positions: frequencies as in the loops, and the turns of the tokens and entries of one call."""

import pytest
import torch
from small import CPU, TINY

import minidsv4 as v4
from minidsv4 import paper
from minidsv4.model.rope import Positions, frequencies

WINDOW, CSA, HCA = v4.LayerKind.WINDOW, v4.LayerKind.CSA, v4.LayerKind.HCA
ROUNDING = 1e-14  # a few operations in float64, values near 1
CONFIGS = {
    "tiny": TINY,
    "flash": v4.Config.flash(),
    "without yarn": TINY.replace(rope_scaling=None),
    "a ramp of no width": TINY.replace(rope_scaling=TINY.rope_scaling._replace(beta_fast=2.0, beta_slow=1.9)),
}


def freqs(config, kind, dtype=torch.float64):
    return frequencies(config, kind, dtype, CPU)


@pytest.mark.parametrize("kind", [WINDOW, CSA, HCA])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_frequencies_agree_with_the_loops_of_the_paper(config, kind):
    expected = torch.from_numpy(paper.layer_frequencies(kind.name, config))
    assert torch.allclose(freqs(config, kind), expected, rtol=ROUNDING, atol=0)


def test_window_layers_keep_base_10000_and_compressed_ones_fade_to_a_sixteenth_of_base_160000():
    pair = torch.arange(32, dtype=torch.float64)
    assert torch.allclose(freqs(CONFIGS["flash"], WINDOW), 10000 ** (-pair / 32), rtol=ROUNDING)
    ratio = freqs(CONFIGS["flash"], CSA) / 160000 ** (-pair / 32)
    assert torch.allclose(ratio[:16], torch.ones(16, dtype=torch.float64), rtol=ROUNDING)  # the ramp begins after 15
    assert torch.allclose(ratio[25:], torch.full((7,), 1 / 16, dtype=torch.float64), rtol=ROUNDING)  # and ends at 25
    assert (ratio[15:26].diff() < 0).all()


@pytest.mark.parametrize("kind", [WINDOW, CSA])
def test_a_turn_has_length_one_so_there_is_no_yarn_amplitude(kind):
    turn_TR = Positions(freqs(TINY, kind), 0, 300).turns()
    assert turn_TR.shape == (300, TINY.qk_rope_head_dim // 2)
    assert (turn_TR.abs() - 1).abs().max() < ROUNDING


def test_a_turn_is_the_position_times_the_frequency():
    turn_TR = Positions(freqs(TINY, CSA), 1_000_000, 3).turns()
    angle = torch.outer(torch.arange(1_000_000, 1_000_003).double(), freqs(TINY, CSA))
    assert (turn_TR - torch.polar(torch.ones_like(angle), angle)).abs().max() < ROUNDING


def test_turns_of_a_stretch_are_those_of_the_whole():
    whole = Positions(freqs(TINY, CSA), 0, 60).turns()
    part = Positions(freqs(TINY, CSA), 30, 30, oldest=24)
    assert torch.equal(part.turns(), whole[30:60])
    assert torch.equal(part.entry_turns(first=2, n_entries=3, ratio=12), whole[[24, 36, 48]])
    assert torch.equal(part.entry_turns(first=9, n_entries=11, ratio=3), whole[27:60:3])


def test_an_entry_stands_where_its_window_begins():
    positions = Positions(freqs(TINY, CSA), 0, 38)
    assert torch.equal(positions.entry_turns(0, 12, 3), positions.turns()[:36:3])
    assert positions.entry_turns(12, 0, 3).shape == (0, TINY.qk_rope_head_dim // 2)


@pytest.mark.parametrize(("dtype", "wide"), [(torch.float32, torch.complex64), (torch.float64, torch.complex128)])
def test_turns_carry_the_precision_of_the_frequencies(dtype, wide):
    assert Positions(freqs(TINY, CSA, dtype), 5, 4).turns().dtype == wide


def test_a_16_bit_model_turns_in_float32():
    positions = v4.Model(TINY).bfloat16().positions(5, 4)
    assert {part.turns().dtype for part in positions.values()} == {torch.complex64}


@pytest.mark.parametrize("start", [0, 11, 12, 35])
def test_a_models_positions_reach_back_to_the_oldest_window_that_is_still_open(start):
    for kind, positions in v4.Model(TINY).positions(start, 4).items():
        assert (positions.start, positions.n_tokens, positions.oldest) == (start, 4, start // 12 * 12)
        assert torch.equal(positions.frequencies_R, freqs(TINY, kind, torch.float32))
