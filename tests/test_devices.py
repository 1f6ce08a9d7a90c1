"""Everything runs on the device that the model is on, and gives there what it gives on the CPU.

Kind of each test: equal to the CPU's numbers, on a device that refuses to mix tensors with the CPU's, and float64.
"""

import copy

import pytest
import torch
from other_device import OTHER, OtherDevice
from small import both_tables

import minidsv4 as v4
from minidsv4 import Config, Model
from minidsv4.train.data import Batches, Mixture, Packed
from minidsv4.train.loop import Trainer
from minidsv4.train.recipe import Recipe
from minidsv4.train.tokenizer import Tokenizer

generate = torch.no_grad()(v4.generate.__wrapped__)  # tensors of `inference_mode` cannot be wrapped by a test
TEXTS = [f"def f{i}(x):\n    return x + {i}\n" * (1 + i % 3) for i in range(40)]


@pytest.fixture(autouse=True)
def other_device():
    with OtherDevice():
        yield


@pytest.fixture
def models():
    """The same model twice: on the CPU, and on the other device."""
    torch.manual_seed(0)
    model = Model(Config.tiny().replace(vocab_size=300)).float()
    return model, copy.deepcopy(model).to(OTHER)


def documents():
    """Token ids of some documents."""
    return Tokenizer.train(TEXTS, vocab_size=300).encode_all(TEXTS)


def batches():
    """Rows without gaps, and packed rows with padding."""
    yield Batches(documents(), batch_size=2, length=36, seed=0)
    yield Mixture([Packed(documents(), length=36, seed=0, align=12)], [1], batch_size=2, seed=0)


def same(here, there):
    """Whether two results are equal, the second one being on the other device where it is a tensor."""
    if isinstance(here, torch.Tensor):  # float32; sums of gradients are taken in another order there
        return there.device == OTHER and torch.allclose(here, there.cpu(), rtol=1e-4, atol=1e-7)
    if isinstance(here, float):
        return here == pytest.approx(there, rel=1e-4)
    if isinstance(here, tuple | list):
        return len(here) == len(there) and all(map(same, here, there))
    return here == there


@both_tables
def test_losses_and_gradients_are_those_of_the_cpu(models, table):
    for rows in batches():
        results = []
        for model in models:
            model.use(table).zero_grad()
            trainer = Trainer(model, rows.at, Recipe(steps=1))
            trainer.learn(rows.at(0))
            results.append([trainer.losses[0], *(p.grad for p in model.parameters())])
        assert all(map(same, *results)) and len(results[0]) > 50
