"""FP8 in blocks of 128 x 128: every cast bit for bit against ml_dtypes, the scale's choice, the error it states."""

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import normal

from minidsv4.lowbit import fp8

SHAPES = [(1, 1), (3, 130), (128, 128), (129, 257), (96, 192)]
ALL_BYTES = torch.arange(256, dtype=torch.uint8)
ALL_PATTERNS = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)  # of 16 bits: every bfloat16, every float16


def spread_out(rows, columns, seed=0, dtype=torch.float32):
    """Normal numbers over twelve powers of two, so that every block holds large, small and subnormal ones."""
    power = torch.randint(-12, 1, (rows, columns), generator=torch.Generator().manual_seed(seed))
    return (normal(rows, columns, seed=seed) * 2.0**power).to(dtype)


def through(weight, **options):
    """A matrix to FP8 and back, in float32."""
    return fp8.dequantise(*fp8.quantise(weight, **options), **options)


def same_bits(ours, numpy_array):
    return np.array_equal(ours.view(torch.uint8).numpy(), np.asarray(numpy_array).view(np.uint8))


# --- the two casts ---


def test_all_256_bytes_of_both_formats_mean_what_ml_dtypes_says():
    for ours, theirs in (("float8_e4m3fn", ml_dtypes.float8_e4m3fn), ("float8_e8m0fnu", ml_dtypes.float8_e8m0fnu)):
        wanted = ALL_BYTES.numpy().view(theirs).astype(np.float32)
        assert np.array_equal(ALL_BYTES.view(getattr(torch, ours)).float().numpy(), wanted, equal_nan=True)


def test_rounding_at_and_beside_every_tie_is_that_of_ml_dtypes():
    numbers = ALL_BYTES[:127].view(torch.float8_e4m3fn).float()  # 0 to 448
    ties = (numbers[1:] + numbers[:-1]) / 2
    infinity = torch.tensor(torch.inf)
    x = torch.cat([numbers, ties, torch.nextafter(ties, infinity), torch.nextafter(ties, -infinity)])
    x = torch.cat([x, -x])
    assert same_bits(fp8.to_e4m3(x), x.numpy().astype(ml_dtypes.float8_e4m3fn))
    assert not (fp8.to_e4m3(ties).view(torch.uint8) & 1).any()  # a tie goes to the even one


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_number_of_16_bits_is_rounded_as_by_ml_dtypes_and_what_has_no_place_saturates(dtype):
    x = ALL_PATTERNS.view(dtype).float()
    with np.errstate(invalid="ignore"):  # NumPy's word for NaN and infinities
        wanted = x.numpy().astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    beyond = torch.from_numpy(wanted).isnan() & ~x.isnan()  # ml_dtypes has NaN there, a product had better have 448
    assert x[beyond].abs().min() == {torch.float16: 464.25, torch.bfloat16: 466}[dtype]  # the next one after the tie
    found = fp8.to_e4m3(x).float()
    assert torch.equal(found[beyond], x[beyond].sign() * 448)
    assert np.array_equal(found[~beyond].numpy(), wanted[~beyond.numpy()], equal_nan=True)
    assert found.isnan().sum() == x.isnan().sum() > 200


def test_numbers_beyond_448_become_448_and_never_nan():
    x = torch.tensor([448.0, 463.9, 465.0, 500.0, 1e30, torch.inf])
    assert fp8.to_e4m3(x).float().tolist() == [448.0] * 6 and fp8.to_e4m3(-x).float().tolist() == [-448.0] * 6


def test_powers_of_two_are_the_bytes_of_ml_dtypes():
    powers = torch.arange(-127, 128)
    scale = fp8.e8m0(powers)
    assert same_bits(scale, (2.0 ** powers.double().numpy()).astype(np.float32).astype(ml_dtypes.float8_e8m0fnu))
    assert torch.equal(fp8.exponents(scale), powers.int())


