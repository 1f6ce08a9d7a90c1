"""The commands as a user meets them: a whole small tour, a stop and a resumption, and a sentence for every mistake."""

import contextlib
import errno
import io
import os
import re
import signal
from pathlib import Path

import forks
import pytest
import torch

import minidsv4
from minidsv4 import FAST, PLAIN, Config, load, save
from minidsv4.__main__ import main
from minidsv4.course import tour as touring
from minidsv4.course.tour import cache_table, weigh_cache
from minidsv4.model.model import Model
from minidsv4.serve import completion
from minidsv4.train import pretrain
from minidsv4.train.corpus import Corpus, SourceFile
from minidsv4.train.plan import Plan
from minidsv4.train.pretrain import Batcher
from minidsv4.train.programs import programs

FILES = {"SHA256SUMS", "config.json", "log.jsonl", "model.safetensors", "tokenizer.json", "tour.png", "training.pt"}
SMALL = {  # the tour at a hundredth of its size: a model of 60 thousand parameters
    "config": {"size": "tiny", "vocab_size": 300},
    "seed": 0,
    "data": {"source": 1, "programs": 0, "n_programs": 0, "masks": False, "held_out_bytes": 500},
    "stages": [{"length": 128, "batch_size": 4}],
    "training": {"seconds": 180, "rate": 0.1},  # a busy machine makes few steps within the second that a tour gets here
    "every": {"checkpoint": 0, "held_out": 0},
}


def lay_out(patch):
    """The small tour, on generated programs for a corpus."""
    files = [SourceFile(f"{i}.py", program.source) for i, program in enumerate(programs(seed=0, n=200))]
    patch.setattr(pretrain, "python_source", lambda: Corpus(files[:180], files[180:]))
    patch.setattr(Plan, "read", lambda name: Plan.from_dict(SMALL))
    patch.setattr(touring, "LENGTHS", (32, 512))
    patch.setattr(touring, "WRITTEN", 8)


@pytest.fixture
def small(monkeypatch):
    lay_out(monkeypatch)


@pytest.fixture(scope="module")
def tour(tmp_path_factory):
    """A small tour: the folder that it filled, and what it said."""
    folder, said = tmp_path_factory.mktemp("runs") / "deep" / "tour", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        lay_out(patch)
        assert main(["tour", "--minutes", "0.02", "--out", str(folder)]) == 0
    return folder, said.getvalue()


@pytest.fixture
def toured(tour):
    """The folder alone."""
    return tour[0]


def refusal(capsys, *words):
    """What a command that cannot be carried out says: one sentence on stderr, exit code 2."""
    try:
        code = main(list(words))
    except SystemExit as error:
        code = error.code
    said = capsys.readouterr().err
    assert code == 2 and said.count("\n") == 1 and said.endswith(".\n"), said
    return said


# --- tour ---


@pytest.mark.slow
def test_a_tour_reports_eight_things_and_keeps_a_model_that_opens(tour):
    folder, out = tour
    assert re.findall(r"^(\d)\. ", out, re.MULTILINE) == list("12345678")
    assert f"{200} files" in out and "20 of these files held out" in out
    before, after = map(float, re.search(r"([\d.]+) bits per byte before, ([\d.]+) after", out).groups())
    assert 0 < after < before
    assert {path.name for path in folder.iterdir()} == FILES  # and no scratch folder is left
    assert load(folder).config.vocab_size == 300 and (folder / "tour.png").stat().st_size > 5000
    assert f"generate --model {folder}" in out


@pytest.mark.slow
def test_ctrl_c_in_a_tour_keeps_what_was_learned_and_resume_goes_on_from_there(small, tmp_path, capsys, monkeypatch):
    draw_batch = Batcher.at

    def interrupted(batches, step):
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return draw_batch(batches, step)

    with monkeypatch.context() as patch:
        patch.setattr(Batcher, "at", interrupted)
        assert main(["tour", "--minutes", "9", "--seed", "5", "--out", str(tmp_path)]) == 130
    said = capsys.readouterr().out
    assert f"go on with: python -m minidsv4 tour --resume --out {tmp_path}" in said and " 5 steps," in said
    state = torch.load(tmp_path / "training.pt", weights_only=True)
    assert state["trainer"]["step"] == 5 and state["plan"]["seed"] == 5

    steps = []
    monkeypatch.setattr(Batcher, "at", lambda batches, step: steps.append(step) or draw_batch(batches, step))
    minutes = str(state["trainer"]["seconds"] / 60 + 0.005)
    assert main(["tour", "--resume", "--minutes", minutes, "--out", str(tmp_path)]) == 0
    assert [step for step in steps if step][0] == 5  # step 0 is looked at to measure threads
    assert torch.load(tmp_path / "training.pt", weights_only=True)["trainer"]["step"] > 5


