"""MXFP4 bit for bit against ml_dtypes, its packing, the lossless way to FP8, and rounding to other widths."""

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import normal, small_model, token_ids

import minidsv4 as v4
from minidsv4.lowbit import fp8, mxfp4, rounding
from minidsv4.lowbit.formats import stored_as, to_stored

CODES = torch.arange(16, dtype=torch.uint8)


def through(weight):
    """A matrix to MXFP4 and back."""
    return mxfp4.dequantise(*mxfp4.quantise(weight))


# --- codes ---


def test_the_16_codes_mean_what_ml_dtypes_says():
    wanted = CODES.numpy().view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert np.array_equal(mxfp4.decode(CODES).numpy(), wanted)
    assert mxfp4.decode(CODES)[:8].tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def test_rounding_at_and_beside_every_tie_is_that_of_ml_dtypes():
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    infinity = torch.tensor(torch.inf)
    near = [torch.nextafter(ties, infinity), torch.nextafter(ties, -infinity)]
    x = torch.cat([ties, *near, mxfp4.decode(CODES[:8]), torch.tensor([6.5, 100.0]), normal(400).float() * 3])
    x = torch.cat([x, -x])
    wanted = x.numpy().astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    assert np.array_equal(mxfp4.encode(x).numpy(), wanted)
    assert not (mxfp4.encode(ties) % 2).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_number_of_16_bits_is_rounded_as_by_ml_dtypes_infinities_too(dtype):
    x = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype).float()
    x = x[~x.isnan()]  # which has no code: its group's scale says it
    wanted = x.numpy().astype(ml_dtypes.float4_e2m1fn)
    assert np.array_equal(mxfp4.encode(x).numpy(), wanted.view(np.uint8))
    assert np.array_equal(mxfp4.nearest(x).numpy(), wanted.astype(np.float32))


def test_the_even_index_lies_in_the_low_half_of_a_byte():
    packed = mxfp4.pack(torch.tensor([[1, 7, 10, 15]], dtype=torch.uint8))
    assert packed.dtype == torch.int8 and packed.view(torch.uint8).tolist() == [[0x71, 0xFA]]
    assert mxfp4.decode(mxfp4.unpack(packed)).tolist() == [[0.5, 6.0, -1.0, -6.0]]


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 5), pairs=st.integers(1, 40), seed=st.integers(0, 99))
def test_unpacking_undoes_packing(rows, pairs, seed):
    code = torch.randint(16, (rows, 2 * pairs), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    assert torch.equal(mxfp4.unpack(mxfp4.pack(code)), code)


# --- groups ---


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_quantising_is_a_division_by_each_groups_scale_and_the_cast_of_ml_dtypes(dtype):
    weight = (normal(5, 96) * 2.0 ** normal(5, 96, seed=1)).to(dtype)
    packed, scale = mxfp4.quantise(weight)
    assert packed.shape == (5, 48) and scale.shape == (5, 3) and scale.dtype == torch.float8_e8m0fnu
    groups = weight.float().numpy().reshape(5, 3, 32)
    shared = np.float32(2) ** np.ceil(np.log2(np.abs(groups).max(-1) / 6))
    assert np.array_equal(scale.float().numpy(), shared)
    wanted = (groups / shared[..., None]).astype(ml_dtypes.float4_e2m1fn).astype(np.float32) * shared[..., None]
    assert np.array_equal(mxfp4.dequantise(packed, scale).numpy(), wanted.reshape(5, 96))


def test_a_scale_belongs_to_32_neighbours_of_a_row_and_to_no_others():
    weight = torch.ones(2, 64)
    weight[0, 32:], weight[1, :32], weight[1, 32:] = 100.0, 1e-3, 6.0
    assert fp8.exponents(mxfp4.quantise(weight)[1]).tolist() == [[-2, 5], [-12, 0]]


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 9), groups=st.integers(1, 4), seed=st.integers(0, 99), power=st.integers(-60, 60))
def test_no_number_is_off_by_more_than_its_scale_and_twice_is_once(rows, groups, seed, power):
    weight = normal(rows, 32 * groups, seed=seed).float() * 2.0**power
    packed, scale = mxfp4.quantise(weight)
    once = mxfp4.dequantise(packed, scale)
    assert ((once - weight).abs() <= scale.float().repeat_interleave(32, 1)).all()
    assert torch.equal(through(once), once)


