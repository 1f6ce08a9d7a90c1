"""Every weight of a model as one list, from which parameters, FLOPs and checkpoint bytes follow.

E experts, A active experts. The list is read off the model itself, built on the meta device, where a tensor has a
shape and no memory. Report section 4.2.1. Names and formats are those of the released checkpoints (instruct: experts
in FP4, attention in FP8, the rest in BF16 and FP32).
"""

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache, singledispatch

import torch

from minidsv4.checkpoint import to_released
from minidsv4.config import Config
from minidsv4.lowbit.formats import stored_as
from minidsv4.model.model import Model
from minidsv4.unfilled import unfilled

SMALL = "norms, sinks, biases"
PARTS = {  # row of the table of parameters: the released names that it counts. The first pattern that fits decides
    "MTP block": r"^mtp\.",
    SMALL: r"norm\.|attn_sink|\.ape$",
    "mHC": r"hc_",
    "routed experts": r"\.experts\.",
    "shared expert": r"\.shared_experts\.",
    "indexer": r"\.indexer\.",
    "compressors": r"\.compressor\.",
    "wq_b": r"\.wq_b\.",
    "wo_a": r"\.wo_a\.",
    "wo_b": r"\.wo_b\.",
    "wq_a": r"\.wq_a\.",
    "wkv": r"\.wkv\.",
    "router": r"\.gate\.",
    "embedding": r"^embed\.",
    "head": r"^head\.",
}
TABLE = (  # order of the rows
    *("routed experts", "shared expert", "dense layers", "wq_b", "wo_a", "wo_b", "wq_a", "wkv", "compressors"),
    *("indexer", "router", "mHC", SMALL, "embedding", "head", "MTP block"),
)


@dataclass(frozen=True)
class Weight:
    """One tensor, or `copies` of the same shape.

    name    as in the released checkpoint
    part    the row of the bill that it belongs to, one of TABLE
    shape   of one copy: rows (outputs), columns (inputs)
    stored  format in the released checkpoint: fp4, fp8, bf16, fp32 or int64
    active  copies that one token is multiplied with; 0 for what is looked up
    """

    name: str
    part: str
    shape: tuple[int, ...]
    stored: str = "bf16"
    copies: int = 1
    active: int = 1

    @property
    def size(self) -> int:
        """Numbers in one copy."""
        return math.prod(self.shape)

    @property
    def is_multiplied(self) -> bool:
        """Whether a token is multiplied with it, as with a matrix in use; a position bias (`ape`) is added."""
        return len(self.shape) == 2 and self.active > 0 and not self.name.endswith("ape")


@dataclass(frozen=True)
class Count:
    """Parameters in all, and those that one token uses."""

    total: int
    active: int


@singledispatch
def weights(model) -> list[Weight]:
    """All weights of a model: a `Config`, or a baseline that registers itself (`baselines.py`).

    raises  ValueError for anything else
    """
    raise ValueError(f"bill: {model!r} is no model; give a Config, such as Config.flash(), or V32()")


@weights.register
def _(config: Config) -> list[Weight]:
    return list(_weights(config))


@lru_cache(maxsize=64)
def _weights(config: Config) -> tuple[Weight, ...]:
    """One layer of each combination of attention and router is built; the others have the same weights."""
    layers = list(zip(config.layer_types, config.mlp_layer_types))
    combinations = list(dict.fromkeys(layers))
    rows = released_weights(_with_layers(config, combinations))
    found = []
    for row in rows:
        layer = re.match(r"layers\.(\d+)\.", row.name)
        if layer is None:
            found.append(row)
            continue
        same = [i for i, layer_i in enumerate(layers) if layer_i == combinations[int(layer[1])]]
        found += [replace(row, name=re.sub(r"\d+", str(i), row.name, count=1)) for i in same]
    return tuple(found)


def _with_layers(config: Config, layers: list[tuple]) -> Config:
    """The same model with these (attention kind, router kind) layers in place of its own."""
    kinds = [kind for kind, _ in layers] + list(config.layer_types[config.num_hidden_layers :])
    return config.replace(
        num_hidden_layers=len(layers),
        compress_ratios=tuple(config.ratio_of(kind) for kind in kinds),
        layer_types=tuple(kinds),
        mlp_layer_types=tuple(routing for _, routing in layers),
    )


def released_weights(config: Config) -> list[Weight]:
    """The weights of the whole model, built on the meta device; the E experts of a layer are copies of one row."""
    tensors = to_released(unfilled(Model, config).state_dict())
    found = Counter()
    for name, tensor in tensors.items():
        found[re.sub(r"\.experts\.\d+\.", ".experts.", name), tuple(tensor.shape), tensor.dtype] += 1
    return [weight(config, *tensor, copies) for tensor, copies in found.items()]


def weight(
    config: Config,
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    copies: int,
) -> Weight:
    """A row of the list: part, released format, and how many copies a token uses."""
    part = next(part for part, pattern in PARTS.items() if re.search(pattern, name))
    if not dtype.is_floating_point:
        return Weight(name, part, shape, "int64", copies, active=0)
    if ".experts." in name:
        n_active = config.num_experts_per_tok
        return Weight(name, part, shape, "fp4", copies, active=n_active)
    n_active = 0 if part == "embedding" else 1
    return Weight(name, part, shape, stored_as(name), copies, active=n_active)


def named(prefix: str, rows: Iterable[Weight]) -> list[Weight]:
    """The same weights under a prefix."""
    return [replace(row, name=f"{prefix}.{row.name}") for row in rows]


def parameters(rows: Iterable[Weight]) -> dict[str, Count]:
    """Parameters by part, in the order of TABLE; tables of integers are no parameters.

    The MTP block predicts a second token and is active for none of the first: its active count is 0.
    """
    sums = {part: [0, 0] for part in TABLE}
    for row in rows:
        if row.stored != "int64":
            sums[row.part][0] += row.copies * row.size
            sums[row.part][1] += 0 if row.part == "MTP block" else row.active * row.size
    return {part: Count(*pair) for part, pair in sums.items() if pair[0]}


def total(counts: dict[str, Count], mtp: bool = False) -> Count:
    """The sum of all parts; the MTP block only if asked for."""
    chosen = [count for part, count in counts.items() if mtp or part != "MTP block"]
    return Count(sum(count.total for count in chosen), sum(count.active for count in chosen))


def stored_bytes(row: Weight) -> int:
    """Bytes of a weight in the released checkpoint, the scales of its blocks included.

    FP4: two numbers a byte, one scale byte for 32 numbers of a row. FP8: one scale byte for a block of 128 x 128.
    """
    if row.stored == "fp4":
        n_rows, n_columns = row.shape
        return row.copies * n_rows * (math.ceil(n_columns / 2) + math.ceil(n_columns / 32))
    if row.stored == "fp8":
        return row.copies * (row.size + math.prod(math.ceil(size / 128) for size in row.shape))
    return row.copies * row.size * {"bf16": 2, "fp32": 4, "int64": 8}[row.stored]


def checkpoint_bytes(rows: Iterable[Weight]) -> int:
    """Bytes of the released checkpoint, the MTP block included."""
    return sum(stored_bytes(row) for row in rows)


def with_experts_in(stored: str, rows: Iterable[Weight]) -> list[Weight]:
    """The same weights with the routed experts in another format: the base models keep them in fp8."""
    return [replace(row, stored=stored) if row.stored == "fp4" else row for row in rows]
