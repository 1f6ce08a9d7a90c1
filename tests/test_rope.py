"""Rotary positions: agreement with the loops, and what turning by a position means."""

import pytest
import torch
from small import CPU, TINY, normal

import minidsv4 as v4
from minidsv4 import paper
from minidsv4.model.rope import Angles, frequencies, rotate

WINDOW, CSA, HCA = v4.LayerKind.WINDOW, v4.LayerKind.CSA, v4.LayerKind.HCA
ROUNDING = 1e-14  # a few operations in float64, values near 1
CONFIGS = {
    "tiny": TINY,
    "flash": v4.Config.flash(),
    "without yarn": TINY.replace(rope_scaling=None),
    "a ramp of no width": TINY.replace(rope_scaling=TINY.rope_scaling | dict(beta_fast=2.0, beta_slow=1.9)),
}


def freqs(config, kind, dtype=torch.float64):
    return frequencies(config, kind, dtype, CPU)


def turns(n_tokens, first=0, kind=CSA):
    return Angles(freqs(TINY, kind), first, first + n_tokens).turn_TR


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
    assert (turns(300, kind=kind).abs() - 1).abs().max() < ROUNDING


def test_rotating_agrees_with_the_loops_for_every_head_and_back():
    x_BTHK = normal(2, 5, 3, TINY.head_dim)
    turn, freq = turns(5, first=9)[:, None], paper.layer_frequencies("CSA", TINY)
    for inverse, ours in ((False, rotate(x_BTHK, turn)), (True, rotate(x_BTHK, turn.conj()))):
        for b, t, h in [(0, 0, 0), (1, 2, 1), (1, 4, 2)]:
            expected = torch.from_numpy(paper.rotate(x_BTHK[b, t, h].numpy(), 9 + t, freq, inverse))
            assert torch.allclose(ours[b, t, h], expected, rtol=0, atol=ROUNDING)


def test_turning_and_turning_back_gives_the_vector_itself():
    x_BTK = normal(2, 7, TINY.head_dim)
    assert (rotate(rotate(x_BTK, turns(7)), turns(7).conj()) - x_BTK).abs().max() < ROUNDING


def test_only_the_last_channels_turn_and_they_keep_their_length():
    x_BTK = normal(2, 7, TINY.head_dim)
    turned, rest = rotate(x_BTK, turns(7, first=1)), TINY.head_dim - TINY.qk_rope_head_dim
    assert torch.equal(turned[..., :rest], x_BTK[..., :rest])
    assert (turned[..., rest:] != x_BTK[..., rest:]).all()
    assert (turned.norm(dim=-1) - x_BTK.norm(dim=-1)).abs().max() < ROUNDING


def test_a_vector_of_an_odd_number_of_channels_turns_like_the_end_of_one_channel_more():
    x_BTK = normal(2, 7, TINY.head_dim)
    turned = rotate(x_BTK, turns(7))
    assert torch.equal(rotate(x_BTK[..., 1:], turns(7)), turned[..., 1:])


def test_what_is_turned_is_left_as_it_was_and_hands_its_gradient_back_turned():
    x_BTK = normal(2, 7, TINY.head_dim).requires_grad_()
    before = x_BTK.detach().clone()
    pull_BTK = normal(2, 7, TINY.head_dim, seed=1)
    rotate(x_BTK, turns(7)).backward(pull_BTK)
    assert torch.equal(x_BTK.detach(), before)
    assert (x_BTK.grad - rotate(pull_BTK, turns(7).conj())).abs().max() < ROUNDING


def test_a_dot_product_of_turned_vectors_depends_only_on_the_distance():
    query_K, key_K = normal(2, TINY.head_dim)

    def dot(t, s):
        return rotate(query_K, turns(200)[t]) @ rotate(key_K, turns(200)[s])

    assert abs(dot(7, 2) - dot(190, 185)) < 1e-12  # angles near 190 radians carry 190 times the rounding of one
    assert abs(dot(7, 2) - dot(7, 3)) > 1e-3


def test_angles_of_a_stretch_are_those_of_the_whole():
    whole = Angles(freqs(TINY, CSA), 0, 60)
    part = Angles(freqs(TINY, CSA), 24, 60)
    assert torch.equal(part.at(30, 60), whole.turn_TR[30:60])
    assert torch.equal(part.at(24, 60, 12), whole.turn_TR[[24, 36, 48]])


def test_angles_of_a_16_bit_vector_are_float32_and_its_dtype_is_kept():
    x_BTK = normal(2, 7, TINY.head_dim)
    angles = Angles(freqs(TINY, CSA, torch.float32), 1000, 1007)
    turned = rotate(x_BTK.bfloat16(), angles.turn_TR)
    assert turned.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits: 2^-8 of each number going in and again coming out; values reach 4
    assert (turned.double() - rotate(x_BTK, turns(7, first=1000))).abs().max() < 4 * 2**-7
