"""Rollouts: the texts of an uninterrupted run, however often a run is killed."""

import functools
import os
import random
import signal
import time

import numpy as np
import pytest
import torch

import minidsv4 as v4
from minidsv4.serve.engine import Engine
from minidsv4.serve.rollouts import rollouts
from tests.forks import Fork
from tests.small import TINY, small_model

N_KILLS = int(os.environ.get("MINIDSV4_KILLS", 6))  # 100 were run by hand
N_TOKENS = 24


CONFIG = TINY.replace(  # CSA and HCA
    num_hidden_layers=2,
    compress_ratios=(3, 12, 0),
    layer_types=(v4.LayerKind.CSA, v4.LayerKind.HCA, v4.LayerKind.WINDOW),
    hc_sinkhorn_iters=3,
)


def setting():
    """A float64 model, prompts around the borders of its windows and blocks, and how texts are drawn."""
    model = small_model(CONFIG)
    generator = torch.Generator().manual_seed(1)
    lengths = (1, 3, 7, 8, 12, 13)
    prompts = [torch.randint(2, model.config.vocab_size, (n,), generator=generator).tolist() for n in lengths]
    return model, prompts, {"temperature": 1.0, "stop": [1, 2, 3], "texts": 4}


def run_until_killed(path):
    model, prompts, options = setting()
    rollouts(model, prompts, N_TOKENS, path, **options)


def lines(path):
    """Whole lines of a log, the header included."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


@functools.cache
def alone():
    """The text of each prompt as `generate` writes it."""
    model, prompts, options = setting()
    drawn = {"temperature": options["temperature"], "stop": options["stop"]}
    return [v4.generate(model, ids, N_TOKENS, seed=seed, **drawn) for seed, ids in enumerate(prompts)]


def test_an_uninterrupted_run_writes_what_generate_writes(tmp_path):
    model, prompts, options = setting()
    right = alone()
    assert rollouts(model, prompts, N_TOKENS, tmp_path / "log", **options) == right
    assert {len(text) for text in right} != {N_TOKENS}  # some ended by a stop token
    assert rollouts(model, prompts, N_TOKENS, tmp_path / "log", **options) == right  # read from the log alone


def test_a_run_that_ended_is_not_computed_again(tmp_path, monkeypatch):
    model, prompts, options = setting()
    rollouts(model, prompts, N_TOKENS, tmp_path / "log", **options)
    monkeypatch.setattr(Engine, "step", lambda *_: pytest.fail("a finished text began again"))
    assert rollouts(model, prompts, N_TOKENS, tmp_path / "log", **options) == alone()


@pytest.mark.slow
def test_a_run_goes_on_from_every_place_of_its_log(tmp_path):
    model, prompts, options = setting()
    path = tmp_path / "log"
    right = rollouts(model, prompts, N_TOKENS, path, **options)
    whole = path.read_bytes()
    for n_bytes in random.Random(0).sample(range(len(whole)), 6):
        path.write_bytes(whole[:n_bytes])
        assert rollouts(model, prompts, N_TOKENS, path, **options) == right


@pytest.mark.slow
def test_runs_that_are_killed_at_random_write_every_token_of_an_uninterrupted_one(tmp_path):
    model, prompts, options = setting()
    right = alone()
    n_lines = 1 + sum(map(len, right))
    rng = random.Random(3)
    n_killed = n_runs = 0
    while n_killed < N_KILLS:
        path = tmp_path / f"log{n_runs}"
        for moment in sorted(rng.sample(range(n_lines), 3)):  # kills of one run, each later than the one before
            worker = Fork(run_until_killed, (path,), os.environ, ".", [tmp_path / "out", tmp_path / "err"])
            while worker.poll() is None and lines(path) < moment:
                time.sleep(rng.uniform(0.0, 0.01))
            worker.send_signal(signal.SIGKILL)
            worker.wait()
            n_killed += 0 < lines(path) < n_lines
        assert rollouts(model, prompts, N_TOKENS, path, **options) == right
        n_runs += 1


def test_the_log_says_of_which_run_it_is(tmp_path):
    model, prompts, options = setting()
    path = tmp_path / "log"
    rollouts(model, prompts, 2, path, **options)
    other = small_model(CONFIG, seed=1)
    for name, call in {
        "n_tokens": lambda: rollouts(model, prompts, 3, path, **options),
        "temperature": lambda: rollouts(model, prompts, 2, path, **options | {"temperature": 0.5}),
        "seeds": lambda: rollouts(model, prompts, 2, path, seeds=range(1, 7), **options),
        "model": lambda: rollouts(other, prompts, 2, path, **options),
        "prompts": lambda: rollouts(model, [[5], *prompts[1:]], 2, path, **options),
    }.items():
        with pytest.raises(ValueError, match=rf"another run \({name} differ\)"):
            call()
    with pytest.raises(ValueError, match="3 seeds and 6 prompts"):
        rollouts(model, prompts, 2, path, seeds=[1, 2, 3], **options)


@pytest.mark.parametrize(
    "change, says",
    {
        "temperature": ({"temperature": -1}, "temperature = -1 is out of range"),
        "top_p": ({"top_p": 2.0}, "top_p = 2.0 is out of range"),
        "stop": ({"stop": 10_000}, "stop = 10000 is no token id"),
        "seeds": ({"seeds": 5}, "seeds = 5 is an int; give a list"),
        "seed": ({"seeds": [1, 2, 3, 4, 5, "six"]}, "seed = 'six' is no integer"),
        "n_tokens": ({"n_tokens": -3}, "n_tokens = -3 cannot be written"),
        "context": ({"n_tokens": 10_000}, "n_tokens = 10000 after .* goes beyond"),
        "prompts": ({"prompts": 5}, "prompts = 5 is an int; give a list"),
        "prompt": ({"prompts": [[1]] * 5 + [[10_000]]}, "prompt 5: "),
        "memory": ({"memory": "1 kB"}, "memory = .* is too little"),
        "model": ({"model": None}, "model = None is a NoneType"),
    }.values(),
)
def test_what_cannot_be_written_is_refused_before_there_is_a_log(tmp_path, change, says):
    model, prompts, options = setting()
    call = {"model": model, "prompts": prompts, "n_tokens": 2, "log": tmp_path / "log"} | options | change
    with pytest.raises(ValueError, match=f"^rollouts: {says}"):
        rollouts(**call)
    assert not (tmp_path / "log").exists()


def test_the_same_options_in_other_words_are_the_same_run(tmp_path):
    model, prompts, options = setting()
    right = rollouts(model, prompts, 2, tmp_path / "log", **options)
    spelled = options | {"temperature": np.float32(1), "top_p": 1, "fused": False, "cache_precision": "model"}
    assert rollouts(model, prompts, 2, tmp_path / "log", seeds=[*map(np.int64, range(6))], **spelled) == right


def test_a_token_is_in_the_log_before_anybody_sees_the_next(tmp_path, monkeypatch):
    model, prompts, options = setting()
    path = tmp_path / "log"
    step = Engine.step

    def looked_at(engine):
        n_logged = path.read_bytes().count(b"\n") - 1
        assert n_logged == sum(looked_at.written)
        written = step(engine)
        looked_at.written.append(len(written))
        return written

    looked_at.written = []
    monkeypatch.setattr(Engine, "step", looked_at)
    rollouts(model, prompts, 5, path, **options)
    assert len(looked_at.written) > 5
