"""A run by a recipe: it logs every step, survives a kill, goes on bit for bit, and refuses what it cannot do."""

import errno
import functools
import io
import itertools
import json
import math
import os
import resource
import shutil
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import forks
import pytest
import torch

from minidsv4 import load
from minidsv4.__main__ import main
from minidsv4.train import loop, pretrain
from minidsv4.train.data import n_targets
from minidsv4.train.log import Log, read_log
from minidsv4.train.loop import Trainer
from minidsv4.train.plan import Plan
from minidsv4.train.pretrain import Run
from minidsv4.train.tokenizer import Tokenizer

SMALL = {
    "config": {"size": "tiny", "vocab_size": 300},
    "seed": 0,
    "data": {"source": 0, "programs": 1, "n_programs": 60, "masks": True, "held_out_bytes": 0},
    "stages": [
        {"attention": "dense", "steps": 8, "length": 24, "batch_size": 2},
        {"attention": "warm-up", "steps": 4, "length": 36, "batch_size": 2},
        {"attention": "sparse", "steps": 8, "length": 36, "batch_size": 1},
    ],
    "training": {"optimizer": "muon", "rate": 1e-2, "warm_up": 2, "decay": 0.3},
    "every": {"checkpoint": 5, "held_out": 10},
}


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    monkeypatch.setattr(pretrain, "HELD_OUT_PROGRAMS", 3)


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "small.json"
    path.write_text(json.dumps(SMALL))
    return path


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A whole run in one go."""
    folder = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "HELD_OUT_PROGRAMS", 3)
        run = Run(Plan.from_dict(SMALL), folder)
        assert run.train()
    return run


def assert_same_end(folder, straight):
    """The run in the folder ended where the straight one did, bit for bit; its log says the same but for times."""
    state, wanted = (torch.load(place / "training.pt", weights_only=True) for place in (folder, straight.folder))
    assert state["model"].keys() == wanted["model"].keys()
    assert all(torch.equal(tensor, wanted["model"][name]) for name, tensor in state["model"].items())
    assert state["trainer"]["losses"] == wanted["trainer"]["losses"]
    logs = [read_log(place / "log.jsonl") for place in (folder, straight.folder)]
    times = ("seconds", "tokens_per_second")
    assert [{k: v for k, v in record.items() if k not in times} for record in logs[0]] == [
        {k: v for k, v in record.items() if k not in times} for record in logs[1]
    ]


# --- what a run leaves ---


@pytest.mark.slow
def test_the_log_has_one_line_for_the_run_and_one_a_step_with_all_parts_of_the_loss(straight):
    header, *steps = read_log(straight.folder / "log.jsonl")
    assert header["recipe"] == SMALL and header["parameters"] > 10_000
    assert header["held_out"] == straight.before and steps[-1]["held_out"]["programs"] < straight.before["programs"]
    assert [record["step"] for record in steps] == list(range(1, 21))
    assert [record["attention"] for record in steps] == ["dense"] * 8 + ["warm-up"] * 4 + ["sparse"] * 8
    assert [record["n"] for record in steps] == [n_targets(straight.batches.at(step)) for step in range(20)]
    assert 0 < 48 * 8 + 72 * 4 + 36 * 8 - steps[-1]["tokens"]  # what padding there is counts for nothing
    assert steps[-1]["tokens"] == sum(record["n"] for record in steps)
    wanted = {"main", "mtp", "balance", "indexer", "rate", "norm", "max_violation", "seconds", "tokens_per_second"}
    assert all(wanted <= set(record) and all(math.isfinite(record[name]) for name in wanted) for record in steps)
    assert [record["step"] for record in steps if "held_out" in record] == [10, 20]


@pytest.mark.slow
def test_the_indexer_learns_from_the_warm_up_on_and_not_in_the_dense_stage(straight):
    _, *steps = read_log(straight.folder / "log.jsonl")
    assert all(record["indexer"] == 0 for record in steps[:8]) and all(record["indexer"] > 0 for record in steps[8:])


@pytest.mark.slow
def test_the_rate_is_constant_between_warm_up_and_decay(straight):
    rates = [record["rate"] for record in read_log(straight.folder / "log.jsonl")[1:]]
    assert rates[0] == 0.005 and set(rates[1:15]) == {0.01} and rates[15:] == sorted(rates[15:], reverse=True)
    assert rates[-1] < 0.002


def test_the_folder_opens_as_a_model_with_its_tokenizer(straight):
    model = load(straight.folder)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), straight.model.parameters()))
    assert {path.name for path in straight.folder.iterdir()} == {
        *("config.json", "model.safetensors", "SHA256SUMS", "tokenizer.json", "training.pt", "log.jsonl")
    }


# --- stopped and resumed ---


@pytest.mark.slow
def test_a_run_killed_between_two_checkpoints_goes_on_bit_for_bit(recipe, straight, tmp_path):
    out = tmp_path / "killed"
    done = forks.python(KILLED, str(recipe), str(out))
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [record["step"] for record in read_log(out / "log.jsonl")][-1] == 13  # and a cut line after it
    assert not (out / "log.jsonl").read_text().endswith("\n")
    assert torch.load(out / "training.pt", weights_only=True)["trainer"]["step"] == 10
    assert main(["train", "--resume", "--out", str(out)]) == 0
    assert_same_end(out, straight)


KILLED = """
import os, signal, sys
from minidsv4.__main__ import main
from minidsv4.train import pretrain
from minidsv4.train.data import n_targets
from minidsv4.train.log import Log
pretrain.HELD_OUT_PROGRAMS = 3
write = Log.write
def cut_short(log, record):
    if record["step"] == 14:
        log.file.write(b'{"step": 14, "ma')
        log.file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    write(log, record)
