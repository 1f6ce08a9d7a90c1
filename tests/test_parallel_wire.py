"""The formats of travelling rows, bit for bit."""

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import normal

from minidsv4.lowbit import fp8
from minidsv4.parallel.wire import Wire

ROWS = normal(5, 70, seed=2)  # two blocks of 32, and one of 6


def in_fp8(rows):
    """Rows that travelled in FP8, in float32."""
    return Wire("fp8").unpack(Wire("fp8").pack(rows), like=rows.float())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n_exact", [0, 1, 3])
@pytest.mark.parametrize("n_rows", [0, 1, 5])
def test_exact_columns_travel_unchanged_in_every_format_and_so_do_all_columns_of_exact_rows(dtype, n_exact, n_rows):
    rows = ROWS[:n_rows].to(dtype)
    rounded, exact = rows.split([70 - n_exact, n_exact], dim=1)
    for name, expected in (("exact", rounded), ("bf16", rounded.bfloat16()), ("fp8", in_fp8(rounded))):
        wire = Wire(name, n_exact)
        there = wire.unpack(wire.pack(rows), like=rows)
        assert there.dtype == dtype and torch.equal(there, torch.cat([expected.to(dtype), exact], dim=1))


def test_a_row_in_fp8_takes_a_byte_a_number_and_one_more_for_each_32():
    assert Wire("fp8", 1).pack(ROWS[:, :65].float()).shape == (5, 64 + 2 + 4)
    assert Wire("fp8").pack(ROWS).shape == (5, 70 + 3) and Wire("bf16").pack(ROWS).shape == (5, 140)


@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False), min_size=1, max_size=40),
    st.integers(-20, 20),
)
def test_fp8_numbers_are_those_of_an_independent_cast_and_the_power_of_two_is_the_least_that_fits(numbers, power):
    x = torch.ldexp(torch.tensor([numbers]), torch.tensor(power))
    rounded, scales = fp8.round_blocks(x, fp8.ROW_BLOCK)
    assert torch.equal(in_fp8(x), fp8.dequantise(rounded, scales, block=fp8.ROW_BLOCK))
    for block, scale, eights in zip(x.split(32, 1), scales[0].tolist(), rounded.split(32, 1)):
        largest = block.double().abs().max().item()
        assert largest <= fp8.LARGEST * scale
        assert largest > fp8.LARGEST * scale / 2 or scale == fp8.SMALLEST_SCALE or largest == 0
        expected = (block.double().numpy() / scale).astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
        assert np.array_equal(eights.float().numpy(), expected.astype(np.float32))
    assert torch.equal(in_fp8(x), in_fp8(in_fp8(x)))


def test_fp8_is_within_a_sixteenth_of_numbers_not_far_below_the_largest_of_their_block():
    x = normal(50, 64, seed=3).abs() + 0.1
    assert ((in_fp8(x) - x).abs() / x).max() <= 1 / 16
    assert in_fp8(torch.zeros(2, 40)).abs().max() == 0


@pytest.mark.parametrize("format", ["exact", "bf16", "fp8"])
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan, 1e300])  # the last is infinite in float32
def test_what_is_not_finite_is_not_finite_where_it_arrives_and_leaves_other_blocks_alone(format, bad):
    rows = ROWS.clone()
    rows[1, 33] = bad
    there = Wire(format).unpack(Wire(format).pack(rows.float()), like=rows.float())
    wrong = ~there.isfinite()
    assert wrong[1, 33] and not wrong[[0, 2, 3, 4]].any() and not wrong[1, :32].any() and not wrong[1, 64:].any()
