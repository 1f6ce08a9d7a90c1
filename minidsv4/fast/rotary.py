"""Partial RoPE as one complex product in place.

R rotary part, K vector width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from minidsv4.ops import upcast


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """`ops.rotate` on one copy of `x`: pairs are read as complex numbers where they lie, and multiplied in place."""
    if x.shape[-1] % 2:  # only pairs at even places can be read as complex numbers
        return rotate(F.pad(x, (1, 0)), turn)[..., 1:]
    turned = upcast(x).clone(memory_format=torch.contiguous_format)
    pairs = torch.view_as_complex(turned.view(*turned.shape[:-1], -1, 2))
    pairs[..., -turn.shape[-1] :].mul_(turn)
    return turned.to(x.dtype)
