"""FLOPs of one token, of a prompt and of training, by the format in which they are multiplied.

H heads, K head width, U index heads, Z index width, P picked entries, W window, M tokens per entry. Report section
2.3.4 and figure 1. A multiplication and an addition are two FLOPs. Counted are the products with weights, the
indexer's scores and the core attention; not counted is what is O(D) a token (norms, Sinkhorn and stream mixing,
SwiGLU, pooling, softmax): below 0.1% of Flash.
"""

from collections.abc import Iterable
from functools import singledispatch

import numpy as np

from minidsv4.config import Config, LayerKind
from minidsv4.cost.baselines import V32
from minidsv4.cost.parameters import Weight, weights

KINDS = ("FP8 products", "FP4 experts", "BF16 products", "head", "FP4 indexer", "FP8 indexer", "attention")
BITS = dict(zip(KINDS, (8, 8, 16, 16, 4, 8, 16)))  # FP4 experts meet FP8 activations: they run at the FP8 peak

# FP8 FLOPs that one FLOP of a kind counts for. The report says "equivalent FP8 FLOPs" and not how; these factors are
# the peaks of a chip whose rate halves with each doubling of the format, and they reproduce its two ratios.
EQUIVALENT = {kind: BITS[kind] / 8 for kind in KINDS}
RAW = dict.fromkeys(KINDS, 1.0)


def weighted(flops: dict, factors: dict[str, float] = EQUIVALENT):
    """The sum over kinds, each times its factor: FP8-equivalent by default, plain with RAW."""
    return sum(factors[kind] * amount for kind, amount in flops.items())


def weight_flops(rows: Iterable[Weight]) -> dict[str, int]:
    """FLOPs of one token with every weight that it is multiplied with; the MTP block is left out."""
    kinds = {"fp8": "FP8 products", "fp4": "FP4 experts", "bf16": "BF16 products", "fp32": "BF16 products"}
    sums = dict.fromkeys(KINDS[:4], 0)
    for row in rows:
        if row.is_multiplied and row.part != "MTP block":
            sums["head" if row.part == "head" else kinds[row.stored]] += 2 * row.active * row.size
    return sums


@singledispatch
def context_flops(model, n_tokens) -> dict:
    """FLOPs of one query's index scores and core attention, by kind; they grow with the context.

    n_tokens  tokens that it sees, its own included: an integer or an array of them
    """
    raise ValueError(f"bill: {model!r} is no model; give a Config, such as Config.flash(), or V32()")


@context_flops.register
def _(config: Config, n_tokens) -> dict:
    kinds = config.layer_types[: config.num_hidden_layers]
    near = np.minimum(config.sliding_window, n_tokens)
    csa, hca = (visible(config, kind, n_tokens) for kind in (LayerKind.CSA, LayerKind.HCA))
    entries = {LayerKind.WINDOW: 0, LayerKind.CSA: np.minimum(config.index_topk, csa), LayerKind.HCA: hca}
    attended = sum(near + entries[kind] for kind in kinds)
    scored = kinds.count(LayerKind.CSA) * csa
    return {
        "FP4 indexer": 2 * config.index_n_heads * config.index_head_dim * scored,
        "attention": 4 * config.num_attention_heads * config.head_dim * attended,
    }


def visible(config: Config, kind: LayerKind, n_tokens):
    """Finished entries of a layer of this kind after so many tokens."""
    ratio = config.ratio_of(kind)
    return n_tokens // ratio if ratio else 0


@context_flops.register
def _(model: V32, n_tokens) -> dict:
    per_token = 2 * model.kv_lora_rank + model.qk_rope_head_dim  # scores on 512 + 64 numbers, sums on 512
    attended = model.num_hidden_layers * np.minimum(model.index_topk, n_tokens)
    scored = model.num_hidden_layers * n_tokens
    return {
        "FP8 indexer": 2 * model.index_n_heads * model.index_head_dim * scored,
        "attention": 2 * model.num_attention_heads * per_token * attended,
    }


def decode(model, n_tokens) -> dict:
    """FLOPs of one new token by kind, raw.

    n_tokens  tokens that it sees, its own included: an integer, or an array for a curve
    """
    return weight_flops(weights(model)) | context_flops(model, n_tokens)


def prefill(model, n_tokens: int, every_logit: bool = False) -> dict:
    """FLOPs of a whole prompt by kind, raw: every token reads what lies before it.

    every_logit  the head for each token, as in training; otherwise for the last one only
    """
    fixed = {kind: amount * n_tokens for kind, amount in weight_flops(weights(model)).items()}
    if not every_logit:
        fixed["head"] //= n_tokens
    read = context_flops(model, np.arange(1, n_tokens + 1))
    return fixed | {kind: float(np.sum(amount, dtype=float)) for kind, amount in read.items()}


def training(model, n_tokens: float, length: int) -> float:
    """Raw FLOPs of training the main model: forward once, backward twice that, in sequences of `length` tokens.

    The MTP block, recomputation and the dense phase before the indexer are left out.
    """
    return 3 * n_tokens / length * weighted(prefill(model, length, every_logit=True), RAW)
