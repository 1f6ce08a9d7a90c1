"""An experiment: two specialists by GRPO from one base, and three ways to make one model of both.

    python -m minidsv4.experiments.specialists FOLDER  train and measure all, keep it in assets/ (25 CPU minutes)

The ways: on-policy distillation from both, the mean of both models' weights, and GRPO on both tasks' rewards together,
with as much computing as the specialists and the distillation took. Three seeds, of problems and of what is sampled;
the base is the same. A killed run goes on when it is called again.
"""

import copy
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from minidsv4.checkpoint import load, save
from minidsv4.config import Config
from minidsv4.files import atomic_file, atomic_folder
from minidsv4.model.model import Model
from minidsv4.posttrain.distill import ESTIMATES, Distillation, Teachers
from minidsv4.posttrain.grpo import GRPO, Sampling
from minidsv4.posttrain.imitation import Imitation
from minidsv4.posttrain.objective import Objective
from minidsv4.posttrain.run import LOG, PostTraining
from minidsv4.posttrain.tasks import MODES, TEXTS, problems, verdict
from minidsv4.posttrain.tokens import VOCAB_SIZE, task_tokenizer
from minidsv4.posttrain.writer import Writer
from minidsv4.serve.chat_format import TEXTS_FILE
from minidsv4.train.recipe import Recipe
from minidsv4.train.ship import POST_TRAINED, SHIPPED_CHAT, TOKENIZER

SEEDS = (0, 1, 2)
TASKS = ("sum", "run")
BASE_STEPS, BASE_BATCH, BASE_RATE = 1000, 64, 0.02
ROUNDS, STUDENT_ROUNDS, MIXED_ROUNDS = 40, 40, 102  # the last: (2 x 40 x 9 + 40 x 5) / 9, in passes
GRPO_RATE, STUDENT_RATE = 0.008, 0.008
N_TOKENS = 16  # most of a reply: 8 states, two markers, the answer, and some to spare
FILE = Path(__file__).resolve().parents[1] / "assets" / "specialists.json"
MEASURED = 120  # problems of each task and mode, which nobody learned from


def small_config() -> Config:
    """Three layers, window, CSA and HCA, eight experts: 330 thousand parameters."""
    layers = dict(num_hidden_layers=3, compress_ratios=(0, 4, 16, 0), num_nextn_predict_layers=0, num_hash_layers=1)
    heads = dict(num_attention_heads=4, head_dim=32, qk_rope_head_dim=16, q_lora_rank=32, o_groups=2, o_lora_rank=32)
    index = dict(index_n_heads=4, index_head_dim=16, index_topk=8)
    experts = dict(moe_intermediate_size=32, n_routed_experts=8, hc_sinkhorn_iters=5)
    sizes = dict(vocab_size=VOCAB_SIZE, hidden_size=64, sliding_window=48, initializer_range=0.08)
    return Config.mini().replace(**layers, **heads, **index, **experts, **sizes)


def recipe(steps: int, rate: float, **changes: object) -> Recipe:
    """How a part of the experiment learns: Muon, a cosine, and routers' biases left alone, unless told otherwise."""
    usual = dict(optimizer="muon", warm_up=5, weight_decay=0.0, balance_speed=0.0)
    return Recipe(steps=steps, rate=rate, **(usual | changes))


def base(folder: Path) -> Model:
    """The model that imitates many writers, in all modes."""
    torch.manual_seed(0)
    policy = Model(small_config())
    objective = Imitation(policy, task_tokenizer(), TASKS, BASE_BATCH, seed=0)
    taught = recipe(BASE_STEPS, BASE_RATE, warm_up=30, decay=0.5, weight_decay=0.01, balance_speed=0.003)
    return trained(objective, taught, folder / "base", {"kind": "base"}, every=100)


def trained(objective: Objective, taught: Recipe, folder: Path, about: dict, every: int = 10) -> Model:
    """The policy of a run, learned to its end; a run that ended long ago is read."""
    PostTraining(objective, taught, folder, about, every).run()
    return objective.policy.eval()


def specialist(start: Model, folder: Path, tasks: Sequence[str], seed: int, rounds: int = ROUNDS) -> Model:
    """A policy by GRPO from the base, on the rewards of one task, or of several."""
    sampling = Sampling(tuple(tasks), n_tokens=N_TOKENS, seed=seed)
    write = Writer(folder / "rollouts")
    objective = GRPO(copy.deepcopy(start).requires_grad_(True), start, task_tokenizer(), sampling, write)
    about = {"kind": "GRPO", "tasks": list(tasks), "seed": seed, "fused": write.fused}
    return trained(objective, recipe(rounds * sampling.updates, GRPO_RATE), folder, about)