def test_a_scale_is_the_power_of_two_at_or_above_for_every_bfloat16_and_nan_where_there_is_none():
    x = ALL_PATTERNS.view(torch.bfloat16).float()[:, None]
    found = fp8.block_scales(x, 1.0, (1, 1)).view(torch.uint8).flatten()
    size = x.abs().double().flatten()
    finite = size.isfinite()
    power = torch.maximum(size[finite], torch.tensor(fp8.SMALLEST_SCALE).double()).log2().ceil()
    wanted = (2.0 ** power.clamp(max=127).numpy()).astype(ml_dtypes.float8_e8m0fnu).view(np.uint8)
    wanted[power == 128] = 255  # 2^127 is the last one; numbers up to 448 times it are all of float32
    assert np.array_equal(found[finite].numpy(), wanted)
    assert (found[~finite] == 255).all() and (~finite).sum() == 256


# --- blocks ---


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_quantising_is_a_division_by_each_blocks_scale_and_the_cast_of_ml_dtypes(shape, dtype):
    weight = spread_out(*shape, dtype=dtype)
    codes, scale = fp8.quantise(weight)
    assert codes.dtype == torch.float8_e4m3fn and scale.dtype == torch.float8_e8m0fnu
    assert codes.shape == weight.shape and scale.shape == tuple(math.ceil(size / 128) for size in shape)
    for row, column in np.ndindex(*scale.shape):
        here = slice(128 * row, 128 * row + 128), slice(128 * column, 128 * column + 128)
        block = weight[here].float().numpy()
        shared = np.float32(2.0 ** math.ceil(math.log2(np.abs(block).max() / 448)))
        assert scale[row, column].float().item() == shared
        assert same_bits(codes[here].contiguous(), (block / shared).astype(ml_dtypes.float8_e4m3fn))


@pytest.mark.parametrize(
    ("largest", "scale"),
    [(448.0, 1.0), (math.nextafter(448.0, 1e9) + 1e-4, 2.0), (224.0, 0.5), (3.5, 2.0**-7), (3.6, 2.0**-6)],
)
def test_the_scale_is_the_smallest_power_of_two_that_keeps_a_block_within_448(largest, scale):
    found = fp8.quantise(torch.tensor([[0.1, -largest]]))[1]
    assert found.float().item() == scale


def test_each_block_has_the_scale_of_its_own_numbers_and_an_edge_block_too():
    weight = torch.ones(130, 129)
    weight[:128, 128:], weight[128:, :128], weight[128:, 128:] = 1000.0, 1e-3, 1e6
    assert torch.equal(fp8.exponents(fp8.quantise(weight)[1]), torch.tensor([[-8, 2], [-18, 12]], dtype=torch.int32))
    assert (through(weight) / weight - 1).abs().max() <= 2**-4


def test_other_blocks_than_128_are_cut_and_put_together_alike():
    weight = spread_out(10, 7)
    codes, scale = fp8.quantise(weight, block=(3, 2))
    assert scale.shape == (4, 4)
    alone = torch.cat([torch.cat([through(part) for part in rows.split(2, 1)], 1) for rows in weight.split(3)])
    assert torch.equal(fp8.dequantise(codes, scale, block=(3, 2)), alone)


def test_a_block_of_zeros_stays_zero_and_leaves_its_neighbour_alone():
    weight = torch.cat([torch.zeros(5, 128), normal(5, 4, dtype=torch.float32)], 1)
    assert torch.equal(through(weight)[:, :128], torch.zeros(5, 128))
    assert torch.equal(through(weight)[:, 128:], through(weight[:, 128:]))
    assert through(torch.zeros(2, 3)).abs().max() == 0


@pytest.mark.parametrize("size", [1e-45, 1e-38, 3e38])
def test_the_smallest_and_largest_numbers_of_float32_have_a_scale(size):
    weight = torch.tensor([[size, -size / 3]])
    lost = fp8.SMALLEST_SCALE * 2**-10  # half the smallest step at the smallest scale
    assert ((through(weight) - weight).abs() <= (2**-4 * weight.abs()).clamp(min=lost)).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_block_with_a_number_that_is_not_finite_is_nan_and_no_other_block_is(bad):
    x = spread_out(5, 70)
    x[1, 40] = bad
    read = fp8.dequantise(*fp8.round_blocks(x, fp8.ROW_BLOCK), block=fp8.ROW_BLOCK)
    wrong = torch.zeros(5, 70, dtype=torch.bool)
    wrong[1, 32:64] = True
    assert torch.equal(read.isnan(), wrong)


