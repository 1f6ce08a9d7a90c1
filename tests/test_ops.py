"""Operations that every layer uses: 16 bits made wide, RMSNorm, partial RoPE, cross-entropy; by the paper's loops."""

import pytest
import torch
from small import EXACT, TINY, both_tables, normal, positions_of

import minidsv4 as v4
from minidsv4 import paper
from minidsv4.ops import NO_TARGET, rms_norm, upcast

ROUNDING = 1e-14  # a few operations in float64, values near 1
CSA = v4.LayerKind.CSA


def turns(n_tokens, first=0):
    """The turns [T, R/2] of CSA layers from a position on."""
    return positions_of(CSA, n_tokens, first).turns()


# ---- 16 bits ----


def test_upcast_widens_16_bits_only():
    wide = {dtype: upcast(torch.ones(3, dtype=dtype)).dtype for dtype in (torch.bfloat16, torch.float16)}
    assert set(wide.values()) == {torch.float32}
    assert upcast(torch.ones(3)).dtype == torch.float32 and upcast(normal(3)).dtype == torch.float64


# ---- RMSNorm ----


@both_tables
def test_norms_with_and_without_a_weight_agree_with_the_loops_of_the_paper(table):
    x_BTD, weight_D = normal(2, 5, 6), normal(6, seed=1)
    for b, t in [(0, 0), (1, 3)]:
        x_D = x_BTD[b, t].numpy()
        for weight in (weight_D, None):
            expected = paper.rms_norm(x_D, None if weight is None else weight.numpy(), 1e-3)
            ours = table.rms_norm(x_BTD, weight, 1e-3)[b, t]
            assert torch.allclose(ours, torch.from_numpy(expected), rtol=0, atol=ROUNDING)


def test_each_vector_is_normed_on_its_own_and_eps_keeps_a_zero_finite():
    x_BTD = normal(2, 5, 6)
    x_BTD[1, 4] = 0
    square_BT = rms_norm(x_BTD, None, 1e-12).square().mean(-1)
    assert square_BT[1, 4] == 0
    assert (square_BT.flatten()[:-1] - 1).abs().max() < 1e-10  # eps is 1e-12 of a mean square near 1, at least 0.01


def test_scaling_the_input_changes_nothing_but_the_share_of_eps():
    x_BTD = normal(2, 5, 6)
    scaled = rms_norm(1000 * x_BTD, None, 1e-12)
    assert (scaled - rms_norm(x_BTD, None, 1e-12)).abs().max() < 1e-9  # eps over mean squares >= 0.01


