"""Matrix products by whichever of torch's two libraries is faster.

torch multiplies float32 by MKL, which fills half of the lanes of an AMD processor with AVX-512. oneDNN, which torch
brings along for 16 bits, fills them all: 200 GFLOP/s beside 100 on one core of Zen 5. On an Intel processor MKL is the
faster one at every size: 155 GFLOP/s beside 100 to 145.
"""

import functools
import platform
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

MANY = 1 << 21  # multiplications of one product, from which on oneDNN's dearer call pays
ROWS = 32  # rows are filled up to a multiple: every new shape costs oneDNN half a millisecond and some memory


@functools.cache
def has_onednn() -> bool:
    """Whether this is a processor of AMD with AVX-512, and a torch that can be asked for oneDNN's products."""
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkldnn.is_available()
    return wide and hasattr(torch.ops.mkldnn, "_linear_pointwise") and is_of_amd()


def is_of_amd(description: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor says that it is of AMD: on Linux in a file, elsewhere in its name."""
    try:
        said = description.read_text(encoding="utf-8")
    except OSError:
        said = platform.processor()
    return "AuthenticAMD" in said


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


def put_over_rows(out_FD: Tensor, left_TF: Tensor, right_TD: Tensor, beta: int = 0) -> None:
    """`out = beta out + left^T right`, for the gradient of a weight; beta is 0 or 1.

    Where oneDNN multiplies, rows of zeros fill up their number, as in `linear`.
    """
    known = out_FD.dtype == left_TF.dtype == torch.float32 and left_TF.device.type == "cpu"
    if not known or left_TF.numel() * right_TD.shape[1] < MANY or not has_onednn():
        torch.addmm(out_FD, left_TF.T, right_TD, beta=beta, out=out_FD)
        return
    n_spare = -len(left_TF) % ROWS
    left_FT, right_DT = (F.pad(x, (0, 0, 0, n_spare)).T if n_spare else x.T for x in (left_TF, right_TD))
    product_FD = linear(left_FT, right_DT)
    out_FD.copy_(product_FD.add_(out_FD) if beta else product_FD)


def onednn(x_TD: Tensor, weight: Tensor) -> Tensor:
    """`F.linear(x_TD, weight)` without a gradient, by an operation that `torch.compile` writes into its programs."""
    return torch.ops.mkldnn._linear_pointwise(x_TD, weight, None, "none", [], "")
