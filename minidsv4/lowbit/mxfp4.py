"""MXFP4: numbers in 4 bits (e2m1), 32 neighbours of a row under one power-of-two scale: the released routed experts.

A number is `VALUES[code] * scale`, which takes 4 + 8/32 = 4.25 bits. Two codes share a byte, the one with the even
index in the low half. Released names: `experts.N.w1.weight` (int8 bytes) and `experts.N.w1.scale` (e8m0).
"""

import torch
from torch import Tensor

from minidsv4.lowbit import fp8

GROUP = 32
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # of codes 0 to 7; 8 more is the same below zero
LARGEST = VALUES[-1]


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a matrix to MXFP4, each group with the smallest power of two that keeps it within 6.

    A number is off by at most its group's scale: half the widest step, from 4 to 6.

    weight   [rows, columns], any float dtype, float64 by way of float32
    returns  int8 [rows, columns / 2], two codes each, and float8_e8m0fnu [rows, columns / 32]
    raises   ValueError where 32 does not divide the columns, for NaN and for infinities
    """
    weight = fp8.finite_matrix(weight)
    if weight.shape[1] % GROUP:
        raise ValueError(f"mxfp4: {weight.shape[1]} columns do not fill groups of {GROUP}; take a multiple of {GROUP}")
    code, scale = round_groups(weight)
    return pack(code), scale


def rounded(x: Tensor) -> Tensor:
    """Numbers [..., width] to MXFP4 and back, in their own dtype; the last group of a row may be smaller.

    raises  ValueError for a single number, which has no last axis
    """
    if not x.ndim:
        raise ValueError(f"mxfp4: {x!r} has no rows; give a tensor [..., width]")
    rows = x.reshape(-1, x.shape[-1]).float()
    scale = fp8.over_blocks(fp8.block_scales(rows, LARGEST, (1, GROUP)).float(), rows.shape, (1, GROUP))
    return (nearest(rows / scale) * scale).view(x.shape).to(x.dtype)


def round_groups(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [rows, columns] and scales of any rows; a group with NaN or an infinity has the scale NaN."""
    x = x.float()
    scale = fp8.block_scales(x, LARGEST, (1, GROUP))
    return encode(x / fp8.over_blocks(scale.float(), x.shape, (1, GROUP))), scale


def read_groups(code: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`VALUES[code] * scale` [rows, columns]."""
    return decode(code, dtype) * fp8.over_blocks(scale.float().to(dtype), code.shape, (1, GROUP))


def dequantise(packed: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """`VALUES[code] * scale`, exact in float32, float64 and bfloat16: [rows, columns].

    raises  ValueError where there is not one scale for 16 bytes
    """
    rows, n_bytes = packed.shape
    right = (rows, 2 * n_bytes // GROUP)
    if tuple(scale.shape) != right or 2 * n_bytes % GROUP:
        raise ValueError(f"mxfp4: scale has shape {tuple(scale.shape)}; codes of {(rows, n_bytes)} bytes need {right}")
    return read_groups(unpack(packed), scale, dtype)


def to_fp8(
    packed: Tensor,
    scale: Tensor,
    block: tuple[int, int] = fp8.BLOCK,
) -> tuple[Tensor, Tensor]:
    """The same numbers in FP8.

    A block's scale is its largest MXFP4 scale over 2^6, so that 6 becomes 384 of 448.
    FP4 has fewer digits than e4m3, so only a number too small for e4m3 can be lost. All
    of FP4 are multiples of 0.5, and the smallest step of e4m3 is 2^-9: nothing is lost
    where every scale is at least 2^-14 of the largest in its block, since
    0.5 * 2^6 * 2^-14 = 2^-9.

    returns  what `fp8.quantise` returns; other scales than it would choose, the same
             numbers as `dequantise`
    raises   ValueError where something would be lost
    """
    exact = dequantise(packed, scale)
    each = fp8.over_blocks(scale.float(), exact.shape, (1, GROUP))
    exponent = torch.frexp(fp8.block_maxima(each, block)).exponent - 1
    shared = fp8.e8m0((exponent - 6).clamp(min=-127))
    weight = fp8.to_e4m3(exact / fp8.over_blocks(shared.float(), exact.shape, block))
    if not torch.equal(fp8.dequantise(weight, shared, block=block), exact):
        wrong = "mxfp4: scales within a block differ by more than 2^14"
        raise ValueError(f"{wrong}; FP8 cannot hold its smallest numbers")
    return weight, shared


def nearest(x: Tensor) -> Tensor:
    """The nearest FP4 numbers, ties to the even code; beyond 6 they are 6, and NaN stays NaN.

    They stand at steps of 0.5 up to 2, of 1 up to 4, and of 2 up to 6.
    """
    step = torch.exp2(torch.frexp(x.abs().clamp(1.0, LARGEST)).exponent - 2.0)
    return ((x / step).round() * step).clamp(-LARGEST, LARGEST)


def encode(x: Tensor) -> Tensor:
    """Codes 0 to 15 of the nearest FP4 numbers; NaN has no code, and is taken for 0."""
    values = torch.tensor(VALUES, device=x.device)
    place = torch.bucketize(nearest(x.float()).abs().nan_to_num(), values)
    return (place + 8 * x.signbit()).to(torch.uint8)


def decode(code: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The numbers that codes stand for."""
    values = torch.tensor(VALUES, dtype=dtype, device=code.device)
    return torch.cat([values, -values])[code.int()]


def pack(code: Tensor) -> Tensor:
    """Two codes a byte along the last axis, of even length, the even index in the low half: int8, as released."""
    return (code[..., ::2] | code[..., 1::2] << 4).view(torch.int8)


def unpack(packed: Tensor) -> Tensor:
    """The codes of `pack`."""
    both = packed.view(torch.uint8)
    return torch.stack([both & 15, both >> 4], -1).flatten(-2)
