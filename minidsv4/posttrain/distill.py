"""On-policy distillation: one student of many teachers, on texts that the student itself writes.

B batch, T tokens, D width, V vocabulary. Report eq. (29): `L = sum_i w_i KL(student || teacher_i)`, the reverse KL
divergence over the full vocabulary at every position. Teachers are large, so only their last hidden states are kept
[T, D], and their logits are rebuilt by their heads when they are needed; rows are sorted by teacher, so one head is in
memory at a time. The usual estimate from the sampled token alone is here for comparison: its mean is right, its
gradient noisy.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from minidsv4.checkpoint import load
from minidsv4.model.model import Model
from minidsv4.posttrain.grpo import Round, Sampling, Write, summary, written_round
from minidsv4.posttrain.objective import Objective
from minidsv4.posttrain.rows import Rows, hidden_of, picked, vocabulary_log_probs
from minidsv4.train.data import Batch
from minidsv4.train.tokenizer import Tokenizer


def full_kl(student_TV: Tensor, teacher_TV: Tensor) -> Tensor:
    """`KL(student || teacher) = sum_v p_v (log p_v - log q_v)` of each position [T].

    Both arguments are log-probabilities. Its gradient in the student's logits is
    `p_v (log p_v - log q_v - KL)`.
    """
    return (student_TV.exp() * (student_TV - teacher_TV)).sum(dim=-1)


def sampled_kl(student_TV: Tensor, teacher_TV: Tensor, token_T: Tensor) -> Tensor:
    """An estimate of `full_kl` [T]: `log p - log q` of the token that the student drew.

    Its gradient is `(log p - log q) grad log p` (REINFORCE), whose mean over drawn
    tokens is that of `full_kl`. The value is exact, the gradient is that of the
    product.
    """
    log_prob_T = picked(student_TV, token_T)
    excess_T = (log_prob_T - picked(teacher_TV, token_T)).detach()
    return excess_T * (log_prob_T - log_prob_T.detach()) + excess_T


ESTIMATES = ("full", "sampled")


class Teachers:
    """Models to learn from, read when they are needed.

    sources   a folder of a model, or a model, by name; rows of a task are taught by the one of its name
    resident  names of the heads that are in memory now; `most` is how many there ever were at once
    """

    def __init__(self, sources: Mapping[str, str | Path | Model]):
        self.sources = dict(sources)
        self.resident: list[str] = []
        self.most = 0

    def model(self, name: str) -> Model:
        """A teacher, read from its folder if it lies there."""
        source = self.sources[name]
        return source if isinstance(source, Model) else load(source)

    @torch.no_grad()
    def hidden(self, name: str, rows: Rows) -> Tensor:
        """Its last hidden states on the tokens of the replies [T, D]: all that is kept of its pass."""
        return hidden_of(self.model(name), rows)

    @contextmanager
    def head(self, name: str) -> Iterator[Tensor]:
        """Its head [V, D], inside the block."""
        self.resident.append(name)
        self.most = max(self.most, len(self.resident))
        try:
            yield self.model(name).head.weight.detach()
        finally:
            self.resident.remove(name)


class DistillLosses(NamedTuple):
    """`total = sum_i w_i KL_i`, a mean over the tokens of each teacher's rows; main is its value."""

    total: Tensor
    main: Tensor


class Distillation(Objective):
    """A student that learns from teachers.

    policy    the student
    teachers  one a task of `sampling`
    weights   w_i of each teacher; 1 where None
    estimate  "full", or "sampled"
    """

    def __init__(
        self,
        policy: Model,
        teachers: Teachers,
        tokenizer: Tokenizer,
        sampling: Sampling,
        write: Write,
        weights: Mapping[str, float] | None = None,
        estimate: str = "full",
    ):
        super().__init__(policy)
        missing = [task for task in sampling.tasks if task not in teachers.sources]
        if missing or estimate not in ESTIMATES:
            raise ValueError(
                f"distillation: tasks without a teacher: {missing}, estimate = {estimate!r}; give every task one, and "
                f"one of {ESTIMATES}"
            )
        self.teachers, self.tokenizer = teachers, tokenizer
        self.sampling, self.write, self.estimate = sampling, write, estimate
        self.weights = dict.fromkeys(sampling.tasks, 1.0) | dict(weights or {})

    def batch_at(self, step: int) -> Batch:
        """The batch of a step, from 0; the first step of a round writes it, and asks the teachers."""
        number, update = divmod(step, self.sampling.updates)
        if update == 0:
            self.take(written_round(self.policy, self.tokenizer, self.sampling, self.write, number))
        return self.round.rows.batch()

    def take(self, written: Round) -> None:
        """Keep what each teacher's last layer says on its rows, which lie in one piece."""
        self.round = written
        self.slices = slices_of([problem.task for problem in written.given])
        parts = {name: part_of(written.rows, rows) for name, rows in self.slices.items()}
        self.hidden = {name: self.teachers.hidden(name, part) for name, part in parts.items()}

    def loss(self, ids_BT: Tensor, document_BT: Tensor, mtp_weight: float) -> DistillLosses:
        """The divergence on the round that `batch_at` gave last."""
        rows = self.round.rows
        assert torch.equal(rows.ids_BT, ids_BT)
        student_TV = vocabulary_log_probs(hidden_of(self.policy, rows), self.policy.head.weight)
        counts = [int(part_of(rows, place).lengths().sum()) for place in self.slices.values()]
        total = student_TV.new_zeros(())
        for name, log_probs_TV, token_T in zip(self.slices, student_TV.split(counts), rows.written().split(counts)):
            with self.teachers.head(name) as head_VD:
                teacher_TV = vocabulary_log_probs(self.hidden[name], head_VD)
            total = total + self.weights[name] * self.divergence(log_probs_TV, teacher_TV, token_T).mean()
        return DistillLosses(total, total.detach())

    def divergence(self, student_TV: Tensor, teacher_TV: Tensor, token_T: Tensor) -> Tensor:
        """KL of each position, or its estimate [T]."""
        if self.estimate == "full":
            return full_kl(student_TV, teacher_TV)
        return sampled_kl(student_TV, teacher_TV, token_T)

    def told(self) -> dict:
        """What there is to log of the round."""
        return summary(self.round.given, self.round.verdicts)


def slices_of(names: Sequence[str]) -> dict[str, slice]:
    """Where the rows of each name lie.

    raises  ValueError where those of one name lie in several pieces: they are sorted, so that a head is read once
    """
    found: dict[str, slice] = {}
    start = 0
    for place in range(1, len(names) + 1):
        if place == len(names) or names[place] != names[start]:
            if names[start] in found:
                raise ValueError(f"distillation: rows of teacher {names[start]!r} lie in several pieces; sort them")
            found[names[start]] = slice(start, place)
            start = place
    return found


def part_of(rows: Rows, place: slice) -> Rows:
    """Some of the rows."""
    return Rows(*(part[place] for part in rows))
