"""What a cache keeps of an entry and of an indexer key, in bytes: as computed, or packed as released.

B batch, C entries, K head width, R its rotary part, Z index width. Report section 3.6.1; FlashMLA's sizes. An entry is
FP8 with one scale byte for 64 numbers and its rotary part in BF16, filled up to 8 bytes: 448 + 128 + 7 + 1 = 584 bytes
where K = 512 and R = 64. A key, which comes from the Hadamard matrix, is MXFP4: 64 + 4 = 68 bytes where Z = 128.
Released FP8 pages keep the scales of all their entries behind the numbers; here each entry has its own behind it.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from minidsv4.config import Config
from minidsv4.lowbit import fp8, mxfp4

BLOCK = (1, 64)  # numbers of an entry that share a scale
FILL = 8  # an entry takes a multiple of so many bytes
PRECISIONS = ("model", "released")


class Form(NamedTuple):
    """How numbers [B, C, width] are kept: `pack` makes what is kept of them [B, C, any], `unpack` undoes it."""

    pack: Callable[[Tensor], Tensor]
    unpack: Callable[[Tensor], Tensor]


def _as_computed(x: Tensor) -> Tensor:
    return x


AS_COMPUTED = Form(_as_computed, _as_computed)


class Forms(NamedTuple):
    """How a cache keeps entries and how it keeps indexer keys."""

    entry: Form
    key: Form


AS_MODEL = Forms(AS_COMPUTED, AS_COMPUTED)


def forms_of(config: Config, dtype: torch.dtype, precision: str) -> Forms:
    """How a cache of this precision keeps what it holds.

    dtype      of what is read back
    precision  "model": in the model's dtype; "released": packed
    raises     ValueError for another precision
    """
    if precision not in PRECISIONS:
        raise ValueError(f"cache: precision = {precision!r} is not known; it is one of {', '.join(PRECISIONS)}")
    if precision == "model":
        return AS_MODEL
    width, rotary = config.head_dim, config.qk_rope_head_dim
    unpack = functools.partial(unpack_entries, width=width, rotary=rotary, dtype=dtype)
    unpack_key = functools.partial(unpack_keys, width=config.index_head_dim, dtype=dtype)
    return Forms(Form(functools.partial(pack_entries, rotary=rotary), unpack), Form(pack_keys, unpack_key))


# ---- entries ----


def entry_bytes(width: int, rotary: int) -> int:
    """Bytes of a packed entry."""
    plain = width - rotary
    return math.ceil((plain + 2 * rotary + math.ceil(plain / BLOCK[1])) / FILL) * FILL


def pack_entries(entries_BCK: Tensor, rotary: int) -> Tensor:
    """Entries as bytes, uint8 [B, C, `entry_bytes`]: FP8, rotary part in BF16, scales, zeros; no gradient passes.

    A block of 64 with NaN or an infinity is read back as NaN.
    """
    n_batch, _, width = entries_BCK.shape
    plain, rope = rearrange(entries_BCK.detach(), "b c k -> (b c) k").split([width - rotary, rotary], dim=1)
    codes, scale = fp8.round_blocks(plain, BLOCK, fp8.ACTIVATION_FLOOR)
    parts = [as_bytes(part) for part in (codes, rope.bfloat16(), scale)]
    return _filled(parts, entry_bytes(width, rotary), n_batch)


def unpack_entries(packed: Tensor, width: int, rotary: int, dtype: torch.dtype) -> Tensor:
    """The entries [B, C, K] that bytes of `pack_entries` hold, exact in float32, float64 and bfloat16."""
    plain = width - rotary
    rows = rearrange(packed, "b c ... -> (b c) ...")
    codes, rope, rest = rows.split([plain, 2 * rotary, rows.shape[1] - plain - 2 * rotary], dim=1)
    scale = rest[:, : math.ceil(plain / BLOCK[1])].view(torch.float8_e8m0fnu)
    numbers = fp8.dequantise(codes.view(torch.float8_e4m3fn), scale, dtype, BLOCK)
    alone = rope.clone(memory_format=torch.contiguous_format)  # a single row may begin at an odd byte
    turned = alone.view(torch.bfloat16).to(dtype)
    return rearrange(torch.cat([numbers, turned], dim=1), "(b c) k -> b c k", b=len(packed))


# ---- indexer keys ----


def key_bytes(width: int) -> int:
    """Bytes of a packed indexer key."""
    return math.ceil(width / 2) + math.ceil(width / mxfp4.GROUP)


def pack_keys(keys_BCZ: Tensor) -> Tensor:
    """Keys as bytes, uint8 [B, C, `key_bytes`]: two numbers a byte, then the scales; no gradient passes."""
    n_batch, _, width = keys_BCZ.shape
    code, scale = mxfp4.round_groups(rearrange(keys_BCZ.detach(), "b c z -> (b c) z"))
    parts = [as_bytes(mxfp4.pack(F.pad(code, (0, width % 2)))), as_bytes(scale)]
    return _filled(parts, key_bytes(width), n_batch)


def unpack_keys(packed: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """The keys [B, C, Z] that bytes of `pack_keys` hold."""
    rows = rearrange(packed, "b c ... -> (b c) ...")
    codes, scale = rows.split([math.ceil(width / 2), math.ceil(width / mxfp4.GROUP)], dim=1)
    numbers = mxfp4.read_groups(mxfp4.unpack(codes)[:, :width], scale.view(torch.float8_e8m0fnu), dtype)
    return rearrange(numbers, "(b c) z -> b c z", b=len(packed))


def as_bytes(x: Tensor) -> Tensor:
    """The bytes of a matrix [rows, bytes]."""
    return x.contiguous().view(torch.uint8)


def _filled(parts: list[Tensor], n_bytes: int, n_batch: int) -> Tensor:
    """Bytes side by side, and zeros up to so many a row, as [B, C, n_bytes]."""
    held = torch.cat(parts, dim=1)
    filled = F.pad(held, (0, n_bytes - held.shape[1]))
    return rearrange(filled, "(b c) ... -> b c ...", b=n_batch)
