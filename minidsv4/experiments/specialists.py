"""An experiment: two specialists by GRPO from one base, and three ways to make one model of both.

    python -m minidsv4.experiments.specialists FOLDER  train and measure all, keep it in assets/ (an hour of one core)

The ways: on-policy distillation from both, the mean of both models' weights, and GRPO on both tasks' rewards together,
with as much computing as the specialists and the distillation took, at two rates. Three seeds, of problems and of what
is sampled; the base is the same. Besides, specialists that spend as many replies on fewer and larger rounds, all of
them in modes that think. A killed run goes on when it is called again. A base that lies in FOLDER/base is not trained
anew: the shipped one is `minidsv4/assets/specialists/base`.
"""

import copy
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from minidsv4.checkpoint import load, save
from minidsv4.config import Config
from minidsv4.experiments.specialist_scores import (
    N_TOKENS,
    TASKS,
    THINKING,
    Score,
    by_length,
    gradient_noise,
    measure,
)
from minidsv4.files import atomic_file, atomic_folder
from minidsv4.model.model import Model
from minidsv4.posttrain.distill import Distillation, Teachers
from minidsv4.posttrain.grpo import GRPO, Sampling
from minidsv4.posttrain.imitation import Imitation
from minidsv4.posttrain.objective import Objective
from minidsv4.posttrain.run import LOG, PostTraining
from minidsv4.posttrain.tasks import MODES, TEXTS
from minidsv4.posttrain.tokens import VOCAB_SIZE, task_tokenizer
from minidsv4.posttrain.writer import Writer
from minidsv4.serve.chat_format import TEXTS_FILE
from minidsv4.train.recipe import Recipe
from minidsv4.train.ship import POST_TRAINED, SHIPPED_CHAT, TOKENIZER

SEEDS = (0, 1, 2)
BASE_STEPS, BASE_BATCH, BASE_RATE = 1000, 64, 0.02
ROUNDS, STUDENT_ROUNDS, MIXED_ROUNDS = 40, 40, 102  # the last: (2 x 40 x 9 + 40 x 5) / 9, in passes
SPECIALIST_RATE, STUDENT_RATE = 0.008, 0.008
SLOWER_RATE = 0.004  # of a second mixture: at the specialists' rate that of seed 0 diverged
LARGE_ROUNDS, LARGE_PROBLEMS = 30, 8  # 30 x 8 = 40 x 6 problems, with as many replies to each
FILE = Path(__file__).resolve().parents[1] / "assets" / "specialists.json"


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
    """The model that imitates many writers, in all modes, rounded to BF16 as it ships; one that is there is read."""
    if not (folder / "base" / "config.json").is_file():
        torch.manual_seed(0)
        objective = Imitation(Model(small_config()), task_tokenizer(), TASKS, BASE_BATCH, seed=0)
        taught = recipe(BASE_STEPS, BASE_RATE, warm_up=30, decay=0.5, weight_decay=0.01, balance_speed=0.003)
        trained(objective, taught, folder / "base", {"kind": "base"}, every=100)
    return load(folder / "base").bfloat16().float().eval()


def trained(objective: Objective, taught: Recipe, folder: Path, about: dict, every: int = 10) -> Model:
    """The policy of a run, learned to its end; a run that ended long ago is read.

    raises  KeyboardInterrupt where Ctrl-C ended it before
    """
    if not PostTraining(objective, taught, folder, about, every).run():
        raise KeyboardInterrupt
    return objective.policy.eval()


def specialist(start: Model, folder: Path, sampling: Sampling, rounds: int, rate: float) -> Model:
    """A policy by GRPO from the base, on the rewards of what is sampled."""
    write = Writer(folder / "rollouts")
    objective = GRPO(copy.deepcopy(start).requires_grad_(True), start, task_tokenizer(), sampling, write)
    about = {"kind": "GRPO", "tasks": list(sampling.tasks), "seed": sampling.seed, "fused": write.fused}
    return trained(objective, recipe(rounds * sampling.updates, rate), folder, about)


def student(start: Model, teachers: dict[str, Model], folder: Path, seed: int) -> Model:
    """A policy by distillation, from the base, of both specialists."""
    sampling = Sampling(tuple(teachers), n_problems=48, group=1, n_tokens=N_TOKENS, updates=1, seed=100 + seed)
    write = Writer(folder / "rollouts")
    policy = copy.deepcopy(start).requires_grad_(True)
    objective = Distillation(policy, Teachers(teachers), task_tokenizer(), sampling, write)
    about = {"kind": "distillation", "seed": seed, "fused": write.fused}
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


def run(seed: int, folder: Path) -> dict:
    """One seed of everything: scores of base, specialists, student, mean and mixtures, and what a step takes."""
    start, usual = base(folder), Sampling(TASKS, n_tokens=N_TOKENS, seed=seed)
    teachers = {}
    for task in TASKS:
        own = replace(usual, tasks=(task,))
        teachers[task] = specialist(start, folder / f"{task}-{seed}", own, ROUNDS, SPECIALIST_RATE)
    models = {"base": start} | teachers
    models["student"] = student(start, teachers, folder / f"student-{seed}", seed)
    models["mean"] = averaged([*teachers.values()])
    models["mixed"] = specialist(start, folder / f"mixed-{seed}", usual, MIXED_ROUNDS, SPECIALIST_RATE)
    sampled = {name: measure(model, MODES, seed=seed) for name, model in models.items()}
    compared = {name: models[name] for name in ("base", "student")}
    greedy = {name: measure(model, MODES, seed=seed, temperature=0.0) for name, model in compared.items()}
    noise = {name: gradient_noise(model, teachers) for name, model in compared.items()}
    slower = measure(specialist(start, folder / f"slower-{seed}", usual, MIXED_ROUNDS, SLOWER_RATE), seed=seed)
    found = {"sampled": sampled, "greedy": greedy, "noise": noise, "slower": mean_right(slower)}
    return found | {"larger": larger(seed, folder), "lengths": by_length(start, seed)}


def mean_right(scores: dict[str, dict[str, Score]]) -> dict[str, float]:
    """Share of right answers to each task, the mean of the modes that think."""
    return {task: sum(by_mode[mode].right for mode in THINKING) / len(THINKING) for task, by_mode in scores.items()}


def larger(seed: int, folder: Path) -> dict:
    """Scores of specialists by larger rounds, only of modes that think: {task: what `measure` gives}."""
    found = {}
    for task in TASKS:
        sampling = Sampling((task,), LARGE_PROBLEMS, n_tokens=N_TOKENS, seed=seed, modes=THINKING)
        model = specialist(base(folder), folder / f"{task}-large-{seed}", sampling, LARGE_ROUNDS, SPECIALIST_RATE)
        found[task] = measure(model, seed=seed)
    return found


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
        if (folder / name / LOG).is_file():  # not beside a base that was put there
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
