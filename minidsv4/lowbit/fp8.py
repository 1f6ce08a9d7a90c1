"""FP8 e4m3 with a power-of-two scale for each block of numbers: 128 x 128 of a weight, 128 neighbours of an activation.

A number is `fp8 * scale`. The scale is a byte too (e8m0: 2^(byte - 127), and 255 is NaN), so released matrices take
8 + 8/16384 bits a number. Released names: `X.weight` in FP8, and `X.scale` beside it.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = (128, 128)  # rows, columns: of released weights
ACTIVATION_BLOCK = (1, 128)  # of what an FP8 or FP4 matrix is multiplied with
ROW_BLOCK = (1, 32)  # of rows that travel between ranks
ACTIVATION_FLOOR = 1e-4  # a block of activations and cached numbers has a scale as if it held a number of this size
LARGEST = 448.0  # of e4m3: 1.75 * 2^8
SMALLEST_SCALE = 2.0**-126  # the smallest of float32 that keeps all its digits; blocks of zeros get it
NAN_EXPONENT = 128  # of e8m0


def quantise(weight: Tensor, block: tuple[int, int] = BLOCK) -> tuple[Tensor, Tensor]:
    """Round a matrix to FP8, each block with the smallest power of two that keeps it within 448.

    A number is off by at most 2^-4 of itself (three bits follow the leading one, and rounding is to the nearest, ties
    to even) or, where that is more, by 2^-10 of its block's scale (steps next to zero are 2^-9).

    weight   [rows, columns], any float dtype; float64 is rounded to float32 first, as torch's own cast does
    block    rows and columns that share a scale; at the last row and column a block may be smaller
    returns  float8_e4m3fn [rows, columns], and float8_e8m0fnu with an element a block
    raises   ValueError for what is no matrix, and for NaN and infinities
    """
    return round_blocks(finite_matrix(weight), block)


def rounded(x: Tensor, block: tuple[int, int] = ACTIVATION_BLOCK, floor: float = ACTIVATION_FLOOR) -> Tensor:
    """Activations [..., width] to FP8 and back, in their own dtype: what a released product reads of them.

    A number is off by at most 2^-4 of itself, or by 2^-10 of its block's scale, as in `quantise`.

    block  rows and neighbours that share a scale
    floor  the scale is at least that of a block whose largest number is this
    """
    rows = x.reshape(-1, x.shape[-1])
    return dequantise(*round_blocks(rows, block, floor), x.dtype, block).view(x.shape)


def round_blocks(x: Tensor, block: tuple[int, int], floor: float = 0.0) -> tuple[Tensor, Tensor]:
    """What `quantise` returns for any rows, also for none; a block with NaN or an infinity becomes NaN as a whole."""
    x = x.float()
    scale = block_scales(x, LARGEST, block, floor)
    return to_e4m3(x / over_blocks(scale.float(), x.shape, block)), scale


def dequantise(
    fp8: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32, block: tuple[int, int] = BLOCK
) -> Tensor:
    """`fp8 * scale`, exact in float32, float64 and bfloat16.

    raises  ValueError where there is not one scale a block
    """
    right = tuple(math.ceil(size / of) for size, of in zip(fp8.shape, block))
    if tuple(scale.shape) != right:
        given, shape = tuple(scale.shape), tuple(fp8.shape)
        raise ValueError(f"fp8: scale has shape {given}; {shape} in blocks of {block} needs {right}")
    return fp8.to(dtype) * over_blocks(scale.float().to(dtype), fp8.shape, block)


def to_e4m3(x: Tensor) -> Tensor:
    """The nearest e4m3 numbers, ties to even; beyond 448 they are 448, where a bare cast may give NaN."""
    return x.clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)


def block_scales(x: Tensor, limit: float, block: tuple[int, int], floor: float = 0.0) -> Tensor:
    """The scale of each block, e8m0: the smallest power of two s from 2^-126 with `|x| / s <= limit`.

    x      float32 [rows, columns]; a block with NaN or an infinity has the scale NaN
    limit  the largest number of the format that shares the scale
    floor  a block whose largest number is smaller has the scale of one that holds it
    """
    largest = block_maxima(x.abs(), block)
    fraction, exponent = torch.frexp(largest.clamp(min=max(limit * SMALLEST_SCALE, floor)))
    limit_fraction, limit_exponent = math.frexp(limit)
    exponent = exponent - limit_exponent + (fraction > limit_fraction)
    return e8m0(exponent.where(largest.isfinite(), NAN_EXPONENT))


def block_maxima(x: Tensor, block: tuple[int, int]) -> Tensor:
    """The largest number of each block, and at least 0."""
    height, width = block
    padded = F.pad(x, (0, -x.shape[1] % width, 0, -x.shape[0] % height))
    return padded.unflatten(1, (-1, width)).unflatten(0, (-1, height)).amax((1, 3))


def e8m0(exponent: Tensor) -> Tensor:
    """2^exponent as bytes: exponent + 127; exponents from -127 to 127, and 128 for NaN."""
    return (exponent + 127).to(torch.uint8).view(torch.float8_e8m0fnu)


def exponents(scale: Tensor) -> Tensor:
    """The whole numbers that `e8m0` was made of."""
    return scale.view(torch.uint8).int() - 127


def over_blocks(scale: Tensor, shape: torch.Size, block: tuple[int, int]) -> Tensor:
    """Each block's scale at each of its numbers."""
    rows, columns = shape
    height, width = block
    return scale.repeat_interleave(height, 0)[:rows].repeat_interleave(width, 1)[:, :columns]


def finite_matrix(weight: Tensor) -> Tensor:
    """The matrix in float32.

    raises  ValueError for what is no matrix, and for NaN and infinities
    """
    if not isinstance(weight, Tensor):
        raise ValueError(f"quantise: {type(weight).__name__} is no matrix of numbers; give a tensor [rows, columns]")
    if weight.ndim != 2 or not weight.is_floating_point() or not weight.numel():
        raise ValueError(f"quantise: {weight.dtype} of shape {tuple(weight.shape)} is no matrix of numbers; give one")
    weight = weight.detach().float()
    if not weight.isfinite().all():
        raise ValueError("quantise: the weights hold NaN or infinities (in float32), which have no scale")
    return weight