def test_numbers_of_any_shape_are_rounded_along_their_last_axis_and_nan_stays_in_its_group():
    x = normal(2, 3, 80, dtype=torch.float32)
    wide = torch.nn.functional.pad(x, (0, 16))  # the last group of 80 holds 16, and zeros do not change its scale
    assert torch.equal(mxfp4.rounded(x), through(wide.view(6, 96)).view(2, 3, 96)[..., :80])
    x[1, 2, 40] = torch.nan
    wrong = torch.zeros(2, 3, 80, dtype=torch.bool)
    wrong[1, 2, 32:64] = True
    assert torch.equal(mxfp4.rounded(x).isnan(), wrong)
    assert mxfp4.rounded(x.bfloat16()).dtype == torch.bfloat16 and mxfp4.rounded(x[:0]).shape == (0, 3, 80)


def test_a_group_of_zeros_stays_zero():
    assert through(torch.zeros(2, 64)).abs().max() == 0


def test_columns_that_fill_no_groups_and_scales_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="48 columns do not fill groups of 32"):
        mxfp4.quantise(torch.ones(3, 48))
    packed, scale = mxfp4.quantise(torch.ones(3, 64))
    with pytest.raises(ValueError, match=r"scale has shape \(3, 1\); .* need \(3, 2\)"):
        mxfp4.dequantise(packed, scale[:, :1])
    with pytest.raises(ValueError, match="NaN or infinities"):
        mxfp4.quantise(torch.full((1, 32), torch.nan))


# --- to FP8 without loss ---


def with_scales_apart(power):
    """A block of all FP4 numbers in which one group has a scale of 2^power and the others 1."""
    code = CODES.repeat(130, 12)  # two blocks of rows, one and a half of columns
    exponent = torch.zeros(130, 6, dtype=torch.int32)
    exponent[17, 2] = power
    return mxfp4.pack(code), fp8.e8m0(exponent)


@pytest.mark.parametrize("power", [-14, -9, 0, 3, 14])
def test_up_to_2_to_the_14_between_scales_fp8_holds_the_same_numbers(power):
    packed, scale = with_scales_apart(power)
    weight, shared = mxfp4.to_fp8(packed, scale)
    assert torch.equal(fp8.dequantise(weight, shared), mxfp4.dequantise(packed, scale))
    assert shared.shape == (2, 2) and weight.float().abs().max() == 384  # 6 * 2^6; twice that is beyond 448
    assert fp8.exponents(shared)[0, 0] == max(power, 0) - 6


@pytest.mark.parametrize("power", [-15, 15])
def test_at_2_to_the_15_between_scales_the_smallest_numbers_would_be_lost(power):
    with pytest.raises(ValueError, match=r"differ by more than 2\^14"):
        mxfp4.to_fp8(*with_scales_apart(power))


def test_scales_far_apart_in_different_blocks_do_no_harm():
    packed, scale = mxfp4.pack(CODES.repeat(1, 16)), fp8.e8m0(torch.tensor([[0, 0, 0, 0, 30, 30, 30, 30]]))
    assert torch.equal(fp8.dequantise(*mxfp4.to_fp8(packed, scale)), mxfp4.dequantise(packed, scale))


def test_weights_that_were_trained_for_fp4_pass_through_fp8_unchanged():
    packed, scale = mxfp4.quantise(0.02 * normal(96, 192))
    assert torch.equal(fp8.dequantise(*mxfp4.to_fp8(packed, scale)), mxfp4.dequantise(packed, scale))


def test_groups_of_zeros_do_not_stop_the_way_to_fp8():
    weight = normal(3, 64, dtype=torch.float32)
    weight[1] = 0
    packed, scale = mxfp4.quantise(weight)
    assert torch.equal(fp8.dequantise(*mxfp4.to_fp8(packed, scale)), mxfp4.dequantise(packed, scale))


# --- any number of bits ---

WIDE = v4.Config.tiny().replace(  # every matrix has columns that 32 divides
    **dict(hidden_size=64, moe_intermediate_size=32, q_lora_rank=32, num_attention_heads=4, o_groups=2),
    **dict(head_dim=16, o_lora_rank=16, vocab_size=40),
)


@pytest.fixture(scope="module")
def model():
    return small_model(WIDE)


