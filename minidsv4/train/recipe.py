"""A training recipe: how long, how fast, and with which optimizer a run learns.

Report section 4.2.2 for its shape; the numbers are for a model of a few million parameters.
"""

import math
from dataclasses import dataclass

from minidsv4.config_check import FROM_0, Rule, counts, list_of, number, shown
from minidsv4.model.losses import MTP_WEIGHT

LOWEST_RATE = 0.1  # of the peak, at the end of the cosine


def or_none(rule: Rule) -> Rule:
    """The rule of a field that may be left out."""
    return Rule(lambda value: value is None or rule.fits(value), rule.right)


PAIR = Rule(lambda value: list_of(FROM_0.fits, "").fits(value) and len(value) == 2, "it is two numbers from 0")
RULES = {  # of each field of a recipe
    "steps": or_none(counts(1, 2**40)),
    "seconds": or_none(number()),
    "rate": number(),
    "warm_up": counts(1, 2**40),
    "decay": Rule(lambda value: number().fits(value) and value <= 1, "it is a share of the budget above 0, up to 1"),
    "optimizer": Rule(lambda value: value in ("adamw", "muon"), "it is 'adamw' or 'muon'"),
    "weight_decay": FROM_0,
    "clip": number(),
    "balance_speed": FROM_0,
    "mtp_weights": PAIR,
}


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to learn; at least one of `steps` and `seconds` is given, and the first reached ends it.

    rate           peak of the learning rate
    warm_up        steps from 0 to the peak, from 1; the cosine falls to a tenth of it at the end of the budget
    decay          the last share of the budget, over which the cosine falls; before, the rate is constant
    optimizer      "adamw" or "muon"
    weight_decay   of matrices; vectors (norms, sinks, biases) have none under AdamW
    clip           largest norm of all gradients together, the indexers' aside, which have one of their own
    balance_speed  how far a router's bias moves in a step; ten times V4's, since runs are short
    mtp_weights    of the MTP loss: before the decay, and from its start on
    raises         ValueError without a budget, or for a value that no run can have, by the field's name
    """

    steps: int | None = None
    seconds: float | None = None
    rate: float = 3e-3
    warm_up: int = 30
    decay: float = 1.0
    optimizer: str = "adamw"
    weight_decay: float = 0.1
    clip: float = 1.0
    balance_speed: float = 1e-2
    mtp_weights: tuple[float, float] = (MTP_WEIGHT, MTP_WEIGHT)

    def __post_init__(self):
        if self.steps is None and self.seconds is None:
            raise ValueError("recipe: neither steps nor seconds is given; training needs an end")
        for name, rule in RULES.items():
            value = getattr(self, name)
            if not rule.fits(value):
                raise ValueError(f"recipe: {name} = {shown(value)} cannot be; {rule.right}")

    def progress(self, step: int, seconds: float) -> float:
        """The share of the budget that is used, 1 at the end."""
        return max(step / (self.steps or math.inf), seconds / (self.seconds or math.inf))

    def rate_at(self, step: int, progress: float) -> float:
        """Linear warm-up, constant, then a cosine over the last part of the budget."""
        cosine = (1 + math.cos(math.pi * min(1.0, max(0.0, self.fallen(progress))))) / 2
        return self.rate * min(1.0, (step + 1) / self.warm_up) * (LOWEST_RATE + (1 - LOWEST_RATE) * cosine)

    def fallen(self, progress: float) -> float:
        """How far the decay is: below 0 before its start, 1 at the end."""
        return (progress - (1 - self.decay)) / self.decay

    def mtp_weight(self, progress: float) -> float:
        """Of the MTP loss."""
        return self.mtp_weights[self.fallen(progress) >= 0]
