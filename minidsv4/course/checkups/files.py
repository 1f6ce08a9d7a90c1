"""Checkups of what is read from files."""

import copy
import tempfile

import torch

from minidsv4 import config_json
from minidsv4.checkpoint import load, save
from minidsv4.config import Config
from minidsv4.course.checkups.subject import CONFIG, CSA, HCA, WINDOW, subject
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


def weights_of_8_bits_come_back_with_their_scales():
    """Matrices that were saved in 8 bits and loaded are off by a sixteenth at most, those of the MTP block too."""
    model, _ = subject()
    with tempfile.TemporaryDirectory() as folder:
        loaded = load(save(model, folder, precision="fp8")).state_dict()
    for name, tensor in model.state_dict().items():
        off = (loaded[name] - tensor).double().norm()
        assert off <= tensor.double().norm() / 16, f"{name} is off by {off:.1e}"  # 2^-4 of each number, as in fp8.py


def the_last_ratio_is_that_of_the_mtp_block():
    """A released config, which names no kinds of layers, has a ratio for each layer and one for the MTP block."""
    fields = CONFIG.to_dict() | {"compress_ratios": [0, 128, 4, 0]}
    del fields["layer_types"], fields["mlp_layer_types"]
    config = Config.from_dict(config_json.released(fields))
    assert config.num_hidden_layers == 3
    assert config.layer_types == (WINDOW, HCA, CSA, WINDOW)


def four_bits_are_read_as_the_format_says():
    """The byte 2F holds code F, -6, for the even column and code 2, 1.0, for the odd one; scale byte 128 doubles."""
    packed = torch.full((1, 16), 0x2F, dtype=torch.uint8).view(torch.int8)
    scale = torch.tensor([[128]], dtype=torch.uint8).view(torch.float8_e8m0fnu)
    assert mxfp4.dequantise(packed, scale)[0, :4].tolist() == [-12.0, 2.0, -12.0, 2.0]
