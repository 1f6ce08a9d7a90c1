"""What is measured of the base, its specialists and what is made of them: right answers, thinking, noise of gradients.

All problems are such as nobody learned from.
"""

import copy
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from minidsv4.model.model import Model
from minidsv4.posttrain.distill import ESTIMATES, Distillation, Teachers
from minidsv4.posttrain.grpo import Sampling
from minidsv4.posttrain.tasks import N_SYMBOLS, Problem, Verdict, problems, verdict
from minidsv4.posttrain.tokens import task_tokenizer
from minidsv4.posttrain.writer import Writer

TASKS = ("sum", "run")
THINKING = ("high", "max")  # the modes that think
N_TOKENS = 16  # most of a reply: 8 states, two markers, the answer, and some to spare
MEASURED = 120  # problems of each task and mode


class Score(NamedTuple):
    """Share of right answers, and mean characters of thinking."""

    right: float
    thought: float


@torch.no_grad()
def judged(model: Model, given: Sequence[Problem], temperature: float, write: Writer) -> list[Verdict]:
    """What a model's replies to some problems are worth."""
    tokenizer = task_tokenizer()
    prompts = [tokenizer.encode_marked(problem.prompt()) for problem in given]
    replies = write(model, prompts, N_TOKENS, range(len(given)), temperature=temperature)
    return [verdict(problem, tokenizer.decode_marked(reply)) for problem, reply in zip(given, replies)]


def unseen(task: str, mode: str, seed: object, n: int = MEASURED) -> list[Problem]:
    """Problems that nobody learned from; the same for the same seed."""
    return problems(f"unseen {seed}", n, [task], [mode])


def measure(
    model: Model,
    modes: Sequence[str] = THINKING,
    n: int = MEASURED,
    seed: object = 0,
    temperature: float = 1.0,
    write: Writer | None = None,
) -> dict[str, dict[str, Score]]:
    """How a model answers unseen problems: {task: {mode: Score}}."""
    found: dict[str, dict[str, Score]] = {task: {} for task in TASKS}
    for task, mode in itertools.product(TASKS, modes):
        verdicts = judged(model, unseen(task, mode, seed, n), temperature, write or Writer())
        found[task][mode] = Score(sum(v.right for v in verdicts) / n, sum(v.n_thought for v in verdicts) / n)
    return found


def by_length(model: Model, seed: int) -> dict[str, dict[str, list[int]]]:
    """Replies in mode high that write down each state, and that skip some: {task: {which: [replies, right ones]}}."""
    found = {}
    for task in TASKS:
        verdicts = judged(model, unseen(task, "high", seed), 1.0, Writer())
        whole = [v.right for v in verdicts if v.n_thought == N_SYMBOLS]
        shorter = [v.right for v in verdicts if v.n_thought < N_SYMBOLS]
        found[task] = {"whole": [len(whole), sum(whole)], "shorter": [len(shorter), sum(shorter)]}
    return found


# --- how noisy a gradient is ---


def gradient(objective: Distillation) -> Tensor:
    """The gradient of the objective on the round it holds, all parameters that have one end to end."""
    objective.zero_grad(set_to_none=True)
    batch = objective.round.rows.batch()
    objective.loss(*batch, mtp_weight=0.0).total.backward()
    return torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None])


def gradient_noise(start: Model, teachers: dict[str, Model], n_rounds: int = 24, n_replies: int = 24) -> dict:
    """How the gradients of both estimates scatter over rounds, on the same replies.

    returns  {estimate: {"signal": |mean|^2, "noise": mean |gradient - mean|^2 of a round}}, unbiased both
    """
    sampling = Sampling(tuple(teachers), n_problems=n_replies, group=1, n_tokens=N_TOKENS, updates=1, seed=7)
    objective = Distillation(
        copy.deepcopy(start).requires_grad_(True), Teachers(teachers), task_tokenizer(), sampling, Writer()
    )
    found: dict[str, list[Tensor]] = {estimate: [] for estimate in ESTIMATES}
    for number in range(n_rounds):
        objective.batch_at(number)
        for objective.estimate in ESTIMATES:
            found[objective.estimate].append(gradient(objective))
    return {estimate: scatter(torch.stack(gradients).double()) for estimate, gradients in found.items()}


def scatter(gradients: Tensor) -> dict[str, float]:
    """Squared length of the mean of some gradients, one a row, and their mean squared distance from it; unbiased."""
    n = len(gradients)
    noise = gradients.var(dim=0, correction=1).sum().item()
    return {"signal": gradients.mean(dim=0).square().sum().item() - noise / n, "noise": noise}