def test_ctrl_c_before_training_says_that_nothing_is_kept(small, tmp_path, capsys, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "python_source", interrupted)
    assert main(["tour", "--out", str(tmp_path)]) == 130
    assert "nothing to keep yet" in capsys.readouterr().out and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_full_disk_gives_a_sentence_and_leaves_the_old_run_whole(small, toured, capsys, monkeypatch):
    def kept():
        return {path.name: path.read_bytes() for path in toured.iterdir() if path.name != "log.jsonl"}

    before = kept()

    def full(_state, path):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        assert main(["tour", "--minutes", "0.002", "--overwrite", "--out", str(toured)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]  # after the progress bar
    assert "No space left on device" in said and "--out" in said
    assert kept() == before


def test_a_folder_that_cannot_be_made_is_refused_before_any_work(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "cannot be written to" in refusal(capsys, "tour", "--out", str(tmp_path / "file" / "tour"))


@pytest.mark.slow
def test_resuming_where_nothing_is_or_where_the_state_is_cut_off_is_refused(toured, tmp_path, capsys):
    assert "holds no training.pt" in refusal(capsys, "tour", "--resume", "--out", str(tmp_path))
    (tmp_path / "training.pt").write_bytes((toured / "training.pt").read_bytes()[:500])
    assert "cannot be read" in refusal(capsys, "tour", "--resume", "--out", str(tmp_path))


@pytest.mark.slow
def test_a_state_of_another_version_and_a_run_that_ends_after_steps_are_no_tours(small, toured, tmp_path, capsys):
    state = torch.load(toured / "training.pt", weights_only=True)
    again = ["tour", "--resume", "--out", str(tmp_path)]
    torch.save({"trainer": state["trainer"], "seed": 0}, tmp_path / "training.pt")
    assert "has no plan, so it is of another version" in refusal(capsys, *again)
    plan = SMALL | {"stages": [{"steps": 3, "length": 24, "batch_size": 2}], "training": {}}
    torch.save(state | {"plan": plan}, tmp_path / "training.pt")
    assert "this run ends after steps" in refusal(capsys, *again)


def test_the_model_of_the_tour_has_every_kind_of_layer_hash_and_learned_routing_and_many_index_heads():
    plan = Plan.read("tour")
    config = plan.config
    assert {kind.name for kind in config.layer_types} == {"WINDOW", "CSA", "HCA"}
    assert {routing.name for routing in config.mlp_layer_types} == {"HASH", "LEARNED"} and config.index_n_heads >= 16
    assert plan.recipe.seconds == 180 and plan.recipe.steps is None and plan.held_out_bytes == 65536


# --- cache ---


def test_the_cache_table_adds_up_and_gives_each_share():
    config = Config.tiny()
    ids = torch.arange(600) % config.vocab_size
    growth = {n: report for n, report in weigh_cache(Model(config), ids).items() if n in (32, 512)}
    rows = {line[:12].strip(): re.findall(r"[\d,.]+%?", line[12:]) for line in cache_table(config, growth)[:-1]}
    number = {name: [float(cell.strip("%").replace(",", "")) for cell in cells] for name, cells in rows.items()}
    kinds = ("window", "tail state", "CSA entries", "indexer keys", "HCA entries")
    assert number["tokens"] == [32, 512]
    assert [sum(column) for column in zip(*(number[kind] for kind in kinds))] == number["V4 together"]
    # MHA keeps a key and a value for each of 10 heads of width 20, GQA8 for 8, MLA one latent and a rotary key of 8.
    for name, kept in {"MHA": 2 * 10 * 20, "GQA8": 2 * 8 * 20, "MLA": 20 + 8}.items():
        first, first_share, second, second_share = number[name]
        assert (first, second) == (4 * kept * 4 * 32, 4 * kept * 4 * 512)
        assert first_share == pytest.approx(100 * number["V4 together"][0] / first, abs=0.051)
        assert second_share == pytest.approx(100 * number["V4 together"][1] / second, abs=0.051)


# --- generate ---


@pytest.mark.slow
def test_generate_goes_on_from_the_prompt_and_the_same_seed_writes_the_same(toured, capsys):
    words = ["generate", "--model", str(toured), "x = 1", "--tokens", "12", "--seed", "3"]
    assert main(words) == 0
    once = capsys.readouterr().out
    assert main(words) == 0
    assert capsys.readouterr().out == once and once.startswith("x = 1") and len(once) > len("x = 1\n")
    assert main([*words, "--fused"]) == 0
    assert capsys.readouterr().out == once


def test_text_is_printed_piece_by_piece_and_ends_its_line_even_after_an_error(toured, capsys, monkeypatch):
    def pieces(prompt, n_tokens, *, stream, **_options):
        for piece in ("é", "∑"):
            stream(piece)
            seen.append(capsys.readouterr().out)
        raise ValueError("no more")

    seen = []
    monkeypatch.setattr(completion, "complete", pieces)
    assert main(["generate", "--model", str(toured), "x = "]) == 2
    assert seen == ["x = é", "∑"] and capsys.readouterr() == ("\n", "no more.\n")


# --- the operations that a model runs ---


@pytest.mark.slow
@pytest.mark.parametrize("plain", [True, False])
def test_every_command_that_runs_a_model_runs_it_on_the_operations_asked_for(small, tmp_path, monkeypatch, plain):
    ran = set()

    def noted(name, ops):
        return lambda *words, **options: ran.add(name) or ops.attend(*words, **options)

    monkeypatch.setattr(minidsv4, "PLAIN", PLAIN._replace(attend=noted("plain", PLAIN)))
    monkeypatch.setattr(minidsv4, "FAST", FAST._replace(attend=noted("fast", FAST)))
    options = ["--plain"] * plain
    out = str(tmp_path / "run")
    for words in (
        ["tour", "--minutes", "0.002", "--out", out],
        ["train", "--recipe", "tour", "--minutes", "0.002", "--overwrite", "--out", out],
        ["train", "--resume", "--out", out],
        ["generate", "x = 1", "--tokens", "2", "--model", out],
    ):
        ran.clear()
        assert main([*words, *options]) == 0
        assert ran == {"plain" if plain else "fast"}, words


def test_plain_operations_write_what_fast_ones_write(toured, capsys):
    words = ["generate", "--model", str(toured), "x = 1", "--tokens", "12", "--temperature", "0"]
    assert main(words) == 0
    once = capsys.readouterr().out
    assert main([*words, "--plain"]) == 0
    assert capsys.readouterr().out == once


def test_plain_operations_are_not_compiled_and_commands_without_a_model_have_none(toured, capsys):
    both = refusal(capsys, "generate", "x", "--model", str(toured), "--plain", "--fused")
    assert "--fused runs compiled loops" in both
    for command in ("ship", "bill", "ranks"):
        assert "unrecognized arguments: --plain" in refusal(capsys, command, *["x"] * (command == "ship"), "--plain")


# --- refusals ---


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tokens", "-1"], "--tokens: '-1' cannot be"),
        (["--tokens", "many"], "'many'"),
        (["--temperature", "-2"], "argument --temperature: -2.0 is out of range"),
        (["--top-p", "0"], "argument --top-p: 0.0 is out of range"),
        (["--speed", "9"], "unrecognized arguments"),
    ],
)
def test_options_that_make_no_sense_give_a_sentence(toured, capsys, options, words):
    assert words in refusal(capsys, "generate", "--model", str(toured), "x", *options)


def test_folders_without_a_whole_model_give_a_sentence(toured, tmp_path, capsys):
    generate = ["generate", "x", "--model"]
    assert "no such folder" in refusal(capsys, *generate, str(tmp_path / "none"))
    assert "no config.json" in refusal(capsys, *generate, str(tmp_path))
    save(load(toured), tmp_path)
    assert "no tokenizer.json" in refusal(capsys, *generate, str(tmp_path))
    whole = (toured / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "cut off" in refusal(capsys, *generate, str(tmp_path))


def test_commands_that_do_not_exist_and_no_command_give_a_sentence(capsys):
    assert "invalid choice: 'tuor'" in refusal(capsys, "tuor")
    assert "required: command" in refusal(capsys)


@pytest.mark.slow
def test_python_m_minidsv4_runs_the_commands_without_a_traceback():
    done = forks.module("minidsv4", "generate", "x", "--model", "nowhere")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "nowhere" in done.stderr
