"""Runs of post-training: what is killed anywhere and called again ends with the same weights, bit for bit."""

import os
import random
import shutil
import signal
import time

import pytest
import torch
from forks import Fork

from minidsv4.experiments.specialists import small_config
from minidsv4.model.model import Model
from minidsv4.posttrain.distill import Distillation, Teachers
from minidsv4.posttrain.grpo import GRPO, Sampling
from minidsv4.posttrain.imitation import Imitation
from minidsv4.posttrain.run import STATE, PostTraining
from minidsv4.posttrain.tokens import task_tokenizer
from minidsv4.posttrain.writer import Writer
from minidsv4.train.recipe import Recipe

N_KILLS = int(os.environ.get("MINIDSV4_KILLS", 2))
KINDS = ("imitation", "grpo", "distillation")
STEPS = 4
TINY = dict(
    hidden_size=16,
    num_hidden_layers=2,
    compress_ratios=(4, 16, 0),
    moe_intermediate_size=8,
    n_routed_experts=4,
    head_dim=16,
    qk_rope_head_dim=8,
    hc_mult=2,
)


def fresh(seed):
    torch.manual_seed(seed)
    return Model(small_config().replace(**TINY))


def run_of(kind, folder):
    """A short run: 4 steps, 2 rounds of GRPO, a checkpoint every second step."""
    torch.set_num_threads(1)
    tokenizer, policy, write = task_tokenizer(), fresh(0), Writer(folder / "rollouts", fused=False)
    if kind == "imitation":
        objective = Imitation(policy, tokenizer, ("sum", "run"), batch_size=4, seed=1)
    elif kind == "grpo":
        sampling = Sampling(("sum", "run"), n_problems=2, group=3, n_tokens=4, seed=1)
        objective = GRPO(policy, fresh(0), tokenizer, sampling, write)
    else:
        sampling = Sampling(("sum", "run"), n_problems=6, group=1, n_tokens=4, updates=1, seed=1)
        objective = Distillation(policy, Teachers({"sum": fresh(2), "run": fresh(3)}), tokenizer, sampling, write)
    recipe = Recipe(steps=STEPS, rate=0.01, warm_up=2, optimizer="muon", balance_speed=0.01)
    return PostTraining(objective, recipe, folder, {"kind": kind}, every=2)


def work(kind, folder):
    run_of(kind, folder).run()


def weights(run):
    return torch.cat([tensor.double().flatten() for tensor in run.objective.policy.state_dict().values()])


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The weights after a run without a stop, its log, and its seconds, by kind."""
    found = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        began = time.perf_counter()
        run = run_of(kind, folder)
        assert run.run()
        seconds = time.perf_counter() - began
        found[kind] = weights(run), (folder / "log.jsonl").read_text(), seconds
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_fails_at_any_step_goes_on_to_the_same_weights_and_log(kind, straight, tmp_path, monkeypatch):
    for fails_at in (1, 2):  # within a round, before a checkpoint; and after one
        folder = tmp_path / str(fails_at)
        with monkeypatch.context() as patch:
            run = run_of(kind, folder)
            whole = run.objective.loss

            def loss(*arguments, run=run, whole=whole, fails_at=fails_at, **words):
                if run.trainer.step == fails_at:
                    raise RuntimeError("power cut")
                return whole(*arguments, **words)

            patch.setattr(run.objective, "loss", loss)
            with pytest.raises(RuntimeError, match="power cut"):
                run.run()
        again = run_of(kind, folder)
        assert again.trainer.step == fails_at // 2 * 2
        assert again.run()
        assert torch.equal(weights(again), straight[kind][0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_killed_at_random_ends_with_the_same_weights(kind, straight, tmp_path):
    rng = random.Random(kind)
    seconds = straight[kind][2]
    n_killed = 0
    while n_killed < N_KILLS:
        folder = tmp_path / str(n_killed)
        for _ in range(2):
            worker = Fork(work, (kind, folder), os.environ, ".", [tmp_path / "out", tmp_path / "err"])
            time.sleep(rng.uniform(0.0, seconds))
            if worker.poll() is None:
                worker.send_signal(signal.SIGKILL)
                n_killed += 1
            worker.wait()
        run = run_of(kind, folder)
        assert run.run()
        assert torch.equal(weights(run), straight[kind][0])
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_ended_learns_nothing_more_when_it_is_called_again(kind, straight, tmp_path):
    for _ in range(2):
        run = run_of(kind, tmp_path)
        assert run.run()
        assert torch.equal(weights(run), straight[kind][0])


def test_another_runs_folder_or_a_damaged_state_is_refused_with_a_sentence(tmp_path):
    work("imitation", tmp_path)
    with pytest.raises(ValueError, match=r"is of another run \(kind differ\)"):
        run_of("grpo", tmp_path)
    (tmp_path / STATE).write_bytes((tmp_path / STATE).read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read .* remove it to begin anew"):
        run_of("imitation", tmp_path)
