"""Mistakes in reading checkpoints."""

import torch

from minidsv4 import config_json
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


@trap(
    45,
    at=[(loading, "widened")],
    symptom="Answers are right; drafts are noise and hardly one is accepted, so that drafting costs time.",
    found="llm-compressor#2739, vllm#56054",
    killed_by=("weights_of_8_bits_come_back_with_their_scales",),
)
def mtp_left_as_codes(right, held):
    """Matrices with a scale are found by a pattern for `layers.N`; those of `mtp.N` are taken without theirs."""
    tensors = right(held)
    for name in tensors:
        if name.startswith("mtp.") and held[name].dtype == torch.float8_e4m3fn:
            tensors[name] = held[name].float()
    return tensors


@trap(
    46,
    at=[(config_json, "released_schedule")],
    symptom="The model has a layer more than its files: a loader refuses, or leaves it random, and the text is noise.",
    killed_by=("the_last_ratio_is_that_of_the_mtp_block",),
)
def layer_for_the_last_ratio(right, fields):
    """There is a layer for each of the L + 1 ratios of a released config; the last is that of the MTP block."""
    if "layer_types" in fields:  # no config of a release: it names the kinds
        return right(fields)
    ratios = fields["compress_ratios"]
    return {"num_hidden_layers": len(ratios), "compress_ratios": [*ratios, 0]}
