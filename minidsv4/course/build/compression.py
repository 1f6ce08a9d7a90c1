"""Steps of notebook 2: pooling, overlap, the two compressors.

Letters: B batch, T tokens, D width, C compressed entries, M tokens per entry, S slots pooled, K entry width.
"""

import math
from unittest.mock import patch

import torch
from einops import rearrange
from torch import nn

from minidsv4 import ops
from minidsv4.config import LayerKind
from minidsv4.course.build.parts import (
    angles_of,
    filled,
    memory_of,
    positions_of,
    random_config,
    random_weights,
    rotating,
    swapped,
)
from minidsv4.course.build.steps import Step, step
from minidsv4.model.compressor import Compressor, OverlapCompressor

pooled = step("pool", "BCK")


@pooled.cases
def pooled_cases(draw):
    n_batch, n_entries, n_slots, width = draw.sizes(4)
    shape = n_batch, n_entries, n_slots, width
    gates_BCSK = draw.normal(*shape)
    gates_BCSK[:, 0, : n_slots // 2] = -torch.inf
    yield draw.normal(*shape), draw.normal(*shape), draw.normal(n_slots, width)
    yield draw.normal(*shape), gates_BCSK, draw.normal(n_slots, width)


@pooled.answer
def pooled_entries(values_BCSK, gates_BCSK, bias_SK):
    return ops.pool(values_BCSK, gates_BCSK, bias_SK)


pooled.museum("one_softmax_for_all_channels", "ape_added_twice")


@pooled.mistake
def bias_left_out(values, gates, bias):
    """The position bias is missing. It is added to the gates."""
    return pooled_entries(values, gates, torch.zeros_like(bias))


@pooled.mistake
def bias_on_values(values, gates, bias):
    """The position bias is added to the values. It is added to the gates."""
    return pooled_entries(values + bias, gates, torch.zeros_like(bias))


@pooled.mistake
def softmax_over_channels(values, gates, bias):
    """The softmax runs over channels. It runs over the slots S, in every channel by itself."""
    return ((gates + bias).softmax(-1) * values).sum(2)


@pooled.mistake
def softmax_over_entries(values, gates, bias):
    """The softmax runs over entries. It runs over the slots S of one entry."""
    return ((gates + bias).softmax(1) * values).sum(2)


@pooled.mistake
def gates_not_through_softmax(values, gates, bias):
    """Gates are used as weights as they stand. The weights are their softmax over slots."""
    return ((gates + bias) * values).sum(2)


@pooled.mistake
def sigmoid_gates(values, gates, bias):
    """Gates pass a sigmoid. The weights are their softmax over slots, which sums to 1."""
    return ((gates + bias).sigmoid() * values).sum(2)


@pooled.mistake
def mean_over_slots(values, gates, bias):
    """The weighted slots are averaged. They are summed: the weights sum to 1 already."""
    return pooled_entries(values, gates, bias) / values.shape[2]


@pooled.mistake
def gates_pooled(values, gates, bias):
    """Values and gates have changed places."""
    return pooled_entries(gates, values, bias)


slots = step("overlapped", "BCSK")


@slots.cases
def slots_cases(draw):
    n_batch, n_entries, ratio, width = draw.sizes(4)
    series_BCMK = draw.normal(n_batch, n_entries, ratio, 2 * width)
    yield series_BCMK, 0.0
    yield series_BCMK, -math.inf
    yield series_BCMK[:, :0], 0.0


@slots.answer
def slots_of(series_BCMK, nothing):
    """The loop: slot by slot."""
    n_batch, n_entries, ratio, both = series_BCMK.shape
    width = both // 2
    slots_BCSK = series_BCMK.new_full((n_batch, n_entries, 2 * ratio, width), nothing)
    for c in range(n_entries):
        for m in range(ratio):
            if c > 0:
                slots_BCSK[:, c, m] = series_BCMK[:, c - 1, m, :width]
            slots_BCSK[:, c, ratio + m] = series_BCMK[:, c, m, width:]
    return slots_BCSK


@slots.mistake
def halves_swapped(series, nothing):
    """The halves are swapped. Slots 0 to M - 1 hold the tokens of the window before, with their first half of
    channels; slots M to 2M - 1 hold the entry's own tokens, with their second half."""
    first, second = series.chunk(2, dim=-1)
    return slots_of(torch.cat([second, first], dim=-1), nothing)


@slots.mistake
def halves_interleaved(series, nothing):
    """Even and odd channels are taken for the halves. Each half is a block of neighbours: "b c m (two k)"."""
    return slots_of(rearrange(series, "b c m (k two) -> b c m (two k)", two=2), nothing)


@slots.mistake
def own_window_first(series, nothing):
    """The own window's slots come first. The window before comes first, as the position bias has it."""
    previous, current = slots_of(series, nothing).chunk(2, dim=2)
    return torch.cat([current, previous], dim=2)


@slots.mistake
def window_after(series, nothing):
    """The first M slots hold the window after. They hold the window before."""
    first, second = series.chunk(2, dim=-1)
    return torch.cat([torch.cat([first[:, 1:], torch.full_like(first[:, :1], nothing)], dim=1), second], dim=2)


@slots.mistake
def nothing_shifted(series, nothing):
    """Both halves are of the same window. The first M slots hold the window before."""
    return torch.cat(series.chunk(2, dim=-1), dim=2)


@slots.mistake
def last_window_before_the_first(series, nothing):
    """Window 0 gets the last window as the one before it, as `roll` does. It has none: its slots hold `nothing`."""
    first, second = series.chunk(2, dim=-1)
    return torch.cat([first.roll(1, dims=1), second], dim=2)


@slots.mistake
def zeros_before_the_first(series, nothing):
    """Before window 0 stand zeros. There stands `nothing`, which is -inf for gates: a gate of 0 would take weight."""
    return slots_of(series, 0.0)


@slots.mistake
def infinity_before_the_first(series, nothing):
    """Before window 0 stands -inf at every call. There stands `nothing`, which is 0 for values: 0 times -inf is NaN."""
    return slots_of(series, -math.inf)


def kind_of(module: Compressor) -> LayerKind:
    """The kind of layer that has such a compressor."""
    return LayerKind.CSA if isinstance(module, OverlapCompressor) else LayerKind.HCA


def compressor_step(name: str, part: type[Compressor], needs: str) -> Step:
    """The compressor without or with overlap, checked as a whole."""
    made = step(name, "BCK", target="Compressor.forward", needs=needs)

    @made.cases
    def compressor_cases(draw):
        config = random_config(draw)
        kind = LayerKind.CSA if part is OverlapCompressor else LayerKind.HCA
        ratio = config.ratio_of(kind)
        module = random_weights(part(config.hidden_size, config.head_dim, ratio, config.rms_norm_eps), draw)
        for n_tokens in (4 * ratio + 1, 3 * ratio, ratio - 1):
            yield config, module, draw.normal(2, n_tokens, config.hidden_size)

    made.answer(compressed)
    made.by(run_compressor)
    made.museum("entries_at_their_index", "entries_at_the_window_end", "norm_after_the_turn")
    for mistake in (entries_not_turned, entries_not_normed, gates_are_values, ape_left_out):
        made.mistake(mistake)
    return made


def compressed(config, module, x_BTD):
    """What the package's compressor gives."""
    kind = kind_of(module)
    return module(x_BTD, positions_of(config, kind, x_BTD.shape[1]), memory_of(config, kind, len(x_BTD)).main)


def run_compressor(reader, config, module, x_BTD):
    kind = kind_of(module)
    part = filled(reader.Compressor(config, config.head_dim, module.ratio, kind is LayerKind.CSA), module)
    return part(x_BTD, angles_of(config, kind, x_BTD.shape[1]))


def entries_not_turned(config, module, x_BTD):
    """Entries are not turned. Entry i stands at the position of its window's first token, M i."""
    with rotating(module, lambda rotate, x, turn: x):
        return compressed(config, module, x_BTD)


def entries_not_normed(config, module, x_BTD):
    """Pooled entries are not normed. They pass `norm`, and are turned after that."""
    with patch.object(module, "norm", nn.Identity()):
        return compressed(config, module, x_BTD)


def gates_are_values(config, module, x_BTD):
    """`wkv` and `wgate` have changed places. `wkv` gives values, `wgate` gives gates."""
    with swapped(module, "wkv", "wgate"):
        return compressed(config, module, x_BTD)


def ape_left_out(config, module, x_BTD):
    """The position bias `ape` is missing."""
    with patch.object(module, "ape", nn.Parameter(torch.zeros_like(module.ape))):
        return compressed(config, module, x_BTD)


plain_compressor = compressor_step("compressor", Compressor, "rms_norm rotate pool")
overlap_compressor = compressor_step("overlap_compressor", OverlapCompressor, "rms_norm rotate pool overlapped")
overlap_compressor.museum("halves_swapped", "window_0_has_zero_logits")


@overlap_compressor.mistake
def bias_halves_swapped(config, module, x_BTD):
    """The halves of the position bias are swapped. Its first half is for slots 0 to M - 1, which hold the window
    before; its second half is for slots M to 2M - 1, which hold the entry's own tokens."""
    with patch.object(module, "ape", nn.Parameter(module.ape.roll(module.entry_width, dims=1))):
        return compressed(config, module, x_BTD)


@overlap_compressor.mistake
def bias_laid_out_slot_by_slot(config, module, x_BTD):
    """The position bias is laid out slot by slot. All of its first half comes first: "m (two k) -> (two m) k"."""
    bias_SK = rearrange(module.ape, "m (two k) -> (m two) k", two=2)
    with patch.object(module, "ape", nn.Parameter(rearrange(bias_SK, "(two m) k -> m (two k)", two=2))):
        return compressed(config, module, x_BTD)
