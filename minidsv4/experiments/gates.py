"""An experiment: what a compressor's gates hear and what its position bias hears, on a planted task.

Windows of M = 8 tokens. Each token has a mark and 4 random signs; one token of each window is marked. The first 4
channels of an entry should be the signs of the marked token, its last 4 those of the window's last token.
B batch, C entries, M tokens per entry, D width, K entry width.
"""

import torch
from einops import einsum, rearrange
from torch import Tensor
from torch.nn.functional import one_hot

from minidsv4 import ops
from minidsv4.model.compressor import Compressor

SIGNS, WINDOW, WINDOWS = 4, 8, 8
STEPS, BATCH, RATE, TESTED = 200, 4, 0.1, 64
PARTS = {"gates": "wgate.weight", "bias": "ape"}


def planted(n_rows: int) -> tuple[Tensor, Tensor]:
    """Tokens [B, C M, D] and the entries that are wanted of them [B, C, K], drawn from torch's generator."""
    mark_BCM = one_hot(torch.randint(WINDOW, (n_rows, WINDOWS)), WINDOW).double()
    sign_BCMK = (2 * torch.randint(2, (n_rows, WINDOWS, WINDOW, SIGNS)) - 1).double()
    marked_BCK = einsum(mark_BCM, sign_BCMK, "b c m, b c m k -> b c k")
    token_BCMD = torch.cat([3 * rearrange(mark_BCM, "b c m -> b c m 1"), sign_BCMK], dim=-1)
    wanted_BCK = torch.cat([marked_BCK, sign_BCMK[:, :, -1]], dim=-1)
    return rearrange(token_BCMD, "b c m d -> b (c m) d"), wanted_BCK


def learn(without: str | None = None, seed: int = 0) -> tuple[float, float]:
    """Mean squared errors, for the marked token and for the last, of a compressor after 200 steps of Adam.

    without  "gates" or "bias": this part stays 0; None for the whole compressor
    """
    if without not in (None, *PARTS):
        raise ValueError(f"without={without!r} should be None or one of {', '.join(PARTS)}")
    torch.manual_seed(seed)
    compressor = Compressor(1 + SIGNS, 2 * SIGNS, WINDOW, eps=1e-6).double()
    compressor.wgate.weight.data.zero_()
    frozen = PARTS.get(without)
    optimizer = torch.optim.Adam([weight for name, weight in compressor.named_parameters() if name != frozen], lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        _errors(compressor, *planted(BATCH)).mean().backward()
        optimizer.step()
    with torch.no_grad():
        marked, last = _errors(compressor, *planted(TESTED)).chunk(2)
    return marked.mean().item(), last.mean().item()


def _errors(compressor: Compressor, x_BTD: Tensor, wanted_BCK: Tensor) -> Tensor:
    """Mean squared error of each channel of the entries before their norm [K]."""
    values = rearrange(compressor.wkv(x_BTD), "b (c m) k -> b c m k", m=WINDOW)
    gates = rearrange(compressor.wgate(x_BTD), "b (c m) k -> b c m k", m=WINDOW)
    return (ops.pool(values, gates, compressor.ape) - wanted_BCK).square().mean((0, 1))
