"""Bytes: the cache by kind of entry, what one step reads of it, the raw tail, and weights at any width.

K head width, R its rotary part, Z index width, W window, M tokens per entry. Report sections 2.3.4, 3.6.1 and 3.6.2.
Kinds of bytes are named as in `Cache.report()`, which these formulas equal. GB is 10^9 bytes everywhere.
"""

import math
from dataclasses import dataclass
from functools import singledispatch

import numpy as np

from minidsv4.checksums import SEAL_BYTES
from minidsv4.config import Config, LayerKind
from minidsv4.cost.baselines import V32
from minidsv4.cost.flops import visible
from minidsv4.lowbit import entries
from minidsv4.serve.prefix_state import block_tokens, overlap_tokens

ITEM = {"bf16": 2, "fp32": 4, "fp64": 8}  # bytes a number, where every number of an entry has one format


@dataclass(frozen=True)
class Precision:
    """Formats of the two things that a cache keeps: entries and indexer keys.

    entry  "fp8" (rotary part in BF16, one scale byte for 64 numbers) or one of ITEM
    key    "fp4" (one scale byte for 32 numbers), "fp8" (one FP32 scale) or one of ITEM
    """

    entry: str
    key: str


PRODUCTION = Precision("fp8", "fp4")  # report section 3.6.1; FlashMLA's page layout
FP8_KEYS = Precision("fp8", "fp8")
BF16 = Precision("bf16", "bf16")


def entry_bytes(width: int, rotary: int, entry: str) -> int:
    """Bytes of one window or compressed entry of V4.

    Production entries fill up to a multiple of 8.
    """
    if entry == "fp8":
        return entries.entry_bytes(width, rotary)
    return width * ITEM[entry]


def key_bytes(width: int, key: str) -> int:
    """Bytes of one indexer key."""
    special = {"fp4": entries.key_bytes(width), "fp8": width + 4}
    return special[key] if key in special else width * ITEM[key]


@singledispatch
def cache(model, n_tokens, precision: Precision = PRODUCTION) -> dict:
    """Bytes that one sequence's cache holds, by kind; the raw tail (`tail_state`) comes on top.

    n_tokens  an integer, or an array for a curve
    """
    raise ValueError(f"bill: {model!r} is no model; give a Config, such as Config.flash(), or V32()")


@cache.register
def _(config: Config, n_tokens, precision: Precision = PRODUCTION) -> dict:
    kinds = config.layer_types[: config.num_hidden_layers]
    entry = entry_bytes(config.head_dim, config.qk_rope_head_dim, precision.entry)
    csa, hca = (kinds.count(kind) * visible(config, kind, n_tokens) for kind in (LayerKind.CSA, LayerKind.HCA))
    return {
        "window": len(kinds) * np.minimum(config.sliding_window, n_tokens) * entry,
        "CSA entries": csa * entry,
        "indexer keys": csa * key_bytes(config.index_head_dim, precision.key),
        "HCA entries": hca * entry,
    }


@cache.register
def _(model: V32, n_tokens, precision: Precision = PRODUCTION) -> dict:
    tokens = model.num_hidden_layers * n_tokens
    return {"MLA entries": tokens * _v32_entry(model, precision), "indexer keys": tokens * _v32_key(model, precision)}


def _v32_entry(model: V32, precision: Precision) -> int:
    """FlashMLA's sparse FP8 format: the latent in FP8 with an FP32 scale for 128 numbers, the rotary key in BF16."""
    latent, rotary = model.kv_lora_rank, model.qk_rope_head_dim
    if precision.entry == "fp8":
        return latent + 4 * math.ceil(latent / 128) + 2 * rotary
    return (latent + rotary) * ITEM[precision.entry]


def _v32_key(model: V32, precision: Precision) -> int:
    """V3.2 keeps FP8 keys where V4 keeps FP4 ones."""
    return key_bytes(model.index_head_dim, "fp8" if precision.key == "fp4" else precision.key)


@singledispatch
def read_bytes(model, n_tokens, precision: Precision = PRODUCTION):
    """Bytes of the cache that one decoded token reads: all indexer keys, but only the entries that it attends to."""
    raise ValueError(f"bill: {model!r} is no model; give a Config, such as Config.flash(), or V32()")


