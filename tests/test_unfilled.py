"""A model that is built for its shapes: those of the model itself, with nothing drawn and nothing held."""

import subprocess
import sys

import pytest
import torch
from small import TINY

import minidsv4 as v4
from minidsv4.model.model import Model
from minidsv4.unfilled import unfilled

LARGE = TINY.replace(hidden_size=512, vocab_size=5000, n_routed_experts=64)  # matrices of more numbers than a constant


@pytest.mark.parametrize("config", [TINY, LARGE, v4.Config.mini()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_names_shapes_and_types_are_those_of_the_model_and_all_lies_on_meta(config, dtype):
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        expected, found = Model(config), unfilled(Model, config)
    finally:
        torch.set_default_dtype(before)
    expected = [(name, tensor.shape, tensor.dtype) for name, tensor in everything(expected)]
    assert [(name, tensor.shape, tensor.dtype) for name, tensor in everything(found)] == expected
    assert all(tensor.is_meta for _, tensor in everything(found))


def everything(model):
    """Parameters and buffers by name, the constants that no checkpoint holds among them."""
    return [*model.named_parameters(), *model.named_buffers()]


def test_nothing_is_drawn():
    before = torch.get_rng_state()
    unfilled(Model, TINY)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_released_model_has_its_shapes_at_once():
    """Kind: a matrix that is made before it is dropped; one layer's experts are 34 GB."""
    model = unfilled(Model, v4.Config.pro())
    assert sum(parameter.numel() for parameter in model.parameters()) > 1.5e12


@pytest.mark.slow
def test_loading_a_model_does_not_load_torchs_compiler():
    """Kind: an operation on the meta device that torch runs in Python, which cost every command a second."""
    script = "import sys, minidsv4; minidsv4.load_pretrained(); print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
