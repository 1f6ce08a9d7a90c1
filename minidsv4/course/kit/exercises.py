"""The exercises of a notebook: their stubs, their checks, their points, and the inputs that the checks hold.

The convention stands in minidsv4/course/checks.py.
"""

import contextlib
import functools
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import nbformat

from minidsv4.course import checks, colab, show
from minidsv4.course.tasks import Task

STUB = re.compile(r"# exercise: (\w+)( \(repair\))?\n")
HEADING = re.compile(r"^#+ (?:Exercise|Part)\b.*?(●+)", re.MULTILINE)


@dataclass(frozen=True)
class Exercise:
    """An exercise of a notebook.

    name    of the function that the reader writes
    points  1 to 3, the number of dots in its heading
    stub    source of the cell with the stub
    check   the code that tries an answer: the stub's last line, or a cell of its own
    repair  True where the stub is a wrong answer that should be mended
    """

    name: str
    points: int
    stub: str
    check: str
    repair: bool


@dataclass(frozen=True)
class Trial:
    """An exercise with all the inputs that answers are tried on, drawn once for all students.

    name     of the exercise
    points   that a right answer earns
    cases    pairs (arguments, due answer)
    differs  function from (arguments, given, due) to what is wrong, in words, or None
    call     name of the function that is called in a student's process
    needs    names of the exercises without which an answer cannot be right
    """

    name: str
    points: int
    cases: list
    differs: Callable
    call: str
    needs: tuple = ()


def code_cells(notebook):
    """The notebook's code cells, in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def setup_of(notebook):
    """The source of the set-up cell, the first code cell below the one for Colab; empty where there is no code."""
    return next((cell.source for cell in code_cells(notebook) if not colab.is_for_colab(cell)), "")


def check_of(notebook, stub, name):
    """The code that tries the answer; None where there is none.

    stub  the exercise's cell
    """
    if found := re.search(rf'^show\.exercise_of\("\w+", {name}\)$', stub.source, flags=re.MULTILINE):
        return found.group()
    cells = (cell.source for cell in code_cells(notebook))
    return next((source for source in cells if re.search(rf"show\.exercise\(\s*{name},", source)), None)


def exercises(notebook):
    """The Exercises of a notebook, in order.

    raises  LookupError naming an exercise without its check or without dots in its heading
    """
    found = []
    points = 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            dots = HEADING.findall(cell.source)
            points = len(dots[-1]) if dots else points
        elif named := STUB.match(cell.source):
            name = named[1]
            check = check_of(notebook, cell, name)
            if check is None or not points:
                raise LookupError(f"{name} needs a check and a solution, and dots in its heading")
            found.append(Exercise(name, points, cell.source, check, named[2] is not None))
    return found


@functools.cache
def read(path):
    """The notebook in a file of the course, read once."""
    return nbformat.read(Path(path), as_version=4)


def tasks_of(notebook, wanted=None):
    """Name of an exercise = its Task, as its check would try an answer.

    The notebook's set-up cell and the checks are run here, so this is for a notebook of the course, never for one that
    came from somebody else.

    wanted  names of the exercises, or None for all
    """
    names = {}
    found = {}
    with contextlib.redirect_stdout(io.StringIO()):  # what a check tells the reader is not for the table of points
        exec(setup_of(notebook), names)
        for exercise in exercises(notebook):
            if wanted is None or exercise.name in wanted:
                found[exercise.name] = _captured(exercise, dict(names))
    return found


def _captured(exercise, names):
    """The Task that the check of an exercise hands to `exercise`."""
    caught = []

    def catch(answer, *cases, fresh=None, within=1e-9, n_fresh=None):
        caught.append(Task(list(cases), fresh, within))

    with mock.patch.object(show, "exercise", catch), mock.patch.object(checks, "exercise", catch):
        exec(exercise.stub, names)
        if not caught:
            exec(exercise.check, names)
    return caught[0]
