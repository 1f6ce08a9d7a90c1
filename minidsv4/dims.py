"""The glossary: one letter, one axis, in every file, pattern and suffix of this package.

A name such as `query_BTHK` says that its axes are batch, token, head and head width; an einops pattern says the
same in lower case, `"b t h k"`. The report's symbol and the released config field stand beside each letter.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """One axis: its meaning, the report's symbol, the `config.json` field that sets it, its size in Flash and Pro."""

    meaning: str
    symbol: str = ""
    field: str = ""
    flash: int | None = None
    pro: int | None = None


GLOSSARY: dict[str, Axis] = {
    "B": Axis("batch: sequences side by side"),
    "T": Axis("tokens (queries) of this call", "n"),
    "S": Axis("source entries attended to, or slots pooled"),
    "D": Axis("model width", "d", "hidden_size", 4096, 7168),
    "H": Axis("query heads", "n_h", "num_attention_heads", 64, 128),
    "K": Axis("head width, shared by the one key-value head", "c", "head_dim", 512, 512),
    "R": Axis("rotary part of a head: its last channels", "r", "qk_rope_head_dim", 64, 64),
    "Q": Axis("query rank", "d_c", "q_lora_rank", 1024, 1536),
    "G": Axis("output groups", "g", "o_groups", 8, 16),
    "O": Axis("rank of one output group", "d_g", "o_lora_rank", 1024, 1024),
    "W": Axis("window: tokens seen uncompressed, the query's own included", "n_win", "sliding_window", 128, 128),
    "M": Axis("tokens per compressed entry", "m, m'", "compress_ratios"),
    "C": Axis("compressed entries", "n/m"),
    "P": Axis("picked entries: what the indexer leaves", "k", "index_topk", 512, 1024),
    "U": Axis("index heads", "n_h^I", "index_n_heads", 64, 64),
    "Z": Axis("index width", "c^I", "index_head_dim", 128, 128),
    "E": Axis("routed experts", "E", "n_routed_experts", 256, 384),
    "A": Axis("active experts per token", "K", "num_experts_per_tok", 6, 6),
    "F": Axis("expert width", "d_i", "moe_intermediate_size", 2048, 3072),
    "N": Axis("residual streams", "n_hc", "hc_mult", 4, 4),
    "L": Axis("layers", "L", "num_hidden_layers", 43, 61),
    "V": Axis("vocabulary", "V", "vocab_size", 129280, 129280),
}

STREAM_PAIR = {"i": "old stream of a mix", "j": "new stream of a mix"}
