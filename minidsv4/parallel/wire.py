"""What rows are while they travel: as they are, in bfloat16, or in FP8 with a power of two for every 32 numbers.

D width. Report section 3.1 sends rows to experts in FP8 and results back in BF16. gloo carries no FP8 tensors, so all
formats but "exact" travel as bytes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

FORMATS = ("exact", "bf16", "fp8")
BLOCK = 32  # numbers that share a power of two
LARGEST = 448.0  # of float8_e4m3fn


@dataclass(frozen=True)
class Wire:
    """A format for rows whose last `n_exact` columns travel exactly whatever the format: routing weights."""

    format: str = "exact"
    n_exact: int = 0

    def pack(self, rows: Tensor) -> Tensor:
        """Rows as they are, or as rows of bytes."""
        if self.format == "exact":
            return rows
        n_rounded = rows.shape[1] - self.n_exact
        parts = [rows[:, :n_rounded].bfloat16()] if self.format == "bf16" else to_fp8(rows[:, :n_rounded])
        return torch.cat([as_bytes(part) for part in (*parts, rows[:, n_rounded:])], dim=1)

    def unpack(self, packed: Tensor, like: Tensor) -> Tensor:
        """Rows of the width and dtype of `like`, from what `pack` made."""
        if self.format == "exact":
            return packed
        n_rounded, exact_bytes = like.shape[1] - self.n_exact, self.n_exact * like.element_size()
        rounded, exact = packed.split([packed.shape[1] - exact_bytes, exact_bytes], dim=1)
        if self.format == "bf16":
            rounded = from_bytes(rounded, torch.bfloat16)
        else:
            numbers, exponents = rounded.split([n_rounded, rounded.shape[1] - n_rounded], dim=1)
            rounded = from_fp8(from_bytes(numbers, torch.float8_e4m3fn), exponents)
        return torch.cat([rounded.to(like.dtype), from_bytes(exact, like.dtype)], dim=1)


def as_bytes(x: Tensor) -> Tensor:
    """A matrix of numbers as a matrix of their bytes."""
    return x.contiguous().view(torch.uint8)


def from_bytes(part: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers from columns of bytes; copied, as numbers must begin where a number may."""
    numbers = part.flatten().clone().view(dtype)
    return numbers.view(len(part), part.shape[1] // dtype.itemsize)


def to_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """FP8 numbers and, for each block of 32 in a row, the power of two that they are multiplied by, biased by 127.

    x        [rows, D]; numbers below 2^-127 may vanish
    returns  float8_e4m3fn [rows, D], uint8 [rows, D / 32 rounded up]; each within 1/16 of x, or of the block's least
    """
    width = x.shape[1]
    blocks = F.pad(x.float(), (0, -width % BLOCK)).unflatten(1, (-1, BLOCK))
    mantissa, exponent = torch.frexp(blocks.abs().amax(-1) / LARGEST)  # the block fits below 448 times 2^exponent
    exponent = (exponent - (mantissa == 0.5).to(exponent.dtype)).clamp(-126, 127)
    numbers = torch.ldexp(blocks, -exponent[..., None]).to(torch.float8_e4m3fn)
    return numbers.flatten(1)[:, :width], (exponent + 127).to(torch.uint8)


def from_fp8(numbers: Tensor, exponents: Tensor) -> Tensor:
    """The float32 numbers that `to_fp8` rounded to; exact."""
    scale = torch.ldexp(torch.ones(exponents.shape, device=numbers.device), exponents.int() - 127)
    return numbers.float() * scale.repeat_interleave(BLOCK, dim=1)[:, : numbers.shape[1]]
