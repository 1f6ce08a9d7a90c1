"""Command lines that cannot be carried out: one sentence, exit code 2, and nothing made, changed or lost."""

import os
import random
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import forks
import pytest
import torch
from small import small_model

import minidsv4
from minidsv4 import __version__, options, save
from minidsv4.__main__ import COMMANDS, main
from minidsv4.train import pretrain

PACKAGE = Path(minidsv4.__file__).parent


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


# --- weights ---


def test_a_folder_with_a_weight_that_is_nan_is_named_by_its_tensor(tmp_path, capsys):
    """Kind: damage that no logit shows; `save` keeps what it is given, so that a run that diverged can be looked at."""
    model = small_model(dtype=torch.float32)
    model.layers[2].ffn.gate.bias[3] = torch.nan
    save(model, tmp_path)
    assert "layers.2.ffn.gate.bias holds nan (1 not finite)" in refusal(
        capsys, "generate", "x", "--model", str(tmp_path)
    )


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
    ("needle", "--tokens", ("0", "-1", "1023", "9" * 30, "1M")),
    ("needle", "--seeds", ("0", "-1", "1.5", "9" * 30)),
    ("needle", "--threads", ("0", "-1", "1000000")),
    ("needle", "--reads", ("all", "", "csa")),
    ("bench", "--size", ("tiny,", ",", "")),
    ("bench", "--threads", ("0", "-1", "9" * 30)),
    ("bench", "--repeats", ("0", "-1", "inf")),
    ("bench", "--lengths", ("0", "-1", "1K,")),
    ("generate x", "--tokens", ("-1", "70000", "9" * 30, "9" * 5000, "many")),
    ("generate x", "--temperature", ("-1", "inf", "nan", "hot")),
    ("generate x", "--top-p", ("0", "2", "nan")),
    ("generate x", "--seed", ("9" * 30, "-" + "9" * 30, "9" * 5000, "1.0")),
    ("chat", "--tokens", ("0", "-1", "9" * 30, "many")),
    ("chat", "--mode", ("deep", "", "0")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "option", "values"), NUMBERS, ids=lambda value: str(value)[:12])
def test_a_number_that_cannot_be_is_named_with_its_option_and_nothing_is_made(
    command, option, values, tmp_path, monkeypatch, capsys
):
    """Kind: a number of steps, minutes, threads, ranks or tokens that trained, hung or overflowed; before any work."""
    monkeypatch.chdir(tmp_path)
    for value in values:
        said = refusal(capsys, *command.split(), option, value)
        assert len(said) < 400 and not list(tmp_path.iterdir())
        named = (option, "n_tokens", "empty name")  # of a text that is too long; of sizes
        assert any(word in said for word in named), said


def test_an_empty_name_of_a_folder_is_not_the_folder_one_stands_in(tmp_path, monkeypatch, capsys):
    """Kind: a name that Python takes for another folder."""
    monkeypatch.chdir(tmp_path)
    of_runs = (["tour", "--out"], ["train", "--out"], ["needle", "--out"])
    for words in (*of_runs, ["generate", "x", "--model"], ["needle", "--model"], ["ship", "run", "--out"]):
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
    """Kind: work that is lost in silence; before, the log was emptied at once, and state and model followed."""
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


UNQUOTED = re.compile(r"python -m minidsv4 [^\"`]*--(?:out|model) \{(?!options\.pasted\()")


def test_every_folder_that_is_to_be_pasted_is_quoted():
    """Kind: a name with a space or a quote, which a shell takes for several words."""
    found = [line for path in PACKAGE.rglob("*.py") for line in path.read_text(encoding="utf-8").splitlines()]
    assert sum("options.pasted(" in line for line in found) >= 5
    assert not [line for line in found if UNQUOTED.search(line)]
    assert UNQUOTED.search("again = f'python -m minidsv4 train --resume --out {folder}'")
    for name in ("my run", "t'our", "ru\nns", "$HOME"):
        assert shlex.split(f"--out {options.pasted(name)}") == ["--out", name]


# --- terminals and pipes ---


def hear_ctrl_c():
    """What runs in the background ignores Ctrl-C, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def shell(line, *words, **variables):
    """What `sh` says of a line in which "$@" is `python -m minidsv4 WORDS`: exit code, output, errors, all as bytes."""
    command = ["bash", "-o", "pipefail", "-c", line, "sh", sys.executable, "-m", "minidsv4", *words]
    buffered = {"PYTHONUNBUFFERED": ""}  # else an error of writing shows at once, and never at the end
    settings = {"env": os.environ | buffered | variables, "timeout": 100, "preexec_fn": hear_ctrl_c}
    done = subprocess.run(command, capture_output=True, check=False, **settings)
    return done.returncode, done.stdout, done.stderr


QUICK = """import sys, types


