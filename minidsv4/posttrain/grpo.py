"""Group relative policy optimisation (GRPO): specialists from a base model, by rewards that a program gives.

B batch, T tokens, V vocabulary. The method is that of DeepSeekMath (2024), equations (3) and (4), which V4's report
names in section 5.1. For each problem a group of replies is written by the policy as it is. A reply's advantage is how
much better its reward is than the group's mean, in units of the group's standard deviation; so no value model is
needed. The policy then makes tokens of good replies likelier, but no token by more than a share of what it was, and it
is held near a reference.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from minidsv4.model.model import Model
from minidsv4.posttrain.objective import Objective
from minidsv4.posttrain.rows import Rows, log_probs, rows_of
from minidsv4.posttrain.tasks import MODES, Problem, Verdict, problems, verdict
from minidsv4.train.data import Batch
from minidsv4.train.tokenizer import Tokenizer

Prompts = Sequence[Sequence[int]]
Write = Callable[[Model, Prompts, int, Sequence[int], int], list[list[int]]]  # model, prompts, tokens, seeds, round
SMALLEST_STD = 1e-6


@dataclass(frozen=True)
class Sampling:
    """What is written in a round, and how often it is learned from.

    tasks       names of the tasks, in turn, in each of the modes
    n_problems  of a round
    group       replies to each problem
    n_tokens    most of a reply
    updates     steps of the optimizer on a round
    seed        of problems and replies
    modes       in which the problems are given
    """

    tasks: tuple[str, ...]
    n_problems: int = 6
    group: int = 8
    n_tokens: int = 16
    updates: int = 2
    seed: int = 0
    modes: tuple[str, ...] = MODES

    def __post_init__(self) -> None:
        for name in ("n_problems", "group", "n_tokens", "updates"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"sampling: {name} = {value!r} counts nothing; it is a whole number from 1")

    def problems_of(self, number: int) -> list[Problem]:
        """The problems of a round, from 0: each as often as its group is large, groups in one piece, sorted by task."""
        given = problems(f"round {self.seed} {number}", self.n_problems, self.tasks, self.modes)
        given.sort(key=lambda problem: self.tasks.index(problem.task))
        return [problem for problem in given for _ in range(self.group)]

    def seeds_of(self, number: int) -> list[int]:
        """The seed of each reply of a round, used in no other."""
        n_replies = self.n_problems * self.group
        first = ((self.seed << 24) + number) * n_replies
        return [*range(first, first + n_replies)]


class Round(NamedTuple):
    """What the policy wrote: problems, rows of prompts and replies, and what each reply is worth."""

    given: list[Problem]
    rows: Rows
    verdicts: list[Verdict]


def written_round(policy: Model, tokenizer: Tokenizer, sampling: Sampling, write: Write, number: int) -> Round:
    """Round `number` of a run: replies of the policy as it is now."""
    given = sampling.problems_of(number)
    prompts = [tokenizer.encode_marked(problem.prompt()) for problem in given]
    replies = write(policy, prompts, sampling.n_tokens, sampling.seeds_of(number), number)
    verdicts = [verdict(problem, tokenizer.decode_marked(reply)) for problem, reply in zip(given, replies)]
    return Round(given, rows_of(prompts, replies), verdicts)


@dataclass(frozen=True)
class Rewards:
    """A right answer is worth 1, less what its thinking costs; a wrong one, or no reply of the format, nothing.

    price  of a character of thinking, in each mode; so no mode is rewarded for being short and wrong
    """

    price: dict[str, float] = field(default_factory=lambda: {"none": 0.0, "high": 0.1, "max": 0.0})

    def of(self, mode: str, found: Verdict) -> float:
        """The reward of a reply."""
        return max(0.0, 1.0 - self.price[mode] * found.n_thought) if found.right else 0.0


def advantages(reward_B: Tensor, group: int) -> Tensor:
    """`(reward - mean) / std` within each group of neighbours [B].

    It is 0 where all of a group are worth the same.
    """
    reward = reward_B.unflatten(0, (-1, group))
    spread = reward - reward.mean(dim=1, keepdim=True)
    std = spread.square().mean(dim=1, keepdim=True).sqrt()
    return (spread / (std + SMALLEST_STD)).flatten()


class Surrogate(NamedTuple):
    """Parts of the GRPO loss: what is to be minimised, KL to the reference, share of tokens where the clip bites."""

    policy: Tensor
    kl: Tensor
    clipped: Tensor


def surrogate(
    log_prob_T: Tensor,
    old_T: Tensor,
    reference_T: Tensor,
    advantage_T: Tensor,
    weight_T: Tensor,
    clip: float,
) -> Surrogate:
    """`-sum w min(r A, clip(r, 1 - eps, 1 + eps) A)`, and `sum w (q - log q - 1)`.

    r = new / old probability, q = reference / new probability. The second sum is
    Schulman's estimate of KL(new || reference): unbiased, never below 0.

    log_prob_T   of the written tokens, by the policy that learns; the others are given
    old_T        by the policy that wrote them
    reference_T  by the reference
    weight_T     of each token: 1 / (number of replies x length of its reply)
    """
    ratio_T = (log_prob_T - old_T).exp()
    bounded_T = ratio_T.clamp(1 - clip, 1 + clip)
    gain_T = torch.minimum(ratio_T * advantage_T, bounded_T * advantage_T)
    log_q_T = reference_T - log_prob_T
    kl_T = log_q_T.exp() - log_q_T - 1
    biting_T = (bounded_T * advantage_T < ratio_T * advantage_T).to(weight_T.dtype)
    return Surrogate(
        policy=-(weight_T * gain_T).sum(),
        kl=(weight_T * kl_T).sum(),
        clipped=(weight_T * biting_T).sum(),
    )


class GRPOLosses(NamedTuple):
    """`total = main + kl_weight kl`; clipped is a share of tokens."""

    total: Tensor
    main: Tensor
    kl: Tensor
    clipped: Tensor


class GRPO(Objective):
    """A policy that learns from rewards.

    policy     learns
    reference  stays as it is; the policy is held near it
    write      writes replies to prompts, such as `Writer`
    clip       eps: how far a token's probability may move in a round, as a share
    kl_weight  of the KL to the reference
    """

    def __init__(
        self,
        policy: Model,
        reference: Model,
        tokenizer: Tokenizer,
        sampling: Sampling,
        write: Write,
        rewards: Rewards | None = None,
        clip: float = 0.2,
        kl_weight: float = 0.01,
    ):
        super().__init__(policy)
        self.frozen = [reference.requires_grad_(False).eval()]  # in a list: it is no part
        self.tokenizer, self.sampling, self.write = tokenizer, sampling, write
        self.rewards, self.clip, self.kl_weight = rewards or Rewards(), clip, kl_weight

    def batch_at(self, step: int) -> Batch:
        """The batch of a step, from 0; the first step of a round writes it."""
        number, update = divmod(step, self.sampling.updates)
        if update == 0:
            self.take(written_round(self.policy, self.tokenizer, self.sampling, self.write, number))
        return self.round.rows.batch()

    @torch.no_grad()
    def take(self, written: Round) -> None:
        """Judge a round, and note what the policy that wrote it and the reference say on its tokens."""
        self.round, rows = written, written.rows
        reward_B = torch.tensor([self.rewards.of(p.mode, v) for p, v in zip(written.given, written.verdicts)])
        self.advantage_T = rows.of_tokens(advantages(reward_B, self.sampling.group))
        self.weight_T = rows.of_tokens(1 / (len(reward_B) * rows.lengths()))
        self.old_T = log_probs(self.policy, rows)
        self.reference_T = log_probs(self.frozen[0], rows)
        self.reward = reward_B.mean().item()

    def loss(self, ids_BT: Tensor, document_BT: Tensor, mtp_weight: float) -> GRPOLosses:
        """The losses of the round that `batch_at` gave last."""
        assert torch.equal(self.round.rows.ids_BT, ids_BT)
        log_prob_T = log_probs(self.policy, self.round.rows)
        parts = surrogate(log_prob_T, self.old_T, self.reference_T, self.advantage_T, self.weight_T, self.clip)
        return GRPOLosses(parts.policy + self.kl_weight * parts.kl, *parts)

    def told(self) -> dict:
        """What there is to log of the round."""
        return {"reward": self.reward} | summary(self.round.given, self.round.verdicts)


def summary(given: Sequence[Problem], verdicts: Sequence[Verdict]) -> dict:
    """Share of right answers, and mean characters of thinking, of each mode."""
    found = {}
    for mode in MODES:
        of_mode = [v for problem, v in zip(given, verdicts) if problem.mode == mode]
        if of_mode:
            found[f"right, {mode}"] = sum(v.right for v in of_mode) / len(of_mode)
            found[f"thought, {mode}"] = sum(v.n_thought for v in of_mode) / len(of_mode)
    return found
