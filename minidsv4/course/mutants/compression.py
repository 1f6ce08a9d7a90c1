"""Mistakes in the compressors."""

from unittest.mock import patch

import torch
from torch import nn

from minidsv4 import ops
from minidsv4.course.mutants.museum import trap
from minidsv4.model.compressor import Compressor, OverlapCompressor


@trap(
    12,
    at=[(OverlapCompressor, "pool_windows")],
    symptom="Every entry mixes the wrong series; shapes fit, and a model trained this way does not mind.",
)
def halves_swapped(right, layer, closed_BCMK, *rest):
    """Own tokens give their first half of channels, those of the window before their second; it is the reverse."""
    ape = nn.Parameter(layer.ape.roll(layer.entry_width, dims=1))
    values, gates = (half.roll(layer.entry_width, dims=-1) for half in closed_BCMK.chunk(2, dim=-1))
    with patch.object(layer, "ape", ape):
        return right(layer, torch.cat([values, gates], dim=-1), *rest)


@trap(
    13,
    at=[(OverlapCompressor, "pool_windows")],
    symptom="One pass is right; in decoding every entry lacks its overlap, and answers drift into another language.",
    found="omlx#2271",
    killed_by=("chunks_equal_one_pass", "a_prefix_hit_goes_on_with_its_own_text"),
)
def overlap_lost_between_calls(right, layer, closed_BCMK, positions, memory):
    """The previous window's half is not carried from one call to the next."""
    memory.previous.drop(len(memory.previous))
    return right(layer, closed_BCMK, positions, memory)


@trap(
    14,
    at=[(Compressor, "forward")],
    symptom="Right for prompts and for chunks that end with a window; wrong after any other chunk.",
    killed_by=("chunks_equal_one_pass",),
)
def ape_counted_from_the_chunk(right, layer, x_BTD, positions, memory):
    """The position bias is indexed by place in the chunk; it belongs to position mod m."""
    waiting = len(memory.open)  # tokens that the window already had when this chunk began
    with patch.object(layer, "ape", nn.Parameter(layer.ape.roll(waiting, dims=0))):
        return right(layer, x_BTD, positions, memory)


@trap(
    14,
    at=[(ops, "slot_weights")],
    symptom="Entries lean towards some slots twice as much as they should.",
)
def ape_added_twice(right, gates_BCSK, bias_SK):
    """The position bias is added when gates are stored and once more when they are pooled."""
    return right(gates_BCSK, 2 * bias_SK)


@trap(
    15,
    at=[(OverlapCompressor, "nothing")],
    symptom="Only entry 0 is wrong: it is pulled towards zero. Long texts hide it, first tokens show it.",
)
def window_0_has_zero_logits(right, layer, like):
    """Before the first window stand values of zero with logits of zero, which take weight; it takes logits of -inf."""
    return torch.zeros_like(like)


@trap(
    16,
    at=[(ops, "slot_weights")],
    symptom="All channels of an entry take the same mixture of tokens; shapes fit.",
)
def one_softmax_for_all_channels(right, gates_BCSK, bias_SK):
    """A slot gets one weight for all channels; each channel has a softmax of its own over the slots."""
    gate = gates_BCSK.mean(dim=-1, keepdim=True).expand_as(gates_BCSK)
    return right(gate, bias_SK.mean(dim=-1, keepdim=True).expand_as(bias_SK))


@trap(
    17,
    at=[(Compressor, "forward")],
    symptom="Right while the norm's weight is all 1; then the weight scales turned channels.",
)
def norm_after_the_turn(right, layer, x_BTD, positions, memory):
    """Pooled entries are turned and then normed; they are normed, then turned."""
    norm, stored = layer.norm.forward, layer.stored
    with patch.object(layer.norm, "forward", lambda x: x), patch.object(layer, "stored", lambda x: stored(norm(x))):
        return right(layer, x_BTD, positions, memory)


@trap(
    18,
    at=[(Compressor, "forward")],
    symptom="One pass is right; after a chunk that ends inside a window the next entry lacks its first tokens.",
    killed_by=("chunks_equal_one_pass",),
)
def open_window_dropped(right, layer, x_BTD, positions, memory):
    """Tokens of a window that is not full are forgotten at the end of a call; they must wait for the rest."""
    values, gates = memory.open.contents().chunk(2, dim=-1)
    memory.open.drop(len(memory.open))
    memory.open.append(torch.cat([torch.zeros_like(values), torch.full_like(gates, -torch.inf)], dim=-1))
    return right(layer, x_BTD, positions, memory)