@pytest.mark.parametrize("bits", [16, 8, 4.25, 3, 2.5])
def test_a_format_takes_exactly_the_bits_it_is_named_after(bits):
    one = rounding.FORMATS[bits]
    assert one.bits == bits
    x = one.round(normal(64, 64))
    if isinstance(one, rounding.Even):
        groups = x.unflatten(1, (-1, one.group))
        scale = groups.abs().amax(-1, keepdim=True) / (2 ** (one.n_bits - 1) - 0.5)
        assert torch.equal(scale.bfloat16().double(), scale)  # 16 bits for the scale
        codes = groups / scale - 0.5
        assert torch.allclose(codes, codes.round(), atol=1e-9)  # division of float64
        assert codes.round().unique().numel() == 2**one.n_bits  # n bits for a number, all of them used
        assert one.n_bits + 16 / one.group == bits
    elif bits == 16:
        assert torch.equal(x.bfloat16().double(), x)
    else:
        packed, scale = mxfp4.quantise(x)
        assert 8 * (packed.nbytes + scale.nbytes) / x.numel() == bits


@pytest.mark.parametrize("bits", [8, 3, 2.5])
def test_even_numbers_are_the_nearest_and_a_group_of_zeros_stays_zero(bits):
    one, weight = rounding.FORMATS[bits], normal(6, 64)
    weight[2] = 0
    x, half = one.round(weight), 2 ** (one.n_bits - 1)
    assert torch.equal(x[2], weight[2])
    groups = weight.unflatten(1, (-1, one.group))
    scale = (groups.abs().amax(-1, keepdim=True) / (half - 0.5)).bfloat16().double()
    levels = scale[..., None] * (torch.arange(-half, half) + 0.5)
    nearest = (groups[..., None] - levels).abs().amin(-1).flatten(1)
    assert torch.allclose((x - weight).abs(), nearest, atol=1e-12)  # float64 sums of numbers of size 1


def test_fewer_bits_are_further_from_the_weights():
    weight = normal(64, 64)
    off = [(one.round(weight) - weight).square().mean().item() for one in rounding.FORMATS.values()]
    assert list(rounding.FORMATS) == [16, 8, 4.25, 3, 2.5] and off == sorted(off) and off[0] < 1e-5 < off[-1]


@pytest.mark.parametrize("bits", [16, 8, 4.25, 3, 2.5])
def test_a_rounded_model_differs_where_it_should_and_the_original_stays(model, bits):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after = rounding.rounded(model, bits).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
        kind = stored_as(name) if tensor.is_floating_point() else "fp32"
        if kind == "fp32":
            assert torch.equal(after[name], tensor), name
        elif kind == "bf16" or bits == 16:
            assert torch.equal(after[name], tensor.bfloat16().double()), name
        else:
            assert torch.equal(after[name], rounding.FORMATS[bits].round(tensor)), name
    assert math.isfinite(rounding.rounded(model, bits).loss(token_ids(2, 14, config=WIDE)).total.item())


def test_experts_are_rounded_along_their_rows_each_for_itself(model):
    w13 = model.layers[1].ffn.experts.w13.detach()
    found = rounding.rounded(model, 4.25).layers[1].ffn.experts.w13
    assert torch.equal(found[4, :, 32:], mxfp4.dequantise(*mxfp4.quantise(w13[4, :, 32:]), torch.float64))


def test_the_narrow_share_counts_what_is_released_in_8_bits_or_less(model):
    wide = sum(p.numel() for name, p in model.named_parameters() if stored_as(name) != "fp8")
    whole = sum(p.numel() for p in model.parameters())
    assert rounding.narrow_share(model) == 1 - wide / whole and 0.5 < rounding.narrow_share(model) < 1


def test_other_bits_are_refused(model):
    with pytest.raises(ValueError, match=r"bits = 5 is no format here; it is one of 16, 8, 4\.25, 3, 2\.5"):
        rounding.rounded(model, 5)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: mxfp4.rounded(torch.tensor(3.0)), r"mxfp4: tensor\(3.\) has no rows; give a tensor"),
        (lambda: mxfp4.quantise([[1.0]]), "quantise: list is no matrix of numbers; give a tensor"),
        (lambda: stored_as("head.weight", "int4"), "experts = 'int4' is not known; it is one of fp8, fp4"),
        (lambda: to_stored({"head.weight": normal(2, 2)}, "fp6"), "experts = 'fp6' is not known"),
    ],
)
def test_what_cannot_be_rounded_is_refused_with_a_sentence(call, says):
    with pytest.raises(ValueError, match=says):
        call()
