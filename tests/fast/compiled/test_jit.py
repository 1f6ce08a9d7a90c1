"""What numba kept on disk is a help, never a condition: it is dropped where it cannot be read."""

import contextlib
import os

import forks
import pytest

from minidsv4 import Config
from minidsv4.__main__ import main
from minidsv4.bench import phases
from minidsv4.fast.compiled.numba_loops import COMPILING
from minidsv4.serve import completion

pytestmark = pytest.mark.slow  # numba compiles anew in each

TYPES = """
from typing import NamedTuple

class Pair(NamedTuple):
    a: float
    b: float
"""
PROGRAM = """
from minidsv4.fast.compiled.jit import compiled
from types_of_it import Pair

@compiled
def total(pair):
    return pair.a + pair.b

print(total(Pair(1.5, 2.0)))
"""


def run(folder, name="Pair"):
    """What the program prints and complains of, with its type called so; machine code is kept in the folder."""
    (folder / "types_of_it.py").write_text(TYPES.replace("Pair", name))
    (folder / "program.py").write_text(PROGRAM.replace("Pair", name))
    settings = {**os.environ, "NUMBA_CACHE_DIR": str(folder / "kept")}
    source = "import runpy, sys; sys.path.insert(0, '.'); runpy.run_path('program.py')"
    return forks.python(source, cwd=folder, env=settings)


TOLD = """
from minidsv4.fast.compiled.jit import compiled
from minidsv4.fast.compiled.numba_loops import told_of_compiling

@compiled
def twice(a):
    return a + a

@compiled
def thrice(a):
    return twice(a) + a

thrice(1)
with told_of_compiling():
    print(thrice(1.5), twice(2.5))
print(thrice(1j))
"""


@pytest.mark.slow
def test_a_command_says_once_that_it_compiles_and_nothing_where_the_code_is_kept(tmp_path, monkeypatch):
    """Kind: a wait is announced, on stderr, and only where that was asked for; before, it was silent."""
    monkeypatch.setitem(globals(), "PROGRAM", TOLD)
    done = run(tmp_path)
    assert (done.stdout, done.stderr) == ("4.5 5.0\n3j\n", f"{COMPILING}\n")
    done = run(tmp_path)
    assert (done.stdout, done.stderr) == ("4.5 5.0\n3j\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("fused", [True, False])
def test_the_commands_that_decode_in_compiled_loops_announce_it(fused, monkeypatch, capsys):
    """Kind: a wait is announced; `generate --fused` and `bench --curve --fused` ask for it."""
    asked = []
    for place in (completion, phases):
        monkeypatch.setattr(place, "told_of_compiling", lambda: asked.append(1) or contextlib.nullcontext())
    assert main(["generate", "x", "--tokens", "0", *["--fused"] * fused]) == 0
    phases.curve("tiny", Config.tiny(), 1, (8,), fused)
    capsys.readouterr()
    assert len(asked) == 2 * fused


def damaged(file):
    """The file with all but its first bytes overwritten."""
    kept = file.read_bytes()
    file.write_bytes(kept[:40] + b"\0" * (len(kept) - 40))


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_damaged_machine_code_is_dropped_and_compiled_anew(tmp_path, ending):
    """Kind: a cache of numba that cannot be read; it ended in an unpickling traceback."""
    assert run(tmp_path).stdout == "3.5\n"
    files = list(tmp_path.rglob(f"*.{ending}"))
    assert files
    for file in files:
        damaged(file)
    done = run(tmp_path)
    assert (done.stdout, done.stderr) == ("3.5\n", "")


@pytest.mark.slow
def test_machine_code_of_a_type_that_has_another_name_now_is_dropped(tmp_path):
    assert run(tmp_path).stdout == "3.5\n"
    done = run(tmp_path, "Couple")
    assert (done.stdout, done.stderr) == ("3.5\n", "")


LEAF = """
from minidsv4.fast.compiled.jit import compiled

@compiled
def leaf(a):
    return a + 1
"""
CALLER = """
from leaf_of_it import leaf
from minidsv4.fast.compiled.jit import compiled

@compiled
def caller(a):
    return leaf(a) + leaf(a)

print(caller(10))
"""


@pytest.mark.slow
def test_a_caller_is_compiled_anew_where_a_file_that_it_calls_into_has_changed(tmp_path, monkeypatch):
    """Kind: machine code holds that of what it calls; it went on with the old one."""
    monkeypatch.setitem(globals(), "PROGRAM", CALLER)
    leaf = tmp_path / "leaf_of_it.py"
    leaf.write_text(LEAF)
    assert run(tmp_path).stdout == "22\n"
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nbc")}
    leaf.write_text(LEAF.replace("a + 1", "a + 100"))
    assert kept and run(tmp_path).stdout == "220\n"
    again = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nbc")}
    assert run(tmp_path).stdout == "220\n"
    assert again == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nbc")}, "kept where nothing changed"
