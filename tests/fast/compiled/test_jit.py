"""What numba kept on disk is a help, never a condition: it is dropped where it cannot be read."""

import os
import subprocess
import sys

import pytest

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
    return subprocess.run([sys.executable, folder / "program.py"], capture_output=True, text=True, env=settings)


def damaged(file):
    """The file with all but its first bytes overwritten."""
    kept = file.read_bytes()
    file.write_bytes(kept[:40] + b"\0" * (len(kept) - 40))


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_damaged_machine_code_is_dropped_and_compiled_anew(tmp_path, ending):
    assert run(tmp_path).stdout == "3.5\n"
    files = list(tmp_path.rglob(f"*.{ending}"))
    assert files
    for file in files:
        damaged(file)
    done = run(tmp_path)
    assert (done.stdout, done.stderr) == ("3.5\n", "")


def test_machine_code_of_a_type_that_has_another_name_now_is_dropped(tmp_path):
    assert run(tmp_path).stdout == "3.5\n"
    done = run(tmp_path, "Couple")
    assert (done.stdout, done.stderr) == ("3.5\n", "")
