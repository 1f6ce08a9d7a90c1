"""An experiment: a small model learns programs, and for a few steps its learning rate is far too high.

B batch, T tokens. Once plain and once with anticipatory routing, from the same state on, on the same batches.
"""

import copy
import dataclasses
import functools

import torch

from minidsv4.config import Config
from minidsv4.model.model import Model
from minidsv4.train.data import Batches
from minidsv4.train.loop import Trainer
from minidsv4.train.programs import programs
from minidsv4.train.recipe import Recipe
from minidsv4.train.routing import Anticipation
from minidsv4.train.tokenizer import Tokenizer

CONFIG = Config.tiny().replace(
    vocab_size=300,
    num_hidden_layers=2,
    compress_ratios=(0, 0, 0),
    num_hash_layers=0,
    swiglu_limit=10.0,
    num_nextn_predict_layers=0,
    hc_sinkhorn_iters=6,
)


@functools.cache
def provoked_spike(seed, calm=30, after=12, fault=6, factor=30):
    """Notebook 10: a small model learns programs; then the learning rate is `factor` times too high for `fault` steps.

    returns  ("off", "on"): the loss of one fixed batch before and after each of `after` steps from the same state on,
             plain and with anticipatory routing of delay 4
    """
    batches, recipe = small_batches(seed), functools.partial(Recipe, steps=1 << 30, warm_up=5)
    torch.manual_seed(seed)
    first = Trainer(Model(CONFIG).double(), batches.at, recipe(rate=1e-2))
    for step in range(calm):
        first.learn(batches.at(step))
    return tuple(_through_fault(first, anticipation, after, fault, factor) for anticipation in (None, Anticipation(4)))


def small_batches(seed):
    """Generated programs in rows of 24 tokens, four a batch."""
    return Batches(documents(), batch_size=4, length=24, seed=seed)


@functools.cache
def documents():
    """Token ids of 200 programs, the same for every seed."""
    sources = [program.source for program in programs(seed=0, n=200)]
    return Tokenizer.train(sources, vocab_size=300).encode_all(sources)


def _through_fault(first, anticipation, after, fault, factor):
    """The losses of `provoked_spike` from a copy of a trainer on."""
    trainer = Trainer(copy.deepcopy(first.model), first.batch_at, first.recipe)
    trainer.load_state_dict(copy.deepcopy(first.state_dict()))
    trainer.anticipation, probe, losses = anticipation, first.batch_at(1 << 20), []
    for step in range(after + 1):
        with torch.no_grad():
            losses.append(trainer.model.loss(probe).main.item())
        if step == after:
            break
        rate = first.recipe.rate * (factor if step < fault else 1)
        trainer.recipe = dataclasses.replace(first.recipe, rate=rate)
        trainer.learn(first.batch_at(trainer.step))
    return losses
