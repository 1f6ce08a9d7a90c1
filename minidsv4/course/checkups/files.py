"""Checkups of what is read from files."""

import copy
import tempfile

import torch

from minidsv4.checkpoint import load, save
from minidsv4.course.checkups.subject import subject
from minidsv4.lowbit import mxfp4
from minidsv4.model.model import Model


def changed_by_a_file(model: Model) -> list[str]:
    """Names of the tensors that come back otherwise when the model is held in 16 bits, saved and loaded."""
    narrow = copy.deepcopy(model).bfloat16()
    with tempfile.TemporaryDirectory() as folder:
        loaded = load(save(narrow, folder)).state_dict()
    return [name for name, tensor in narrow.state_dict().items() if not identical(tensor, loaded[name])]


def identical(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have the same type and the same numbers."""
    return one.dtype == other.dtype and torch.equal(one, other)


def a_saved_model_comes_back_as_it_was():
    """A model of 16 bits, saved and loaded, has the same numbers in the same types: what was float32 is float32."""
    changed = changed_by_a_file(subject()[0])
    assert not changed, f"{len(changed)} tensors came back otherwise, the first is {changed[0]}"


def four_bits_are_read_as_the_format_says():
    """The byte 2F holds code F, -6, for the even column and code 2, 1.0, for the odd one; scale byte 128 doubles."""
    packed = torch.full((1, 16), 0x2F, dtype=torch.uint8).view(torch.int8)
    scale = torch.tensor([[128]], dtype=torch.uint8).view(torch.float8_e8m0fnu)
    assert mxfp4.dequantise(packed, scale)[0, :4].tolist() == [-12.0, 2.0, -12.0, 2.0]