def add_options(parser):
    parser.add_argument("--tokens", type=int)


def main(arguments):
    if arguments.tokens == 0:
        raise ValueError("no tokens")
    print("a bill")
    return 0


sys.modules["minidsv4.cost.report"] = types.SimpleNamespace(add_options=add_options, main=main)
"""


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """In `shell`, `bill` is a command of a few lines, which is there at once; all around it is as ever."""
    (tmp_path / "sitecustomize.py").write_text(QUICK)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


@pytest.mark.slow
def test_a_reader_that_goes_ends_a_command_without_a_word():
    """Kind: an output that is gone; before, this ended in a traceback. The real bill: its reader is gone before it."""
    code, said, errors = shell('"$@" | true', "bill")
    assert (code, said, errors) == (141, b"", b"")


def test_output_that_is_closed_or_full_is_no_traceback(quick):
    assert shell('"$@"', "bill") == (0, b"a bill\n", b"")
    assert shell('"$@" >&-', "bill") == (0, b"", b"")
    code, _, errors = shell('"$@" > /dev/full', "bill")
    sentence = b"the output cannot be written (No space left on device); send it to another place.\n"
    assert (code, errors) == (2, sentence)


def test_a_refusal_of_an_option_names_command_and_option_once(capsys):
    """Kind: a rule of a function whose words are told by the command as well."""
    for option, value in (("--seed", "9" * 30), ("--temperature", "-1"), ("--top-p", "2")):
        said = refusal(capsys, "generate", "x", option, value)
        name = option.removeprefix("--").replace("-", "_")
        assert f"argument {option}: {value}" in said.replace(".0", ""), said
        assert said.count("generate") == 1 and f"{name} =" not in said


@pytest.mark.parametrize("errors", ["2>&-", "2>/dev/full", "2> >(true)"])
def test_errors_that_nobody_can_read_change_no_exit_code(errors, quick):
    """Kind: a refusal stays one; before, the error of saying it was another one, with another code."""
    assert shell(f'"$@" {errors}', "bill", "--tokens", "x") == (2, b"", b"")
    assert shell(f'"$@" {errors}', "bill", "--tokens", "0") == (2, b"", b"")


@pytest.mark.slow
def test_errors_that_nobody_can_read_change_no_exit_code_of_a_command_that_runs_a_model():
    assert shell('"$@" 2>&-', "generate", "x", "--model", "nowhere") == (2, b"", b"")


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_what_a_terminal_cannot_show_is_replaced(encoding):
    """Kind: a terminal of fewer letters; before, a codec's error cut the text."""
    terminal = f"import sys; sys.stdout.reconfigure(encoding={encoding!r})"
    done = forks.module("minidsv4", "generate", "x = '\u2211'", "--tokens", "0", before=terminal)
    assert (done.returncode, done.stdout, done.stderr) == (0, "x = '?'\n", "")


def test_a_prompt_that_is_no_utf_8_is_a_sentence(capsys):
    """Kind: words of the shell that are no text; before, a TypeError of the tokenizer."""
    assert "a byte that is no UTF-8" in refusal(capsys, "generate", os.fsdecode(b"x\xff"))


@pytest.mark.slow
@pytest.mark.parametrize("module", ["torch", "tokenizers"])
def test_ctrl_c_while_a_command_is_loaded_is_a_sentence(module, tmp_path):
    """Kind: a stop at any moment; before, one within the imports was a traceback."""
    killed = f"    os.kill(os.getpid(), {signal.SIGINT:d})"
    lines = ["import os", "try:", killed, "except KeyboardInterrupt:", "    raise ImportError"]  # as NumPy does
    (tmp_path / f"{module}.py").write_text("\n".join(lines))
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    assert shell('"$@"', "generate", "x", PYTHONPATH=path) == (130, b"", b"Stopped.\n")


