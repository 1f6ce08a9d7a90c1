"""Anticipatory routing: experts are picked with parameters of some steps ago, while all else is current.

T tokens, A active experts. Report section 4.2.3: at step t the features are computed with the present parameters, but
which experts they visit was computed, and kept, at step t - delay; the weights of those experts are current and have
gradients. It is off until a spike of the loss is seen; then training goes back a little, and it is on for a while.
The delay, what counts as a spike, how far back and for how long are not disclosed: the numbers here are ours.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from minidsv4.model.layer import watch
from minidsv4.model.moe import LearnedRouter
from minidsv4.train.data import Batch
from minidsv4.train.loop import Trainer, inputs


@torch.no_grad()
def picked_experts(model: nn.Module, batch: Tensor | Batch) -> list[Tensor]:
    """What every learned router picks in a training step on this batch: [B, T, A] for each call, in their order."""
    with watch(model, LearnedRouter) as calls:
        model.loss(**inputs(batch, model))
    return [routed.picked_BTA for _, _, routed in calls]


@contextmanager
def fixed_routing(model: nn.Module, picks: Iterable[Tensor]) -> Iterator[None]:
    """Inside, each call of a learned router takes the next of these picks; its scores and weights are its own.

    raises  ValueError where picks are of another shape than the call's, or run out, or are left over
    """
    routers = [module for module in model.modules() if isinstance(module, LearnedRouter)]
    remaining = list(picks)

    def pick(score_BTE: Tensor, _ids_BT: Tensor) -> Tensor:
        if not remaining or remaining[0].shape[:2] != score_BTE.shape[:2]:
            given = tuple(remaining[0].shape[:2]) if remaining else "none"
            raise ValueError(f"fixed_routing: picks for {given} tokens do not fit {tuple(score_BTE.shape[:2])}")
        return remaining.pop(0)

    before = [vars(router).get("pick") for router in routers]  # of a routing that is fixed around this one
    for router in routers:
        router.pick = pick
    try:
        yield
    finally:
        for router, fixed in zip(routers, before):
            del router.pick
            if fixed is not None:
                router.pick = fixed
    if remaining:
        raise ValueError(f"fixed_routing: {len(remaining)} picks are left over; the routers were called less often")


class Anticipation:
    """Picks for the batches to come, computed `delay` steps before they are used.

    A delay of 0 changes nothing. Right after it was switched on the picks are as old as
    they can be: those of the step at which that was.
    """

    def __init__(self, delay: int):
        if delay < 0:
            wrong = f"anticipation: delay = {delay} looks into the future"
            raise ValueError(f"{wrong}; it is 0 or more steps")
        self.delay, self.ahead = delay, {}

    def at(self, trainer: Trainer, batch: Tensor | Batch) -> AbstractContextManager:
        """Look ahead with the present parameters, then fix this step's routing.

        It is fixed to what was found for this step earlier.
        """
        for step in range(trainer.step, trainer.step + self.delay + 1):
            if step not in self.ahead:
                coming = batch if step == trainer.step else trainer.batch_at(step)
                with trainer.stage(step).of(trainer.model):
                    self.ahead[step] = picked_experts(trainer.model, coming)
        return fixed_routing(trainer.model, self.ahead.pop(trainer.step))


@dataclass(frozen=True)
class Guard:
    """When to step in, and how. All numbers are ours.

    jump    a spike is a loss so many nats above the median of the last `span`
    every   steps between the states that are kept to go back to, of which the last but one is taken
    delay   of the anticipation, steps
    lasts   steps for which it is on; 0 goes back without it
    """

    jump: float = 1.0
    span: int = 16
    every: int = 8
    delay: int = 4
    lasts: int = 40


class GuardedTrainer(Trainer):
    """A trainer that goes back when the loss spikes, and anticipates the routing for a while from there."""

    def __init__(self, *words, guard: Guard | None = None, **more):
        super().__init__(*words, **more)
        self.guard, self.kept, self.off_at, self.rollbacks = guard or Guard(), [], 0, []

    def learn(self, batch: Tensor | Batch) -> dict:
        """One step; after a spike the trainer stands at an earlier one, which the record says."""
        if self.step % self.guard.every == 0:
            self.kept = [*self.kept, self.snapshot()][-2:]
        if self.step >= self.off_at:
            self.anticipation = None
        record = super().learn(batch)
        if self.anticipation is None and self.spiked():
            record |= {"rolled_back_to": self.go_back()}
        return record

    def spiked(self) -> bool:
        """Whether the last loss stands out."""
        before = self.losses[-1 - self.guard.span : -1]
        return len(before) == self.guard.span and self.losses[-1] > median(before) + self.guard.jump

    def snapshot(self) -> dict:
        """All that the next steps depend on."""
        return copy.deepcopy({"model": self.model.state_dict(), "trainer": super().state_dict()})

    def go_back(self) -> int:
        """Take up the oldest state that is kept, and anticipate from there; returns its step."""
        seconds, state = self.seconds, copy.deepcopy(self.kept[0])
        self.model.load_state_dict(state["model"])
        super().load_state_dict(state["trainer"])
        self.seconds, self.kept = seconds, self.kept[:1]
        self.rollbacks.append(self.step)
        self.off_at = self.step + self.guard.lasts
        self.anticipation = Anticipation(self.guard.delay) if self.guard.lasts else None
        return self.step

    def state_dict(self) -> dict:
        """As a plain trainer's, with what is kept to go back to."""
        own = {name: getattr(self, name) for name in ("kept", "off_at", "rollbacks")}
        return super().state_dict() | own | {"ahead": self.anticipation and dict(self.anticipation.ahead)}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        for name in ("kept", "off_at", "rollbacks"):
            setattr(self, name, state[name])
        self.anticipation = None
        if state["ahead"] is not None:
            self.anticipation = Anticipation(self.guard.delay)
            self.anticipation.ahead = dict(state["ahead"])
