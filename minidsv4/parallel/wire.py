"""What rows are while they travel: as they are, in bfloat16, or in FP8 with a scale for every 32 numbers.

Report section 3.1 sends rows to experts in FP8 and results back in BF16. gloo carries no FP8 tensors, so all formats
but "exact" travel as bytes. The FP8 is that of `lowbit/fp8.py`; NaN and infinities arrive as NaN, with their 32.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minidsv4.lowbit import fp8

FORMATS = ("exact", "bf16", "fp8")


@dataclass(frozen=True)
class Wire:
    """A format for rows whose last `n_exact` columns travel exactly whatever the format: routing weights."""

    format: str = "exact"
    n_exact: int = 0

    def pack(self, rows: Tensor) -> Tensor:
        """Rows as they are, or as rows of bytes."""
        if self.format == "exact":
            return rows
        rounded, exact = rows.split([rows.shape[1] - self.n_exact, self.n_exact], dim=1)
        parts = [rounded.bfloat16()] if self.format == "bf16" else fp8.round_blocks(rounded, fp8.ROW_BLOCK)
        return torch.cat([as_bytes(part) for part in (*parts, exact)], dim=1)

    def unpack(self, packed: Tensor, like: Tensor) -> Tensor:
        """Rows of the width and dtype of `like`, from what `pack` made."""
        if self.format == "exact":
            return packed
        n_rounded, exact_bytes = like.shape[1] - self.n_exact, self.n_exact * like.element_size()
        rounded, exact = packed.split([packed.shape[1] - exact_bytes, exact_bytes], dim=1)
        if self.format == "bf16":
            rounded = from_bytes(rounded, torch.bfloat16)
        else:
            numbers, scales = rounded.split([n_rounded, rounded.shape[1] - n_rounded], dim=1)
            in_fp8 = from_bytes(numbers, torch.float8_e4m3fn)
            rounded = fp8.dequantise(in_fp8, from_bytes(scales, torch.float8_e8m0fnu), block=fp8.ROW_BLOCK)
        return torch.cat([rounded.to(like.dtype), from_bytes(exact, like.dtype)], dim=1)


def as_bytes(x: Tensor) -> Tensor:
    """A matrix of numbers as a matrix of their bytes."""
    return x.contiguous().view(torch.uint8)


def from_bytes(part: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers from columns of bytes; copied, as numbers must begin where a number may."""
    numbers = part.flatten().clone().view(dtype)
    return numbers.view(len(part), part.shape[1] // dtype.itemsize)