def test_the_gradient_of_the_norm_is_right():
    x_BTD, weight_D = normal(2, 3, 6).requires_grad_(), normal(6, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, weight: rms_norm(x, weight, 1e-3), (x_BTD, weight_D))
    assert torch.autograd.gradcheck(lambda x: rms_norm(x, None, 1e-3), (x_BTD,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight", [None, normal(6, seed=1).float()], ids=["no weight", "a weight"])
def test_16_bits_are_normed_in_float32_and_rounded_once(weight, dtype):
    x_BTD = normal(2, 5, 6).to(dtype)
    wide = rms_norm(x_BTD.float(), weight, 1e-3)
    assert wide.dtype == torch.float32
    assert torch.equal(rms_norm(x_BTD, weight, 1e-3), wide.to(dtype))
    if weight is not None:
        narrow = weight.to(dtype)  # a weight of 16 bits is widened, exactly
        assert torch.equal(rms_norm(x_BTD, narrow, 1e-3), rms_norm(x_BTD.float(), narrow.float(), 1e-3).to(dtype))


# ---- partial RoPE ----


@both_tables
def test_rotating_agrees_with_the_loops_for_every_head_and_back(table):
    x_BTHK = normal(2, 5, 3, TINY.head_dim)
    turn, speed = turns(5, first=9)[:, None], paper.layer_frequencies("CSA", TINY)
    for inverse, ours in ((False, table.rotate(x_BTHK, turn)), (True, table.rotate(x_BTHK, turn.conj()))):
        for b, t, h in [(0, 0, 0), (1, 2, 1), (1, 4, 2)]:
            expected = torch.from_numpy(paper.rotate(x_BTHK[b, t, h].numpy(), 9 + t, speed, inverse))
            assert torch.allclose(ours[b, t, h], expected, rtol=0, atol=ROUNDING)


@both_tables
def test_turning_and_turning_back_gives_the_vector_itself(table):
    x_BTK = normal(2, 7, TINY.head_dim)
    assert (table.rotate(table.rotate(x_BTK, turns(7)), turns(7).conj()) - x_BTK).abs().max() < ROUNDING


@both_tables
def test_only_the_last_channels_turn_and_they_keep_their_length(table):
    x_BTK = normal(2, 7, TINY.head_dim)
    turned, rest = table.rotate(x_BTK, turns(7, first=1)), TINY.head_dim - TINY.qk_rope_head_dim
    assert torch.equal(turned[..., :rest], x_BTK[..., :rest])
    assert (turned[..., rest:] != x_BTK[..., rest:]).all()
    assert (turned.norm(dim=-1) - x_BTK.norm(dim=-1)).abs().max() < ROUNDING


@both_tables
def test_a_vector_of_an_odd_number_of_channels_turns_like_the_end_of_one_channel_more(table):
    x_BTK = normal(2, 7, TINY.head_dim)
    turned = table.rotate(x_BTK, turns(7))
    assert torch.equal(table.rotate(x_BTK[..., 1:], turns(7)), turned[..., 1:])


@both_tables
def test_what_is_turned_is_left_as_it_was_and_hands_its_gradient_back_turned(table):
    x_BTK = normal(2, 7, TINY.head_dim).requires_grad_()
    before = x_BTK.detach().clone()
    pull_BTK = normal(2, 7, TINY.head_dim, seed=1)
    table.rotate(x_BTK, turns(7)).backward(pull_BTK)
    assert torch.equal(x_BTK.detach(), before)
    assert (x_BTK.grad - table.rotate(pull_BTK, turns(7).conj())).abs().max() < ROUNDING


@both_tables
def test_a_dot_product_of_turned_vectors_depends_only_on_the_distance(table):
    query_K, key_K = normal(2, TINY.head_dim)

    def dot(t, s):
        return table.rotate(query_K, turns(200)[t]) @ table.rotate(key_K, turns(200)[s])

    assert abs(dot(7, 2) - dot(190, 185)) < 1e-12  # angles near 190 radians carry 190 times the rounding of one
    assert abs(dot(7, 2) - dot(7, 3)) > 1e-3


@both_tables
def test_a_16_bit_vector_is_turned_in_float32_and_keeps_its_dtype(table):
    x_BTK = normal(2, 7, TINY.head_dim)
    turn_TR = turns(7, first=1000)
    turned = table.rotate(x_BTK.bfloat16(), turn_TR.to(torch.complex64))
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, table.rotate(x_BTK.bfloat16().float(), turn_TR.to(torch.complex64)).bfloat16())
    # bfloat16 keeps 8 bits: 2^-8 of each number going in and again coming out; values reach 4
    assert (turned.double() - table.rotate(x_BTK, turn_TR)).abs().max() < 4 * 2**-7


# ---- cross-entropy ----


def nats_by_hand(logits_TV, target_T):
    """Mean cross-entropy over the tokens with a target, by the loops of the paper."""
    found = [-paper.log_softmax(row)[t] for row, t in zip(logits_TV.numpy(), target_T.tolist()) if t != NO_TARGET]
    return sum(found) / len(found)


@both_tables
@pytest.mark.parametrize("n_tokens", [1, 10, 255, 256, 257, 600])
def test_cross_entropy_agrees_with_the_loops_of_the_paper(n_tokens, table):
    hidden_TD, head_VD = normal(n_tokens, 5), normal(7, 5, seed=1)
    target_T = torch.randint(7, (n_tokens,), generator=torch.Generator().manual_seed(0))
    target_T[3:9:2] = NO_TARGET
    expected = nats_by_hand(hidden_TD @ head_VD.T, target_T)
    assert abs(table.cross_entropy(hidden_TD, head_VD, target_T).item() - expected) < EXACT


@both_tables
def test_the_gradients_of_cross_entropy_are_right_and_scale_with_what_comes_from_above(table):
    hidden_TD, head_VD = normal(6, 5).requires_grad_(), normal(7, 5, seed=1).requires_grad_()
    target_T = torch.tensor([0, 6, NO_TARGET, 3, 3, NO_TARGET])
    assert torch.autograd.gradcheck(lambda h, w: 3 * table.cross_entropy(h, w, target_T), (hidden_TD, head_VD))


@both_tables
def test_without_any_target_the_loss_is_0_and_so_are_its_gradients(table):
    hidden_TD, head_VD = normal(6, 5).requires_grad_(), normal(7, 5, seed=1).requires_grad_()
    loss = table.cross_entropy(hidden_TD, head_VD, torch.full((6,), NO_TARGET))
    assert loss == 0
    for gradient in torch.autograd.grad(loss, (hidden_TD, head_VD)):
        assert (gradient == 0).all()


@both_tables
def test_a_16_bit_head_sums_in_float32_and_gets_gradients_of_its_own_dtype(table):
    """Kind: a sum of many parts, gradients too, that is kept in 16 bits and rounded at every part."""
    hidden_TD, head_VD = normal(600, 5).bfloat16(), normal(7, 5, seed=1).bfloat16()
    target_T = torch.randint(7, (600,), generator=torch.Generator().manual_seed(0))
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        given = [part.to(dtype).requires_grad_() for part in (hidden_TD, head_VD)]
        loss = table.cross_entropy(*given, target_T)
        assert loss.dtype == torch.float32
        gradients = torch.autograd.grad(loss, given)
        assert {gradient.dtype for gradient in gradients} == {dtype}
        found.append([loss, *gradients])
    for ours, wide in zip(*found):
        assert torch.equal(ours.float(), wide.to(ours.dtype).float())  # one rounding, at the end
