"""Command lines that cannot be carried out: one sentence, exit code 2, and nothing made, changed or lost."""

import shlex

import pytest

from minidsv4.__main__ import main
from minidsv4.train import pretrain


def run(capsys, *words):
    """Exit code, output and errors of a command."""
    try:
        code = main(list(words))
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


def refusal(capsys, *words):
    """The one sentence on stderr with which a command is refused."""
    code, said, errors = run(capsys, *words)
    assert (code, said) == (2, "") and errors.count("\n") == 1 and errors.endswith(".\n"), (words, said, errors)
    return errors


# --- numbers ---

NUMBERS = [
    ("tour", "--minutes", ("0", "-1", "inf", "nan", "1e308", "three")),
    ("tour", "--seed", ("9" * 30, "-" + "9" * 30, "9" * 5000, "0.5", "")),
    ("train", "--minutes", ("0", "-1", "inf", "nan", "1e308", "three")),
    ("train", "--steps", ("0", "-5", "2.5", "9" * 30)),
    ("train", "--threads", ("0", "-1", "1000000", "9" * 30)),
    ("ranks", "--ranks", ("0", "1", "-2", "5", "9" * 30)),
    ("ranks", "--waves", ("0", "-1", "9" * 30)),
    ("ranks", "--seconds", ("0", "-1", "inf", "nan", "1e308")),
    ("ranks", "--rounds", ("-1", "9" * 30)),
    ("bill", "--tokens", ("0", "-1", "99999999999999999999", "inf", "1.5")),
    ("bench", "--size", ("tiny,", ",", "")),
    ("bench", "--threads", ("0", "-1", "9" * 30)),
    ("bench", "--repeats", ("0", "-1", "inf")),
    ("bench", "--lengths", ("0", "-1", "1K,")),
    ("generate x", "--tokens", ("-1", "70000", "9" * 30, "9" * 5000, "many")),
    ("generate x", "--temperature", ("-1", "inf", "nan", "hot")),
    ("generate x", "--top-p", ("0", "2", "nan")),
    ("generate x", "--seed", ("9" * 30, "-" + "9" * 30, "9" * 5000, "1.0")),
]


@pytest.mark.parametrize(("command", "option", "values"), NUMBERS, ids=lambda value: str(value)[:12])
def test_a_number_that_cannot_be_is_named_with_its_option_and_nothing_is_made(
    command, option, values, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for value in values:
        said = refusal(capsys, *command.split(), option, value)
        assert len(said) < 400 and not list(tmp_path.iterdir())
        named = (option, "n_tokens", "empty name")  # of a text that is too long; of sizes
        assert any(word in said for word in named), said


def test_an_empty_name_of_a_folder_is_not_the_folder_one_stands_in(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words in (["tour", "--out"], ["train", "--out"], ["generate", "x", "--model"], ["ship", "run", "--out"]):
        assert "names no folder" in refusal(capsys, *words, "")
    assert not list(tmp_path.iterdir())


# --- a folder that holds a run ---


def holding(folder, *names):
    """A folder with the files of a run, and what is in each."""
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text('{"step": 0}\n{"step": 1}\n')
    return {path: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["training.pt", "log.jsonl", "model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("command", ["tour", "train"])
def test_a_run_is_replaced_only_where_that_is_asked_for(command, name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretrain, "Run", None)
    out = tmp_path / "my run"
    before = holding(out, name, "notes.txt")
    said = refusal(capsys, command, "--out", str(out))
    again = f"`python -m minidsv4 {command} --resume --out {shlex.quote(str(out))}` goes on with it"
    assert again in said and "--overwrite in place of --resume begins anew" in said
    assert ("make tour ARGS=--overwrite" in said) == (command == "tour")
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_a_log_without_a_step_and_files_of_other_names_are_no_run(tmp_path):
    holding(tmp_path / "run", "notes.txt")
    (tmp_path / "run" / "log.jsonl").write_text('{"step": 0}\n')
    assert not pretrain.holds_run(tmp_path / "run") and not pretrain.holds_run(tmp_path / "none")


def test_resume_and_overwrite_exclude_each_other_and_resume_makes_no_folder(tmp_path, capsys):
    for command in ("tour", "train"):
        out = tmp_path / "none"
        assert "not allowed with" in refusal(capsys, command, "--resume", "--overwrite", "--out", str(out))
        assert "holds no training.pt" in refusal(capsys, command, "--resume", "--out", str(out))
        assert not out.exists()
