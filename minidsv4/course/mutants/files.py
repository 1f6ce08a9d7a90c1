"""Mistakes in reading checkpoints."""

import torch

from minidsv4.checkpoint import loading
from minidsv4.course.mutants.museum import trap
from minidsv4.lowbit import mxfp4


@trap(
    at=[(loading, "from_released")],
    symptom="Nothing is refused and text stays fluent; mixes, sinks and balancing biases have lost 16 of 24 bits.",
    found="transformers#46167, Automodel#2143",
    killed_by=("a_saved_model_comes_back_as_it_was",),
)
def float32_tensors_rounded(right, tensors):
    """All tensors take the type of the embedding, also those that a release keeps in float32 among 16 bits."""
    state = right(tensors)
    dtype = state["embed.weight"].dtype
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}


@trap(
    44,
    at=[(mxfp4, "unpack")],
    symptom="Neighbours of every row have changed places: all sizes and sums fit, all products are noise.",
    killed_by=("four_bits_are_read_as_the_format_says",),
)
def high_half_first(right, packed):
    """The high half of a byte is read before the low half; the low half holds the even column."""
    code = right(packed)
    return torch.stack([code[..., 1::2], code[..., ::2]], -1).flatten(-2)