Log.write = cut_short
main(["train", "--recipe", sys.argv[1], "--out", sys.argv[2]])
"""


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_learned_and_resume_ends_where_the_straight_run_did(
    recipe, straight, tmp_path, capsys, monkeypatch
):
    learn = Trainer.learn

    def interrupted(trainer, batch):
        if trainer.step == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return learn(trainer, batch)

    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "learn", interrupted)
        assert main(["train", "--recipe", str(recipe), "--out", str(out)]) == 130
    assert f"train --resume --out {out}" in capsys.readouterr().out
    assert torch.load(out / "training.pt", weights_only=True)["trainer"]["step"] == 7 and load(out)
    assert main(["train", "--resume", "--out", str(out)]) == 0
    assert_same_end(out, straight)


def test_a_full_disk_on_the_way_costs_nothing_and_at_the_end_gives_a_sentence(tmp_path, capsys, monkeypatch):
    run = Run(Plan.from_dict(SMALL), tmp_path)
    run.trainer.learn(run.trainer.batch_at(0))
    run.keep()
    before = (tmp_path / "training.pt").read_bytes()

    def full(_state, path):
        Path(path).write_bytes(before[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    run.try_to_keep()
    assert "No space left on device" in capsys.readouterr().err
    with pytest.raises(OSError, match="cannot be saved to"):
        run.keep()
    assert (tmp_path / "training.pt").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"training.pt"}


@contextmanager
def files_of_at_most(n_bytes):
    """Inside, no file grows beyond so many bytes: a write ends in the middle, and the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_line_of_the_log_that_finds_no_room_is_not_begun_and_ends_the_run_with_a_sentence(tmp_path):
    """Kind: a file without room; before, half a line stayed, the error had no sentence, and closing failed again."""
    path = tmp_path / "log.jsonl"
    log = Log(path, after=0)
    log.write({"step": 0})
    with files_of_at_most(20):
        with pytest.raises(OSError, match="log: .*log.jsonl cannot be written to .*; free some space, then --resume"):
            log.write({"step": 1, "main": 2.5})
        assert path.read_text() == '{"step": 0}\n'
        with pytest.raises(OSError, match="log: .* cannot be written to"):
            Log(path, after=1).write({"step": 1, "main": 2.5})
        log.file.close()
    assert path.read_text() == '{"step": 0}\n' and [file.name for file in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_log_taken_up_again_has_no_line_of_what_is_done_again(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 0}\n{"step": 1, "main": 2.5}\n{"step": 2}\n{"st')
    Log(path, after=1).write({"step": 2, "main": 1 / 3})
    assert read_log(path) == [{"step": 0}, {"step": 1, "main": 2.5}, {"step": 2, "main": 0.333333}]
    Log(path, after=0)
    assert path.read_text() == ""


# --- in place of another run ---

TWO_STEPS = SMALL | {
    "config": SMALL["config"] | {"num_hidden_layers": 2, "compress_ratios": [0, 4, 0], "num_nextn_predict_layers": 0},
    "stages": [{"steps": 2, "length": 24, "batch_size": 2}],
    "every": {"checkpoint": 1, "held_out": 0},
}


def contents(folder):
    """What is in each file; a scratch folder that a kill left is none."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@functools.cache
def seed_and_step(state):
    """What a `training.pt` of these bytes says; most folders hold the one of the folder before."""
    fields = torch.load(io.BytesIO(state), weights_only=True)
    return fields["plan"]["seed"], fields["trainer"]["step"]


def moment_of(left):
    """Where a run stood that left this: its seed, its step, lines of its log, names of its files."""
    return *seed_and_step(left["training.pt"]), left["log.jsonl"].count(b"\n"), *sorted(left)


def train_watched(run, before_a_change):
    """Train in a process of its own, with a call before each change of the run's folder; returns its exit status."""
    child = os.fork()
    if child == 0:
        busy = []

        def watch(event, arguments):
            if busy or event not in ("os.rename", "os.remove", "os.mkdir", "open"):
                return
            if str(run.folder) in str(arguments[:2]):
                busy.append(True)  # what the call itself opens is no change
                before_a_change()
                busy.clear()

        sys.addaudithook(watch)
        os._exit(0 if run.train() else 1)
    return os.waitpid(child, 0)[1]


def killed_before(n_changes, run):
    """The run's folder after the run was killed before this change of it, from 0."""
    changes = iter(range(n_changes))

    def kill():
        if next(changes, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    assert train_watched(run, kill) == signal.SIGKILL
    return contents(run.folder)


def copied_before_each_change(run, into):
    """Copies of the run's folder as a kill before each change of it would leave it, in order."""
    numbers = itertools.count()
    assert train_watched(run, lambda: shutil.copytree(run.folder, into / str(next(numbers)))) == 0
    return sorted(into.iterdir(), key=lambda folder: int(folder.name))


@pytest.mark.slow
def test_a_kill_at_any_moment_of_an_overwriting_run_leaves_the_old_run_or_the_new_one(tmp_path):
    """Kind: nothing is mixed; before, the log began anew beside the state and the model of the old run."""
    old, new, new_run = (Run(Plan.from_dict(TWO_STEPS).seeded(seed), tmp_path) for seed in (1, 0, 0))
    for name, run in (("old", old), ("new", new)):
        run.folder = tmp_path / name
        run.folder.mkdir()
        assert run.train()
    whole, n_old, n_new, moments = contents(tmp_path / "old"), 0, 0, set()
    new_run.folder = shutil.copytree(tmp_path / "old", tmp_path / "run")
    (tmp_path / "copies").mkdir()
    copies = copied_before_each_change(new_run, tmp_path / "copies")
    assert_same_end(new_run.folder, new)
    for n_changes in (1, len(copies) - 2):  # a copy is what a kill leaves
        left = contents(copies[n_changes])
        new_run.folder = shutil.copytree(tmp_path / "old", tmp_path / f"killed {n_changes}")
        killed = killed_before(n_changes, new_run)
        assert moment_of(killed) == moment_of(left) and killed["model.safetensors"] == left["model.safetensors"]
    for folder in copies:
        left = contents(folder)
        if moment_of(left)[0] == 1:
            assert left == whole
            n_old += 1
            continue
        n_new += 1
        old_model_opens = "config.json" in left and left["model.safetensors"] == whole["model.safetensors"]
        assert not old_model_opens or left["log.jsonl"] == whole["log.jsonl"]
        if moment_of(left) in moments:
            continue
        moments.add(moment_of(left))
        assert Run(new.plan, folder, resume=True).train()
        assert_same_end(folder, new)
        assert contents(folder)["model.safetensors"] == contents(tmp_path / "new")["model.safetensors"]
    assert n_old >= 3 and n_new > 20 and len(moments) > 8


# --- how long ---

IN_SECONDS = SMALL | {
    "stages": [{"steps": 2, "length": 24, "batch_size": 2}, {"length": 36, "batch_size": 2, "attention": "warm-up"}],
    "training": {"seconds": 0.5, "warm_up": 2},
    "every": {"checkpoint": 0, "held_out": 0},
}


@pytest.fixture
def sixteenths(monkeypatch):
    """A clock on which every step takes 1/16 s, however busy the machine is."""
    readings = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(readings) / 16)
    monkeypatch.setattr(loop, "time", clock)


@pytest.mark.slow
def test_a_plan_in_seconds_ends_after_them_and_a_resumed_run_may_have_more(tmp_path, sixteenths):
    run = Run(Plan.from_dict(IN_SECONDS), tmp_path)
    assert run.plan.recipe.steps is None and run.train()
    assert run.trainer.seconds == 0.5 and run.trainer.step == 8
    records = read_log(tmp_path / "log.jsonl")[1:]
    assert [record["attention"] for record in records] == ["sparse"] * 2 + ["warm-up"] * 6
    assert not any("held_out" in record for record in records)
    more = Run(run.plan, tmp_path, resume=True, seconds=0.75)
    assert more.trainer.step == 8 and more.before == run.before
    assert more.train() and more.trainer.step == 12
    same = Run(run.plan, tmp_path, resume=True)
    assert same.train() and same.trainer.step == 12


def test_stages_keep_their_proportions_when_a_run_is_made_longer_or_shorter():
    plan = Plan.from_dict(SMALL)
    assert [stage.steps for stage in plan.scaled(2.5).stages] == [20, 10, 20] and plan.scaled(2.5).recipe.steps == 50
    assert [stage.steps for stage in plan.scaled(0.01).stages] == [1, 1, 1]
    found = [plan.stage_and_step(step) for step in (0, 7, 8, 12, 19, 25)]
    assert found == [
        (0, 0),
        (0, 7),
        (1, 0),
        (2, 0),
        (2, 7),
        (2, 13),
    ]


@pytest.mark.slow
def test_minutes_are_turned_into_steps_by_a_rehearsal_that_leaves_the_model_alone(tmp_path, monkeypatch):
    run = Run(Plan.from_dict(SMALL), tmp_path)
    before = [parameter.clone() for parameter in run.model.parameters()]
    times = iter(range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(times)))
    assert pretrain.seconds_per_step(run) == [1.0, 1.0, 1.0]
    assert all(torch.equal(a, b) for a, b in zip(before, run.model.parameters())) and run.trainer.step == 0


def test_the_package_has_a_recipe_for_the_mini_model():
    plan = Plan.read("mini")
    assert plan.config.hidden_size == 192 and [stage.attention for stage in plan.stages] == [
        "dense",
        "warm-up",
        "sparse",
    ]
    assert plan.config.hidden_size == 192 and plan.recipe.optimizer == "muon"
    assert plan.recipe.mtp_weights == (0.3, 0.1)


# --- on from a finished model ---


FP4 = SMALL | {"stages": [{"attention": "sparse, FP4", "steps": 3, "length": 36, "batch_size": 2}]}


@pytest.mark.slow
def test_a_run_learns_on_from_a_finished_model_and_goes_on_bit_for_bit(straight, tmp_path):
    (tmp_path / "fp4.json").write_text(json.dumps(FP4))
    words = ["train", "--recipe", str(tmp_path / "fp4.json"), "--model", str(straight.folder)]
    run = Run(Plan.from_dict(FP4), tmp_path, start=straight.folder)
    assert run.held_out() == read_log(straight.folder / "log.jsonl")[-1]["held_out"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    header, *steps = read_log(tmp_path / "run" / "log.jsonl")
    assert header["held_out"] == run.held_out() and [record["attention"] for record in steps] == ["sparse, FP4"] * 3
    run.trainer.learn(run.trainer.batch_at(0))
    run.keep()
    assert main(["train", "--resume", "--out", str(tmp_path)]) == 0
    ends = [load(folder).state_dict() for folder in (tmp_path, tmp_path / "run")]
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_the_recipe_for_four_bits_goes_on_with_the_data_and_the_config_of_the_mini_run():
    mini, fp4 = Plan.read("mini"), Plan.read("mini_fp4")
    assert [fp4.fields[part] for part in ("config", "seed", "data")] == [
        mini.fields[part] for part in ("config", "seed", "data")
    ]
    assert [stage.attention for stage in fp4.stages] == ["sparse, FP4"] and fp4.recipe.rate < mini.recipe.rate


# --- refusals ---


def test_a_model_of_another_config_or_tokenizer_is_not_gone_on_with(straight, tmp_path, capsys):
    shutil.copytree(straight.folder, tmp_path / "model")
    (tmp_path / "model" / "SHA256SUMS").unlink()
    Tokenizer.train(["x = 1\n" * 9], 300).save(tmp_path / "model" / "tokenizer.json")
    wide = SMALL | {"config": SMALL["config"] | {"moe_intermediate_size": 40}}
    for recipe, start, words in (
        (SMALL, "model", "the tokenizer of"),
        (wide, "model", "has moe_intermediate_size = "),
        (SMALL, "none", "no config.json at"),
    ):
        (tmp_path / "own.json").write_text(json.dumps(recipe))
        arguments = ["train", "--recipe", str(tmp_path / "own.json"), "--model", str(tmp_path / start)]
        assert main([*arguments, "--out", str(tmp_path / "run")]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config": {"size": "pro"}}, "config.size = 'pro'"),
        ({"config": {"size": "tiny", "hidden": 3}}, "hidden"),
        ({"stages": [{"steps": 0, "length": 24, "batch_size": 2}]}, "steps = 0"),
        ({"stages": [{"steps": 9, "length": 24, "batch_size": 2, "attention": "full"}]}, "attention = 'full'"),
        ({"training": {"optimizer": "sgd"}}, "optimizer = 'sgd'"),
        ({"training": {"decay": 0.0}}, "decay = 0.0"),
        ({"stages": [{"length": 24, "batch_size": 2}]}, "neither steps nor seconds"),
        ({"stages": [{"length": 24, "batch_size": 2}] * 2, "training": {"seconds": 1}}, "only the last stage"),
        ({"config": 3}, "recipe: config is of another type; a recipe has config, seed,"),
        ({"config": {"hidden_size": 24}}, "config.size = None"),
        ({"seed": "one"}, "recipe: seed is of another type"),
        ({"training": {"speed": 1}}, "assets/mini.json is an example"),
        ({"seeds": 1, "every": {}}, "assets/mini.json is an example"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused_with_a_sentence(change, words, tmp_path, capsys):
    (tmp_path / "bad.json").write_text(json.dumps(SMALL | change))
    assert main(["train", "--recipe", str(tmp_path / "bad.json"), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


@pytest.mark.parametrize("text", ['{"a": 1}', "{}", "[1]", "3", "null"])
def test_a_recipe_without_its_parts_is_told_which_they_are(text, tmp_path, capsys):
    """Kind: JSON that is no recipe, once refused with Python's name of the error."""
    (tmp_path / "bad.json").write_text(text)
    assert main(["train", "--recipe", str(tmp_path / "bad.json"), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "recipe: config is missing; a recipe has config, seed, data, stages, training, every" in said
    assert "Error" not in said and said.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_recipe_is_read_as_utf_8_with_or_without_a_byte_order_mark(tmp_path):
    """Kind: a file of settings read in the locale's encoding, and one that is no UTF-8 in a codec's words."""
    text = json.dumps(SMALL | {"about": "größer"}, ensure_ascii=False)
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "own.json").write_text(text, encoding=encoding)
        assert Plan.read(str(tmp_path / "own.json")).fields["about"] == "größer"
    (tmp_path / "own.json").write_text(text, encoding="cp1252")
    with pytest.raises(ValueError, match=r"--recipe .*own\.json: UnicodeDecodeError"):
        Plan.read(str(tmp_path / "own.json"))


def test_a_missing_recipe_and_a_folder_without_a_run_are_refused_with_a_sentence(tmp_path, capsys):
    for words, said in (
        (["--recipe", "huge"], "there is no such recipe"),
        (["--resume"], "holds no training.pt"),
        (["--resume", "--steps", "5"], "leave --steps and --minutes out"),
        (["--resume", "--model", "."], "leave --model out"),
        (["--recipe", "tour", "--steps", "5"], "this recipe ends after seconds; give --minutes"),
    ):
        assert main(["train", *words, "--out", str(tmp_path / "run")]) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_run_is_not_resumed_on_other_text(straight, tmp_path, capsys):
    state = torch.load(straight.folder / "training.pt", weights_only=True)
    torch.save(state | {"digest": "other"}, tmp_path / "training.pt")
    assert main(["train", "--resume", "--out", str(tmp_path)]) == 2
    assert "use the same Python" in capsys.readouterr().err