@pytest.mark.parametrize("module", ["argparse", "dataclasses"])
def test_ctrl_c_while_the_package_itself_is_loaded_is_a_sentence(module, tmp_path):
    """Kind: a stop before the command is known; before, a traceback out of an import."""
    killed = f"import os\nos.kill(os.getpid(), {signal.SIGINT:d})\n"
    (tmp_path / f"{module}.py").write_text(killed)
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    assert shell('"$@"', "bill", PYTHONPATH=path) == (130, b"", b"Stopped.\n")


# --- help ---


def test_help_shows_defaults_and_the_version_needs_no_torch(capsys):
    """Kind: what a reader asks first; before, there was no version, and help showed no default."""
    for name in COMMANDS:
        code, said, errors = run(capsys, name, "--help")
        assert (code, errors) == (0, "") and "Ops(" not in said and "None" not in said and "False" not in said
    said = " ".join(run(capsys, "tour", "--help")[1].split())
    assert "(default: 3.0)" in said and "(default: runs/tour)" in said
    assert "(default: attend,prefill," in " ".join(run(capsys, "bench", "--help")[1].split())
    assert run(capsys, "--version") == (0, f"minidsv4 {__version__}\n", "")
    script = "import sys, minidsv4.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("typed", ["minidsv4", "python -m minidsv4"])
def test_a_refusal_names_the_program_that_was_typed(typed, capsys, monkeypatch):
    started = "minidsv4" if typed == "minidsv4" else str(PACKAGE / "__main__.py")
    monkeypatch.setattr(sys, "argv", [os.path.join("bin", started), "tour"])
    code, _, errors = run(capsys, "tour", "--minutes", "0")
    assert code == 2 and errors.startswith(f"{typed} tour: argument --minutes: ")


def test_the_installed_command_is_the_modules_main():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"minidsv4": f"{main.__module__}:{main.__name__}"}


def test_make_alone_lists_its_targets_and_starts_none():
    """Kind: a first try that costs minutes; before, it trained the tour's model."""
    listed = subprocess.run(["make"], cwd=PACKAGE.parent, capture_output=True, text=True, check=True).stdout
    assert [line.split()[:2] for line in listed.splitlines()][0] == ["make", "tour"]
    assert all(line.startswith("make ") for line in listed.splitlines()) and listed.count("\n") >= 5


# --- any words ---

VALUES = ["", "\n", "a\nb", "\udcff", "\0", "9" * 40, "n" * 300]
VALUES += "0 -1 1 7 inf nan x 1e400 % %s - -- = é ∑ pro --help tiny, tiny,none none.json /dev/null /dev/null/x".split()
OPTIONS = """
    --out --minutes --seed --resume --overwrite --steps --threads --recipe --model --tokens --temperature --top-p
    --fused --plain --size --phases --lengths --repeats --json --plot --ranks --waves --device --seconds --rounds
    --like --layers --width --version --history --mode --tools --check --nothing
""".split()


def line_of_words(generator):
    """A command, or something else, with up to four options and values that may belong to it."""
    words = [generator.choice([*COMMANDS, "tuor", ""])]
    for _ in range(generator.randrange(5)):
        words += generator.choice([[generator.choice(OPTIONS), generator.choice(VALUES)], [generator.choice(VALUES)]])
    return words


@pytest.mark.slow
def test_200_lines_of_any_words_are_done_or_refused_in_a_sentence(tmp_path, monkeypatch, capsys):
    """The work itself is left out: what is tested is all that comes before it."""
    monkeypatch.chdir(tmp_path)
    for place, name in (
        ("minidsv4.train.pretrain", "begin"),
        ("minidsv4.course.tour", "begin"),
        ("minidsv4.serve.completion", "complete"),
        ("minidsv4.serve.chat", "opened"),
        ("minidsv4.cost.ranks", "strategies"),
        ("minidsv4.train.mint", "draw"),
        ("minidsv4.course.vectors.command", "write"),
        ("minidsv4.experiments.needle", "load_needle"),
        ("minidsv4.bench.report", "machine"),
    ):
        monkeypatch.setattr(f"{place}.{name}", stop)
    monkeypatch.setattr("minidsv4.parallel.benchmark.run_ranks", stop)
    generator = random.Random(0)
    codes = []
    for _ in range(200):
        words = line_of_words(generator)
        code, _, errors = run(capsys, *words)
        codes.append(code)
        assert code in (0, 2, 130), words
        assert code != 2 or (errors.count("\n") == 1 and errors.endswith(".\n")), (words, errors)
    assert {0, 2, 130} == set(codes)


def stop(*_words, **_options):
    """In place of the work."""
    raise KeyboardInterrupt
