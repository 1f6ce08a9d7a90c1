"""What `import minidsv4` brings with it: the names that it promises, and no library that a first call does not need."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import minidsv4

HEAVY = ("tokenizers", "tqdm", "matplotlib", "numba", "transformers", "IPython")
ROOMS = ("cost", "parallel", "train", "experiments", "bench", "course")  # that a first call does not need


def told(*lines):
    """The words that a fresh interpreter prints for these lines."""
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.slow
def test_the_import_adds_none_of_the_heavy_libraries_to_what_torch_loads():
    before = "import sys, torch", "before = {*sys.modules}"
    added = {name.split(".")[0] for name in told(*before, "import minidsv4", "print(*{*sys.modules} - before)")}
    assert "minidsv4" in added and added.intersection(HEAVY) == set()


def test_the_import_loads_no_room_that_a_first_call_does_not_need():
    names = told("import sys, minidsv4", "print(*[name for name in sys.modules if name.startswith('minidsv4.')])")
    assert {name.split(".")[1] for name in names}.isdisjoint(ROOMS)


def test_a_room_that_is_loaded_later_is_the_module_itself():
    assert minidsv4.cost.bill is not None and minidsv4.cost.__name__ == "minidsv4.cost"


@pytest.mark.slow
def test_what_needs_the_tokenizers_loads_them_when_it_is_asked_for():
    """Each name is asked for in a fork of one interpreter, which has loaded torch and no tokenizers."""
    ask = """import os, sys, torch, minidsv4
for name in ("", "complete", "load_pretrained", "pretrained_tokenizer"):
    if os.fork() == 0:
        name and getattr(minidsv4, name)
        os._exit(10 + ("tokenizers" in sys.modules))  # 1 is that of an error
    print(name, os.waitstatus_to_exitcode(os.wait()[1]))"""
    assert told(ask) == ["10", "complete", "11", "load_pretrained", "11", "pretrained_tokenizer", "11"]


def test_every_promised_name_is_there_and_listed():
    for name in minidsv4.__all__:
        assert getattr(minidsv4, name) is not None and name in dir(minidsv4)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'compleet'"):
        minidsv4.compleet  # noqa: B018


def test_the_package_says_that_it_is_typed_and_ships_the_file_that_says_so():
    package = Path(minidsv4.__file__).parent
    settings = tomllib.loads((package.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert (package / "py.typed").is_file()
    assert "py.typed" in settings["tool"]["setuptools"]["package-data"]["minidsv4"]
