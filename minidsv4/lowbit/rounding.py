"""What few bits cost: a model whose matrices are rounded to the nearest numbers of a format, without further training.

Every format states all of its bits, scales included. `Even` numbers stand at even steps around zero, and 16 or 32
neighbours of a row share one BF16 scale:

    16     BF16, no scale
     8     Even: 7 bits a number, and 16 bits for 16 of them
     4.25  MXFP4: 4 bits a number, and 8 bits for 32 of them (`mxfp4.py`)
     3     Even: 2 bits a number, and 16 bits for 16 of them
     2.5   Even: 2 bits a number, and 16 bits for 32 of them
"""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minidsv4.lowbit import mxfp4
from minidsv4.lowbit.formats import stored_as

if TYPE_CHECKING:  # the model stands above this room: it is handed in
    from minidsv4.model.model import Model


@dataclass(frozen=True)
class Even:
    """Numbers `(code + 1/2) * scale` with codes from `-2^(n_bits - 1)` to `2^(n_bits - 1) - 1`; zero is not among them.

    n_bits  of a code
    group   neighbours of a row that share a BF16 scale, which puts the outermost number at the group's largest
    """

    n_bits: int
    group: int

    @property
    def bits(self) -> float:
        """Bits a number, its part of the scale included."""
        return self.n_bits + 16 / self.group

    def round(self, weight: Tensor) -> Tensor:
        """The nearest numbers of the format; off by half a scale at most, and BF16's 2^-9 of the largest."""
        half = 2 ** (self.n_bits - 1)
        groups = weight.unflatten(-1, (-1, self.group))
        scale = (groups.abs().amax(-1, keepdim=True) / (half - 0.5)).bfloat16().to(weight.dtype)
        steps = (groups / scale).nan_to_num().floor().clamp(-half, half - 1) + 0.5  # a group of zeros has no scale
        return (steps * scale).flatten(-2)


class Half:
    """BF16: float32 with the last 16 bits rounded away."""

    bits = 16

    def round(self, weight: Tensor) -> Tensor:
        return weight.bfloat16().to(weight.dtype)


class Mxfp4:
    """Four bits and a part of a shared exponent."""

    bits = 4 + 8 / mxfp4.GROUP

    def round(self, weight: Tensor) -> Tensor:
        rows = weight.flatten(0, -2)
        return mxfp4.dequantise(*mxfp4.quantise(rows), weight.dtype).view_as(weight)


FORMATS = {one.bits: one for one in (Half(), Even(7, 16), Mxfp4(), Even(2, 16), Even(2, 32))}


@torch.no_grad()
def rounded(model: "Model", bits: float) -> "Model":
    """A copy of the model with the matrices that released checkpoints keep in FP8 or FP4 at so many bits a number.

    Embedding, head, compressors, router and norms are in BF16, and what is released in FP32 stays as it is.

    bits    one of `FORMATS`
    raises  ValueError for other bits, and where the group of a format does not divide a matrix' columns
    """
    if bits not in FORMATS:
        known = ", ".join(f"{one:g}" for one in FORMATS)
        raise ValueError(f"rounded: bits = {bits!r} is no format here; it is one of {known}")
    model = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        kind = stored_as(name)
        if kind != "fp32":
            parameter.copy_(FORMATS[bits if kind == "fp8" else 16].round(parameter))
    return model


def narrow_share(model: "Model") -> float:
    """The share of a model's parameters that `rounded` puts into the format asked for."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return sum(n for name, n in sizes.items() if stored_as(name) == "fp8") / sum(sizes.values())
