"""RMSNorm: agreement with the loops, and float32 inside for 16-bit models."""

import pytest
import torch
from small import normal

from minidsv4 import paper
from minidsv4.model.norm import RMSNorm, precise, unit_rms

ROUNDING = 1e-14  # a few operations in float64, values near 1


def weighted(width=6, eps=1e-3):
    norm = RMSNorm(width, eps).double()
    norm.weight.data = normal(width, seed=1)
    return norm


def test_both_norms_agree_with_the_loops_of_the_paper():
    x_BTD, norm = normal(2, 5, 6), weighted()
    for b, t in [(0, 0), (1, 3)]:
        x_D = x_BTD[b, t].numpy()
        with_weight = torch.from_numpy(paper.rms_norm(x_D, norm.weight.detach().numpy(), 1e-3))
        assert torch.allclose(norm(x_BTD)[b, t], with_weight, rtol=0, atol=ROUNDING)
        assert torch.allclose(
            unit_rms(x_BTD, 1e-3)[b, t], torch.from_numpy(paper.rms_norm(x_D, eps=1e-3)), atol=ROUNDING
        )


def test_each_vector_is_normed_on_its_own_and_eps_keeps_a_zero_finite():
    x_BTD = normal(2, 5, 6)
    x_BTD[1, 4] = 0
    square_BT = unit_rms(x_BTD, 1e-12).square().mean(-1)
    assert square_BT[1, 4] == 0
    assert (square_BT.flatten()[:-1] - 1).abs().max() < 1e-10  # eps is 1e-12 of a mean square near 1, at least 0.01


def test_scaling_the_input_changes_nothing_but_the_share_of_eps():
    x_BTD = normal(2, 5, 6)
    assert (unit_rms(1000 * x_BTD, 1e-12) - unit_rms(x_BTD, 1e-12)).abs().max() < 1e-9  # eps over mean squares >= 0.01


def test_the_gradient_is_right():
    assert torch.autograd.gradcheck(weighted(), (normal(2, 3, 6).requires_grad_(),))
    assert torch.autograd.gradcheck(lambda x: unit_rms(x, 1e-3), (normal(2, 3, 6).requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_normed_in_float32_and_rounded_once(dtype):
    x_BTD, norm = normal(2, 5, 6).to(dtype), weighted().to(dtype)
    in_float32 = RMSNorm(6, 1e-3)
    in_float32.weight.data = norm.weight.float()
    assert torch.equal(norm(x_BTD), in_float32(x_BTD.float()).to(dtype))
    assert torch.equal(unit_rms(x_BTD, 1e-3), unit_rms(x_BTD.float(), 1e-3).to(dtype))


def test_precise_widens_16_bits_only():
    wide = {dtype: precise(torch.ones(3, dtype=dtype)).dtype for dtype in (torch.bfloat16, torch.float16)}
    assert set(wide.values()) == {torch.float32}
    assert precise(torch.ones(3)).dtype == torch.float32 and precise(normal(3)).dtype == torch.float64
