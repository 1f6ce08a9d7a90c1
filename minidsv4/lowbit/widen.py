"""Numbers of FP4 and FP8 matrices written into memory that is there, by compiled loops where numba is installed.

Both ways give the same bits, those of `mxfp4.dequantise` and `fp8.dequantise`.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from minidsv4.fast.compiled.numba_loops import numba_is_here
from minidsv4.lowbit import fp8, mxfp4

BLOCKS = {"fp4": (1, mxfp4.GROUP), "fp8": fp8.BLOCK}  # rows and columns that share a scale
SHARE = 1 << 20  # numbers that are worth a thread of their own


def fill(out: Tensor, kind: str, stored: Tensor, scale: Tensor) -> None:
    """Write the numbers of a stored matrix into `out` [rows, columns], of any float dtype.

    kind    "fp4": `stored` is int8 [rows, columns / 2]; or "fp8": float8_e4m3fn [rows, columns]
    scale   one for each of the format's blocks
    raises  ValueError where there are not as many scales as blocks
    """
    if out.dtype == torch.float32 and scale.dtype == torch.float8_e8m0fnu and numba_is_here():
        fill_compiled(out.numpy(), kind, stored.view(torch.uint8).numpy(), scale.view(torch.uint8).numpy())
    else:
        dequantise = mxfp4.dequantise if kind == "fp4" else fp8.dequantise
        out.copy_(dequantise(stored, scale, out.dtype))


@cache
def tables() -> dict[str, np.ndarray]:
    """What every byte of a format stands for; the two numbers of FP4 are one word of 8 bytes."""
    every = torch.arange(256, dtype=torch.uint8)
    return {
        "fp4": mxfp4.decode(mxfp4.unpack(every[:, None])).numpy().view(np.int64)[:, 0],
        "fp8": every.view(torch.float8_e4m3fn).float().numpy(),
        "scale": every.view(torch.float8_e8m0fnu).float().numpy(),
    }


def fill_compiled(out: np.ndarray, kind: str, stored: np.ndarray, scale: np.ndarray) -> None:
    """Rows in as many shares as torch uses threads; the loops run side by side."""
    from minidsv4.fast.compiled.lut import fill_fp4, fill_fp8

    right = tuple(-(-size // of) for size, of in zip(out.shape, BLOCKS[kind]))
    if scale.shape != right:
        raise ValueError(f"{kind}: scale has shape {scale.shape}; a matrix of {out.shape} needs {right}")
    work = partial(fill_fp4 if kind == "fp4" else fill_fp8, out, stored, tables()[kind], scale, tables()["scale"])
    n_shares = max(1, min(torch.get_num_threads(), out.size // SHARE))
    ends = [len(out) * share // n_shares for share in range(n_shares + 1)]
    if n_shares == 1:
        work(*ends)
        return
    with ThreadPoolExecutor(n_shares) as pool:
        list(pool.map(work, ends, ends[1:]))