@read_bytes.register
def _(config: Config, n_tokens, precision: Precision = PRODUCTION):
    held = cache(config, n_tokens, precision)
    n_csa = config.layer_types[: config.num_hidden_layers].count(LayerKind.CSA)
    picked = n_csa * np.minimum(config.index_topk, visible(config, LayerKind.CSA, n_tokens))
    entry = entry_bytes(config.head_dim, config.qk_rope_head_dim, precision.entry)
    return held["window"] + held["indexer keys"] + held["HCA entries"] + picked * entry


@read_bytes.register
def _(model: V32, n_tokens, precision: Precision = PRODUCTION):
    picked = model.num_hidden_layers * np.minimum(model.index_topk, n_tokens)
    return cache(model, n_tokens, precision)["indexer keys"] + picked * _v32_entry(model, precision)


def compressors(config: Config) -> list[tuple[int, int, int]]:
    """(tokens per entry, entry width, series per token) of every compressor; overlap makes two series."""
    csa = config.ratio_of(LayerKind.CSA)
    sizes = {
        LayerKind.WINDOW: [],
        LayerKind.CSA: [(csa, config.head_dim, 2), (csa, config.index_head_dim, 2)],
        LayerKind.HCA: [(config.ratio_of(LayerKind.HCA), config.head_dim, 1)],
    }
    return [size for kind in config.layer_types[: config.num_hidden_layers] for size in sizes[kind]]


def tail_state(config: Config, n_tokens: int, number_bytes: int = 4) -> int:
    """Bytes of the raw values and gates that wait: the open window, and the last closed one where windows overlap."""
    numbers = 0
    for ratio, width, n_series in compressors(config):
        numbers += n_tokens % ratio * n_series * 2 * width
        numbers += ratio * 2 * width if n_series == 2 and n_tokens >= ratio else 0
    return numbers * number_bytes


def tail_room(config: Config) -> int:
    """Bytes that the released inference code reserves for the tail: whole windows of each series, in FP32."""
    return sum(n_series * ratio * n_series * width * 2 * 4 for ratio, width, n_series in compressors(config))


def per_token(config: Config, precision: Precision = PRODUCTION) -> dict[str, float]:
    """Bytes by which compressed entries and keys grow per token, and what keeping every window entry would add."""
    kinds = config.layer_types[: config.num_hidden_layers]
    entry = entry_bytes(config.head_dim, config.qk_rope_head_dim, precision.entry)
    csa, hca = (kinds.count(kind) / (config.ratio_of(kind) or 1) for kind in (LayerKind.CSA, LayerKind.HCA))
    keys = csa * key_bytes(config.index_head_dim, precision.key)
    return {
        "CSA entries": csa * entry,
        "indexer keys": keys,
        "HCA entries": hca * entry,
        "every window entry": float(len(kinds) * entry),
    }


def stored_prefix(config: Config, n_tokens: int, every: int | None = None, precision: Precision = PRODUCTION) -> dict:
    """Bytes of the files that a prefix store keeps of a text, by kind; equal to its `report()`.

    every  tokens between two stored windows as "periodic" stores them; 1: each token's, as "full" does; None: "zero"
    """
    block = block_tokens(config)
    n_whole = n_tokens // block * block
    held, n_layers = cache(config, n_whole, precision), config.num_hidden_layers
    one_window = n_layers * entry_bytes(config.head_dim, config.qk_rope_head_dim, precision.entry)
    borders = range(every, n_whole + 1, every) if every and every > 1 else ()
    rows = sum(min(config.sliding_window, border - overlap_tokens(config)) for border in borders)
    return {
        "entries": int(held["CSA entries"] + held["indexer keys"] + held["HCA entries"]),
        "window": n_whole * one_window if every == 1 else 0,
        "state": rows * one_window,
        "checksums": SEAL_BYTES * (n_whole // block * (2 if every == 1 else 1) + len(borders)),
    }


def uniform_bytes(n_parameters: int, bits: float) -> float:
    """Bytes of all weights at one average width; 4.25 is FP4 with a scale byte for 32 numbers."""
    return n_parameters * bits / 8