def student(start: Model, teachers: dict[str, Model], folder: Path, seed: int, estimate: str = "full") -> Model:
    """A policy by distillation, from the base, of both specialists."""
    sampling = Sampling(tuple(teachers), n_problems=48, group=1, n_tokens=N_TOKENS, updates=1, seed=100 + seed)
    write = Writer(folder / "rollouts")
    policy = copy.deepcopy(start).requires_grad_(True)
    objective = Distillation(policy, Teachers(teachers), task_tokenizer(), sampling, write, estimate=estimate)
    about = {"kind": "distillation", "estimate": estimate, "seed": seed, "fused": write.fused}
    return trained(objective, recipe(STUDENT_ROUNDS, STUDENT_RATE), folder, about)


def averaged(models: Sequence[Model]) -> Model:
    """A model whose every weight is the mean of theirs; tables of hash routing are equal in all of them."""
    mean = copy.deepcopy(models[0])
    states = [model.state_dict() for model in models]
    merged = {}
    for name, first in states[0].items():
        merged[name] = sum(state[name] for state in states) / len(states) if first.is_floating_point() else first
    mean.load_state_dict(merged)
    return mean


class Score(NamedTuple):
    """Share of right answers, and mean characters of thinking."""

    right: float
    thought: float


@torch.no_grad()
def measure(model: Model, n: int = MEASURED, seed: int = 0, temperature: float = 1.0) -> dict[str, dict[str, Score]]:
    """How a model answers problems that nobody learned from: {task: {mode: Score}}."""
    tokenizer, write, found = task_tokenizer(), Writer(), {}
    for task in TASKS:
        found[task] = {}
        for mode in MODES:
            given = problems(f"unseen {seed}", n, [task], [mode])
            prompts = [tokenizer.encode_marked(problem.prompt()) for problem in given]
            replies = write(model, prompts, N_TOKENS, range(n), temperature=temperature)
            verdicts = [verdict(p, tokenizer.decode_marked(reply)) for p, reply in zip(given, replies)]
            found[task][mode] = Score(sum(v.right for v in verdicts) / n, sum(v.n_thought for v in verdicts) / n)
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


# --- all of it ---


def run(seed: int, folder: Path) -> dict:
    """One seed of everything: scores of base, specialists, student, mean and mixture, and what a step takes."""
    start = base(folder)
    teachers = {task: specialist(start, folder / f"{task}-{seed}", [task], seed) for task in TASKS}
    models = {"base": start} | teachers
    models["student"] = student(start, teachers, folder / f"student-{seed}", seed)
    models["mean"] = averaged([*teachers.values()])
    models["mixed"] = specialist(start, folder / f"mixed-{seed}", TASKS, seed, MIXED_ROUNDS)
    sampled = {name: measure(model, seed=seed) for name, model in models.items()}
    greedy = {name: measure(models[name], seed=seed, temperature=0.0) for name in ("base", "student")}
    noise = {name: gradient_noise(models[name], teachers) for name in ("base", "student")}
    return {"sampled": sampled, "greedy": greedy, "noise": noise}


def ship(folder: Path) -> None:
    """Put what seed 0 made into the package: base and specialists, and the student as the chat model, in BF16."""
    runs = {POST_TRAINED / "base": "base", SHIPPED_CHAT: "student-0"}
    runs |= {POST_TRAINED / task: f"{task}-0" for task in TASKS}
    for target, name in runs.items():
        target.mkdir(parents=True, exist_ok=True)
        with atomic_folder(target) as scratch:
            task_tokenizer().save(scratch / TOKENIZER)  # first, so that the checksums cover it
            save(load(folder / name).bfloat16(), scratch)
            (scratch / TEXTS_FILE).write_text(json.dumps(vars(TEXTS), indent=1) + "\n", encoding="utf-8")
        shutil.copy(folder / name / LOG, POST_TRAINED / f"{name.removesuffix('-0')}.log.jsonl")


def measured() -> list[dict]:
    """What `python -m minidsv4.experiments.specialists` wrote: `run` of each seed."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def main() -> None:
    """Run every seed in the folder that is named, and keep what they gave, to four digits."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    runs = []
    for seed in SEEDS:
        runs.append(json.loads(json.dumps(run(seed, folder)), parse_float=lambda digits: float(f"{float(digits):.4g}")))
        print(f"seed {seed}: {json.dumps(runs[-1]['sampled'])}", flush=True)
    with atomic_file(FILE) as scratch:
        scratch.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    ship(folder)


if __name__ == "__main__":
    main()
