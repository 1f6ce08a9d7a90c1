"""Mistakes in core attention."""

from unittest.mock import patch

from einops import rearrange

from minidsv4 import ops
from minidsv4.config import LayerKind
from minidsv4.course.mutants.museum import BOTH, coarse, trap
from minidsv4.model.attention import WindowAttention
from minidsv4.model.indexer import Hadamard


@trap(
    28,
    at=[(WindowAttention, "forward")],
    symptom="Queries of compressed layers are blind to the last tokens, which no finished entry holds yet.",
    found="mobius#596",
    killed_by=(*BOTH, "cache_bytes_equal_the_formula"),
)
def no_window_in_compressed_layers(right, layer, *args):
    """CSA and HCA layers read compressed entries only; the window belongs to every layer."""
    with patch.object(layer, "window", layer.window if layer.kind is LayerKind.WINDOW else 0):
        return right(layer, *args)


@trap(
    28,
    at=[(ops, "attend")],
    symptom="Every query sees one old token too many.",
    killed_by=(*BOTH, "a_prefix_hit_goes_on_with_its_own_text"),
)
def window_without_the_query(right, query_BTHK, window_BSK, entries_BCK, sees, sinks_H):
    """A query sees W tokens and itself; the window counts the query."""
    return right(query_BTHK, window_BSK, entries_BCK, sees._replace(window=sees.window + 1), sinks_H)


@trap(
    29,
    at=[(ops, "attend")],
    symptom="All sinks are nearly 0, so heads that had learnt to look at nothing must look at something.",
)
def sink_scaled(right, query_BTHK, window_BSK, entries_BCK, sees, sinks_H):
    """The sink is multiplied by K^-0.5 like a score; it is a logit as it stands."""
    return right(query_BTHK, window_BSK, entries_BCK, sees, sinks_H * query_BTHK.shape[-1] ** -0.5)


@trap(
    29,
    at=[(ops, "attend")],
    symptom="No head can be quieter than another by its sink; under tensor parallelism each rank errs otherwise.",
)
def sink_shared_by_heads(right, query_BTHK, window_BSK, entries_BCK, sees, sinks_H):
    """One sink serves all heads; each has its own."""
    return right(query_BTHK, window_BSK, entries_BCK, sees, sinks_H.mean().expand_as(sinks_H))


@trap(
    29,
    at=[(ops, "attention_weights")],
    symptom="Weights sum to 1: no head can be quiet.",
)
def sink_share_given_back(right, *args):
    """What the sink takes is handed back to the entries, as if the sink had a value like theirs; its value is 0."""
    weight_BTHS = right(*args)
    return weight_BTHS / weight_BTHS.sum(dim=-1, keepdim=True)


@trap(
    30,
    at=[(ops, "rms_norm")],
    symptom="Scores grow with the query's length: attention far too sharp or too flat.",
)
def query_heads_not_normed(right, x, weight, eps):
    """Query heads are used as they come; each is normed over its K channels, without a weight."""
    is_query = weight is None and x.ndim == 4  # [B, T, H, K]
    return x if is_query else right(x, weight, eps)


@trap(
    31,
    at=[(ops, "attention_weights")],
    symptom="Every weight is off by up to one part in 512, and a row no longer sums to 1 minus the sink's share.",
    found="Automodel#2201",
)
def softmax_in_bfloat16(right, *args):
    """Attention weights are rounded to bfloat16."""
    return coarse(right(*args))


@trap(
    32,
    at=[(WindowAttention, "project")],
    symptom="Heads meet the weights of another group: noise with released weights, harmless when trained so.",
    found="SGLang#29036",
)
def output_groups_interleaved(right, layer, out_BTHK):
    """Group g takes heads g, g + G, g + 2G, ...; it takes H / G neighbours."""
    return right(layer, rearrange(out_BTHK, "b t (h g) k -> b t (g h) k", g=layer.groups))


@trap(
    42,
    at=[(ops, "attend")],
    symptom="Scores are right to the last bit, and the output is noise: the values were the keys.",
    found="llama.cpp#25382",
    killed_by=(*BOTH, "moving_the_text_changes_nothing"),
)
def hadamard_on_the_cache(right, query_BTHK, window_BSK, entries_BCK, sees, sinks_H):
    """Queries and entries are turned by a Hadamard matrix for quantisation; the output comes out turned, unnoticed."""
    turn = Hadamard(query_BTHK.shape[-1]).to(query_BTHK)
    return right(turn(query_BTHK), turn(window_BSK), turn(entries_BCK), sees, sinks_H)
