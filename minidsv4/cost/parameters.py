"""Every weight of a model as one list, from which parameters, FLOPs and checkpoint bytes follow.

D width, Q query rank, H heads, K head width, G output groups, O rank per group, U index heads, Z index width,
E experts, A active experts, F expert width, N streams, V vocabulary. Report section 4.2.1; names and formats are
those of the released checkpoints (instruct: experts in FP4, attention in FP8, the rest in BF16 and FP32).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import singledispatch

from minidsv4.config import Config, LayerKind, Routing

SMALL = "norms, sinks, biases"
PARTS = (  # rows of the table of parameters, the model's last block being one
    *(
        "routed experts",
        "shared expert",
        "dense layers",
        "wq_b",
        "wo_a",
        "wo_b",
        "wq_a",
        "wkv",
        "compressors",
        "indexer",
    ),
    *("router", "mHC", SMALL, "embedding", "head", "MTP block"),
)


@dataclass(frozen=True)
class Weight:
    """One tensor, or `copies` of the same shape.

    name    as in the released checkpoint
    part    the row of the bill that it belongs to, one of PARTS
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
    def product(self) -> bool:
        """Whether a token is multiplied with it: a matrix in use. A position bias (`ape`) is added."""
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
    d, vocabulary = config.hidden_size, config.vocab_size
    layers = zip(config.layer_types, config.mlp_layer_types)
    rows = [row for i, kinds in enumerate(layers) for row in named(f"layers.{i}", block(config, *kinds))]
    for i in range(config.num_nextn_predict_layers):
        rows += [replace(row, part="MTP block") for row in named(f"mtp.{i}", mtp_block(config))]
    embedding = Weight("embed.weight", "embedding", (vocabulary, d), active=0)
    norm, head = Weight("norm.weight", SMALL, (d,)), Weight("head.weight", "head", (vocabulary, d))
    return [embedding, *rows, norm, *collapse(config), head]


def named(prefix: str, rows: Iterable[Weight]) -> list[Weight]:
    """The same weights under a prefix."""
    return [replace(row, name=f"{prefix}.{row.name}") for row in rows]


def block(config: Config, kind: LayerKind, routing: Routing) -> list[Weight]:
    """One block: attention with what its kind needs, experts, two mHC sites, two norms."""
    rows = attention(config)
    if kind is not LayerKind.WINDOW:
        n_halves = 2 if kind is LayerKind.CSA else 1
        rows += compressor("compressors", config.hidden_size, config.head_dim, config.ratio_of(kind), n_halves)
    if kind is LayerKind.CSA:
        rows += named("indexer", indexer(config))
    norms = [Weight(f"{site}_norm.weight", SMALL, (config.hidden_size,)) for site in ("attn", "ffn")]
    sites = [row for site in ("attn", "ffn") for row in stream_site(config, site)]
    return named("attn", rows) + named("ffn", experts(config, routing)) + norms + sites


def attention(config: Config) -> list[Weight]:
    """Queries through a latent, one key-value head, grouped output, sinks."""
    d, rank, width = config.hidden_size, config.q_lora_rank, config.head_dim
    inner, latent = config.num_attention_heads * width, config.o_groups * config.o_lora_rank
    shapes = {"wq_a": (rank, d), "wq_b": (inner, rank), "wkv": (width, d)}
    shapes |= {"wo_a": (latent, inner // config.o_groups), "wo_b": (d, latent)}
    small = {"q_norm.weight": rank, "kv_norm.weight": width}
    return [
        *(Weight(f"{name}.weight", name, shape, "fp8") for name, shape in shapes.items()),
        *(Weight(name, SMALL, (size,)) for name, size in small.items()),
        Weight("attn_sink", SMALL, (config.num_attention_heads,), "fp32"),
    ]


def compressor(part: str, d: int, width: int, ratio: int, n_halves: int) -> list[Weight]:
    """Values, gates, position bias and norm of one compressor; two halves where windows overlap."""
    return [
        Weight("compressor.wkv.weight", part, (n_halves * width, d)),
        Weight("compressor.wgate.weight", part, (n_halves * width, d)),
        Weight("compressor.ape", SMALL, (ratio, n_halves * width), "fp32"),
        Weight("compressor.norm.weight", SMALL, (width,)),
    ]


def indexer(config: Config) -> list[Weight]:
    """Index queries from the query latent, head weights, and a compressor of their own for the keys."""
    inner = config.index_n_heads * config.index_head_dim
    return [
        Weight("wq_b.weight", "indexer", (inner, config.q_lora_rank), "fp8"),
        Weight("weights_proj.weight", "indexer", (config.index_n_heads, config.hidden_size)),
        *compressor("indexer", config.hidden_size, config.index_head_dim, config.ratio_of(LayerKind.CSA), 2),
    ]


def experts(config: Config, routing: Routing) -> list[Weight]:
    """Router with its bias or its table, routed experts, one shared expert."""
    d, inner, n_experts = config.hidden_size, config.moe_intermediate_size, config.n_routed_experts
    shapes = {"w1": (inner, d), "w3": (inner, d), "w2": (d, inner)}
    table = Weight("gate.tid2eid", "router", (config.vocab_size, config.num_experts_per_tok), "int64", active=0)
    bias = Weight("gate.bias", "router", (n_experts,), "fp32")
    counts = {"copies": n_experts, "active": config.num_experts_per_tok}
    return [
        Weight("gate.weight", "router", (n_experts, d)),
        table if routing is Routing.HASH else bias,
        *(Weight(f"experts.{name}.weight", "routed experts", shape, "fp4", **counts) for name, shape in shapes.items()),
        *(Weight(f"shared_experts.{name}.weight", "shared expert", shape, "fp8") for name, shape in shapes.items()),
    ]


def stream_site(config: Config, site: str) -> list[Weight]:
    """One mHC site: rows for reading, writing and the N x N carry."""
    n = config.hc_mult
    shapes = {"fn": ((2 + n) * n, n * config.hidden_size), "base": ((2 + n) * n,), "scale": (3,)}
    return [Weight(f"hc_{site}_{name}", "mHC", shape, "fp32") for name, shape in shapes.items()]


def collapse(config: Config) -> list[Weight]:
    """The last read of the streams, before the head."""
    n = config.hc_mult
    shapes = {"fn": (n, n * config.hidden_size), "base": (n,), "scale": (1,)}
    return [Weight(f"hc_head_{name}", "mHC", shape, "fp32") for name, shape in shapes.items()]


def mtp_block(config: Config) -> list[Weight]:
    """A block with a window and a learned router, two projections, three norms and a collapse of its own."""
    d = config.hidden_size
    return [
        *block(config, LayerKind.WINDOW, Routing.LEARNED),
        *(Weight(f"{name}.weight", "MTP block", (d, d), "fp8") for name in ("e_proj", "h_proj")),
        *(Weight(f"{name}.weight", "MTP block", (d,)) for name in ("enorm", "hnorm", "norm")),
        *collapse(config),
    ]


def parameters(rows: Iterable[Weight]) -> dict[str, Count]:
    """Parameters by part, in the order of PARTS; tables of integers are no parameters.

    The MTP block predicts a second token and is active for none of the first: its active count is 0.
    """
    sums = {part: [0, 0] for part in PARTS}
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
