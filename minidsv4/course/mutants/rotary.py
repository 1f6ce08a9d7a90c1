"""Mistakes in rotary positions."""

import math

import torch
from einops import rearrange
from torch import Tensor

from minidsv4 import ops
from minidsv4.config import LayerKind
from minidsv4.course.mutants.museum import BOTH, trap
from minidsv4.model import model
from minidsv4.model.model import Model
from minidsv4.model.rope import Positions


@trap(
    7,
    at=[(ops, "rotate")],
    symptom="Fluent at first, then worse with every position: the output depends on where the text stands.",
    found="Primus#928",
    killed_by=(*BOTH, "moving_the_text_changes_nothing"),
)
def output_not_turned_back(right, x, turn):
    """Values carry the turn of their position, being the keys too, and nobody turns the output back."""
    return x if turn.is_conj() else right(x, turn)  # only the way back is conjugate


@trap(
    8,
    at=[(Model, "positions")],
    symptom="The rotary part of a score is 1.63 times too large (factor 16) in compressed layers, at every length.",
    found="Atlas#342, Primus#928",
)
def yarn_amplitude(right, whole, *places):
    """Cosine and sine are multiplied by `0.1 ln(factor) + 1`, as generic YaRN code does; V4 does not."""
    positions = right(whole, *places)
    scaling = whole.config.rope_scaling
    factor = 1 if scaling is None else scaling.factor
    slowed = positions[LayerKind.CSA]  # the same object as that of HCA
    slowed.turn_TR = slowed.turn_TR * (0.1 * math.log(factor) + 1)
    return positions


@trap(
    9,
    at=[(model, "frequencies")],
    symptom="The layers with a window only blur their positions; short prompts hide it.",
    found="Atlas#276, 1Cat#251",
)
def window_layers_with_the_long_base(right, config, kind, dtype, device):
    """Layers with a window only get base 160000 and YaRN, which belong to CSA and HCA layers."""
    return right(config, LayerKind.CSA, dtype, device)


@trap(
    9,
    at=[(model, "frequencies")],
    symptom="Compressed layers lose distant entries; the window seems fine.",
    found="transformers#45910",
)
def compressed_layers_with_the_short_base(right, config, kind, dtype, device):
    """CSA and HCA layers get base 10000 without YaRN for their queries and entries."""
    return right(config, LayerKind.WINDOW, dtype, device)


@trap(
    10,
    at=[(ops, "rotate")],
    symptom="Positions reach channels that were trained without them: noise from the first token pair on.",
)
def first_channels_rotated(right, x, turn):
    """The first R channels of a vector are turned; it is the last R."""
    rotary = 2 * turn.shape[-1]
    return right(x.roll(-rotary, dims=-1), turn).roll(rotary, dims=-1)


@trap(
    10,
    at=[(ops, "rotate")],
    symptom="Noise with released weights; a model trained this way does not mind, so only a comparison notices.",
)
def half_split_pairs(right, x, turn):
    """Channel i is paired with channel i + R/2, as in Llama; V4 pairs neighbours."""
    rest, rotary = x[..., : -2 * turn.shape[-1]], x[..., -2 * turn.shape[-1] :]
    interleaved = torch.cat([rest, rearrange(rotary, "... (pair r) -> ... (r pair)", pair=2)], dim=-1)
    turned = right(interleaved, turn)[..., rest.shape[-1] :]
    return torch.cat([rest, rearrange(turned, "... (r pair) -> ... (pair r)", pair=2)], dim=-1)


@trap(
    11,
    at=[(Positions, "entry_turns")],
    symptom="Entries seem m times further in the past than they are: recall fails, the window is fine.",
    found="Primus#928",
)
def entries_at_their_index(right, positions, first, n_entries, ratio):
    """Compressed entry i is turned to position i; it stands at position m i."""
    return turns_of(positions, torch.arange(first, first + n_entries))


@trap(
    11,
    at=[(Positions, "entry_turns")],
    symptom="Every entry seems m - 1 tokens nearer than it is.",
)
def entries_at_the_window_end(right, positions, first, n_entries, ratio):
    """A compressed entry is turned to the position of its window's last token; it stands at the first."""
    return turns_of(positions, torch.arange(first, first + n_entries) * ratio + ratio - 1)


def turns_of(positions: Positions, places: Tensor) -> Tensor:
    """The turns of these places, in the layer's own speed."""
    angle = torch.outer(places.to(positions.frequencies_R), positions.frequencies_R)
    return torch.polar(torch.ones_like(angle), angle)