@pytest.mark.parametrize("shape", [(0, 70), (4, 0)])
def test_no_rows_and_no_columns_have_no_scales(shape):
    codes, scale = fp8.round_blocks(torch.ones(shape), fp8.ROW_BLOCK)
    assert codes.shape == shape and scale.numel() == 0


# --- activations ---


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_activations_are_rounded_by_128_neighbours_of_a_token_as_a_loop_does(dtype):
    x = spread_out(6, 300, dtype=dtype).view(2, 3, 300)
    x[1, 2, 128:256] = 0
    found = fp8.rounded(x)
    assert found.dtype == dtype and found.shape == x.shape
    for b, t, low in np.ndindex(2, 3, 3):
        part = x[b, t, 128 * low : 128 * low + 128].float().numpy()
        scale = np.float32(2.0 ** math.ceil(math.log2(max(np.abs(part).max(), 1e-4) / 448)))
        wanted = (part / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
        assert np.array_equal(found[b, t, 128 * low : 128 * low + 128].float().numpy(), wanted)


def test_the_scale_of_activations_has_a_floor_under_which_they_are_lost():
    x = torch.tensor([[1e-4, 2.0**-31, 2.0**-33]])  # at a scale of 2^-22 the smallest step is 2^-31
    assert fp8.exponents(fp8.round_blocks(x / 16, fp8.ACTIVATION_BLOCK, fp8.ACTIVATION_FLOOR)[1]).item() == -22
    assert fp8.rounded(x)[0, 1:].tolist() == [2.0**-31, 0.0]
    assert torch.equal(fp8.rounded(fp8.rounded(x)), fp8.rounded(x))


# --- properties ---


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 150),
    columns=st.integers(1, 150),
    seed=st.integers(0, 99),
    power=st.integers(-100, 100),
)
def test_no_number_is_off_by_more_than_half_a_step(rows, columns, seed, power):
    weight = spread_out(rows, columns, seed) * 2.0**power
    codes, scale = fp8.quantise(weight)
    step = 2**-10 * fp8.over_blocks(scale.float(), weight.shape, fp8.BLOCK)
    assert ((through(weight) - weight).abs() <= torch.maximum(2**-4 * weight.abs(), step)).all()
    assert codes.float().abs().amax() <= 448


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 150), columns=st.integers(1, 150), seed=st.integers(0, 99))
def test_quantising_what_was_quantised_changes_nothing_and_a_power_of_two_passes_through(rows, columns, seed):
    once = through(spread_out(rows, columns, seed))
    assert torch.equal(through(once), once)
    assert torch.equal(through(once * 2.0**9), once * 2.0**9) and torch.equal(through(-once), -once)


def test_a_block_whose_largest_number_rounds_down_to_a_power_of_two_is_stable_too():
    weight = torch.tensor([[225.0, 1.0, 2**-8.9]])  # 225 becomes 224, for which the scale is half as large
    once = through(weight)
    assert once[0, 0] == 224 and torch.equal(through(once), once)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_is_read_back_is_exact_in_every_wide_dtype(dtype):
    codes, scale = fp8.quantise(spread_out(130, 140))
    read = fp8.dequantise(codes, scale, dtype)
    assert read.dtype == dtype and torch.equal(read.double(), fp8.dequantise(codes, scale).double())


# --- what is refused ---


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e300])
def test_what_is_not_finite_in_float32_is_refused(bad):
    with pytest.raises(ValueError, match="NaN or infinities"):
        fp8.quantise(torch.tensor([[1.0, bad]], dtype=torch.float64))


@pytest.mark.parametrize("bad", [torch.ones(3), torch.ones(2, 3, 4), torch.ones(2, 3).int(), torch.ones(0, 3)])
def test_what_is_no_matrix_is_refused(bad):
    with pytest.raises(ValueError, match="no matrix"):
        fp8.quantise(bad)


def test_scales_of_another_shape_are_refused_with_both_shapes():
    codes, scale = fp8.quantise(torch.ones(130, 100))
    for wrong in (scale[:1], scale.flatten(), scale.repeat(1, 2)):
        with pytest.raises(ValueError, match=r"scale has shape \([\d, ]+\); \(130, 100\) .* needs \(2, 1\)"):
            fp8.dequantise(codes, wrong)
