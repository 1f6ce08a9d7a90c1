"""Matrix products by whichever of torch's two libraries is faster.

torch multiplies float32 by MKL, which fills half of the lanes of an AMD processor with AVX-512. oneDNN, which torch
brings along for 16 bits, fills them all: 200 GFLOP/s beside 100 on one core of Zen 5.
"""

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

MANY = 1 << 21  # multiplications of one product, from which on oneDNN's dearer call pays
ROWS = 32  # rows are filled up to a multiple: every new shape costs oneDNN half a millisecond and some memory


@functools.cache
def has_onednn() -> bool:
    """Whether this is a processor with AVX-512 and a torch that can be asked for oneDNN's products."""
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkldnn.is_available()
    return wide and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x_TD: Tensor, weight: Tensor) -> Tensor:
    """`F.linear(x_TD, weight)` of a matrix; where no gradient is asked for, by oneDNN if that is faster.

    x_TD    [T, D]
    weight  [any number, D], in any order of memory
    """
    n_rows, known = len(x_TD), x_TD.dtype == weight.dtype == torch.float32 and x_TD.device.type == "cpu"
    recorded = torch.is_grad_enabled() and (x_TD.requires_grad or weight.requires_grad)
    other = recorded or torch.is_autocast_enabled("cpu")
    if not known or other or n_rows * weight.numel() < MANY or not has_onednn():
        return F.linear(x_TD, weight)
    filled_TD = F.pad(x_TD, (0, 0, 0, -n_rows % ROWS)) if n_rows % ROWS else x_TD
    return onednn(filled_TD, weight)[:n_rows]


def over_rows(left_TF: Tensor, right_TD: Tensor) -> Tensor:
    """`left^T right` [F, D], the gradient of a weight; rows of zeros fill up their number, as in `linear`."""
    n_spare = -len(left_TF) % ROWS if left_TF.numel() * right_TD.shape[1] >= MANY else 0
    left_FT, right_DT = (F.pad(x, (0, 0, 0, n_spare)).T if n_spare else x.T for x in (left_TF, right_TD))
    return linear(left_FT, right_DT)


def onednn(x_TD: Tensor, weight: Tensor) -> Tensor:
    """`F.linear(x_TD, weight)` without a gradient, by an operation that `torch.compile` writes into its programs."""
    return torch.ops.mkldnn._linear_pointwise(x_TD, weight, None, "none", [], "")
