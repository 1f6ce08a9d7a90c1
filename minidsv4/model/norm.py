"""RMSNorm, with and without a weight, computed in float32 when the model is held in 16 bits.

Report section 2.3.3. Released names: `attn_norm`, `ffn_norm`, `q_norm`, `kv_norm`, `norm`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def precise(x: Tensor) -> Tensor:
    """`x` in float32 if it is a 16-bit tensor; float32 and float64 pass through as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def unit_rms(x: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps)` over the last axis, without a weight: the norm of each query head."""
    return F.rms_norm(precise(x), x.shape[-1:], eps=eps).to(x.dtype)


class RMSNorm(nn.Module):
    """`weight * x / sqrt(mean(x^2) + eps)` over the last axis."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(precise(x), self.weight.shape, precise(self.weight), self.eps).to(x.dtype)
