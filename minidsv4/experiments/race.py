"""An experiment: one small V4 learns generated programs, once with Muon, once with AdamW alone, from the same start.

B batch, T tokens. Both see the same batches in the same order. The rate warms up over five steps and then stays: a
schedule that ends would flatter whichever run it was made for. Float64, so that a curve is the same on every machine.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from minidsv4.config import Config
from minidsv4.model.model import Model
from minidsv4.train.balance import balanced
from minidsv4.train.data import Batches
from minidsv4.train.muon import Muon, parameter_specs
from minidsv4.train.programs import programs
from minidsv4.train.tokenizer import Tokenizer

# Tuned alike: held-out loss after 60 steps, mean of seeds 0 to 2, on rates about 1.4 apart around the best of a coarse
# grid (AdamW 0.001 to 0.03, Muon 0.003 to 0.06, seed 0). Neighbours of the best lie within 0.1 nats for both.
RATES = {"Muon": 0.02, "AdamW": 0.014}
WARM_UP, BATCH, LENGTH = 5, 8, 32

# Held-out losses after 0, 24, ... 240 steps of `learn(seed, kind, 240, every=24, rate=0.01)`, seeds 0 to 2: each
# kind's best rate at this length, of 0.005 to 0.014 for AdamW and of 0.01 and 0.02 for Muon, two seeds or more each.
LONG_RACE = {
    "AdamW": [
        [5.77, 2.74, 1.81, 1.33, 1.02, 0.87, 0.78, 0.67, 0.62, 0.56, 0.60],
        [5.77, 2.55, 1.65, 1.28, 1.04, 0.82, 0.73, 0.71, 0.71, 0.61, 0.59],
        [5.77, 2.60, 1.73, 1.36, 1.01, 0.91, 0.90, 0.75, 0.67, 0.61, 0.58],
    ],
    "Muon": [
        [5.77, 2.36, 1.39, 0.91, 0.76, 0.68, 0.66, 0.58, 0.51, 0.54, 0.51],
        [5.77, 2.35, 1.39, 0.97, 0.80, 0.65, 0.60, 0.63, 0.57, 0.53, 0.54],
        [5.77, 2.38, 1.38, 0.95, 0.73, 0.70, 0.75, 0.65, 0.58, 0.49, 0.48],
    ],
}


def small_config() -> Config:
    """A CSA and an HCA layer, four streams, four experts: 69,221 parameters."""
    layers = dict(num_hidden_layers=2, compress_ratios=(4, 16, 0), num_nextn_predict_layers=0, sliding_window=8)
    heads = dict(num_attention_heads=4, o_groups=2, index_n_heads=4)
    sizes = dict(vocab_size=320, hidden_size=32, n_routed_experts=4, swiglu_limit=10.0)
    return Config.tiny().replace(**layers, **heads, **sizes)


@functools.cache
def task() -> tuple[list[list[int]], Tensor]:
    """Token ids of 2,000 programs to learn from, and 24 rows [B, T + 1] of others that measure the loss."""
    sources = [program.source for program in programs(seed=2, n=2000)]
    tokenizer = Tokenizer.train(sources[:300], vocab_size=320)
    unseen = tokenizer.encode_all(program.source for program in programs(seed=3, n=100))
    return tokenizer.encode_all(sources), Batches(unseen, batch_size=24, length=LENGTH, seed=0).at(0)


def optimizer(model: Model, kind: str, rate: float) -> Muon:
    """Muon, or the same class with every parameter given to its AdamW part."""
    if kind not in RATES:
        raise ValueError(f"race: kind = {kind!r} is not known; it is one of {', '.join(RATES)}")
    found = parameter_specs(model)
    return Muon(found if kind == "Muon" else [spec._replace(parts=None) for spec in found], rate)


def learn(seed: int, kind: str, n_steps: int, every: int = 5, rate: float | None = None) -> list[float]:
    """Held-out losses, nats a token, before the first step and after each `every` steps.

    seed     of the start, drawn in torch's default dtype, and of the order of the batches
    kind     "Muon" or "AdamW"
    rate     None is the tuned one
    """
    rate, (documents, unseen_BT) = rate or RATES[kind], task()
    torch.manual_seed(seed)
    model, batches = Model(small_config()).double(), Batches(documents, BATCH, LENGTH, seed)
    taught, losses = optimizer(model, kind, rate), []
    for step in range(n_steps + 1):
        if step % every == 0:
            with torch.no_grad():
                losses.append(model.loss(unseen_BT).main.item())
        if step == n_steps:
            return losses
        for group in taught.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / WARM_UP)
        with balanced(model, speed=1e-2):
            taught.zero_grad()
            model.loss(batches.at(step)).total.backward()
            taught.step()


def steps_to_reach(losses: Sequence[float], wanted: float, every: int = 5) -> float:
    """The first step at which a curve is down at `wanted`, on straight lines between its points; inf if it never is."""
    for number, (before, after) in enumerate(zip(losses, losses[1:])):
        if after <= wanted:
            return every * (number + max(0.0, (before - wanted) / (before - after)))
    return float("inf")
