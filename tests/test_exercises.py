"""Every exercise of the course can be solved, and only by an answer that holds for inputs that its cell does not show.

The convention stands in minidsv4/course/checks.py.
"""

import ast
import re
from pathlib import Path

import forks
import nbformat
import pytest
from nbformat import v4

from minidsv4.course import notebooks
from minidsv4.course.index import PROBLEMS, WEEKS, course, problems
from minidsv4.course.kit.exercises import exercises, setup_of

ROOT = Path(__file__).resolve().parents[1]
SOLUTIONS = notebooks.FOLDER / "solutions"
FEWEST = 60
PATHS = [*course(notebooks.FOLDER), *problems(notebooks.FOLDER)]
# Answers with what the check cell shows, and with the first of it for anything else.
PARROT = """
from minidsv4.course.suspects import Secret as _Secret


def _parrot(answer, *cases, _exercise=show.exercise, **options):
    def repeat(*arguments):
        known = [wanted for shown, wanted in cases if repr(tuple(shown)) == repr(arguments)]
        wanted = known[0] if known else cases[0][1]
        return wanted._name if isinstance(wanted, _Secret) else wanted  # a secret is no answer, its name is

    repeat.__name__ = answer.__name__
    _exercise(repeat, *cases, **options)


_honest = show.exercise
show.exercise = checks.exercise = _parrot
{check}
show.exercise = checks.exercise = _honest
"""


def prose(notebook):
    """The notebook's Markdown as one text."""
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def functions(path):
    """Names of a file's functions, those that help the others left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]


def verdicts(notebook, solutions):
    """(source, wanted start of a verdict) of all that should be tried, in order.

    solutions  path of the file with the solutions
    raises     LookupError naming an exercise without its check cell or its solution
    """
    for exercise in exercises(notebook):
        name = exercise.name
        if not solutions.exists() or name not in functions(solutions):
            raise LookupError(f"{name} needs a check and a solution, and dots in its heading")
        solution = f"import runpy\n{name} = runpy.run_path({str(solutions)!r})[{name!r}]"
        both = exercise.stub if exercise.check in exercise.stub else f"{exercise.stub}\n{exercise.check}"
        yield both, f"exercise {name}: {'.* is not right yet' if exercise.repair else 'not done yet'}"
        yield f"{solution}\n{exercise.check}", f"exercise {name}: correct in"
        yield PARROT.format(check=exercise.check), rf"exercise {name}: correct in .*, but for a fresh input"


def exercise_faults(notebook, solutions):
    """What is wrong with a notebook's exercises, a sentence each: runs stub, solution and parrot with the check."""
    try:
        tried = list(verdicts(notebook, solutions))
    except LookupError as error:
        return [str(error)]
    setup = f"from minidsv4.course import checks\n{setup_of(notebook)}"
    said = run_script("\n".join([setup, *(source for source, _ in tried)])) if tried else ""
    said = [line for line in said.splitlines() if line.startswith("exercise ")]
    if len(said) != len(tried):
        return [f"{len(tried)} verdicts were due, these were given: {said}"]
    return [
        f"it says '{line}', it should say '{due}'" for line, (_, due) in zip(said, tried) if not re.match(due, line)
    ]


def solutions_of(path):
    """The file with the solutions of a notebook."""
    return SOLUTIONS / (PROBLEMS if path.parent.name == PROBLEMS else "") / f"{path.stem}.py"


def run_script(source):
    """What a script prints, run in a process of its own because a set-up cell changes torch's defaults."""
    done = forks.python(source, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_stubs_are_not_done_yet_solutions_are_correct_and_answers_made_for_the_shown_cases_fail(path):
    assert exercise_faults(nbformat.read(path, as_version=4), solutions_of(path)) == []


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_keeps_its_solutions_apart_and_links_to_them(path):
    notebook = nbformat.read(path, as_version=4)
    named = [exercise.name for exercise in exercises(notebook)]
    assert functions(solutions_of(path)) == named
    assert f"solutions/{solutions_of(path).relative_to(SOLUTIONS).as_posix()})" in prose(notebook)
    assert "Solution:" not in prose(notebook)


def test_every_file_of_solutions_belongs_to_a_notebook():
    ours = {*SOLUTIONS.glob("*.py"), *(SOLUTIONS / PROBLEMS).glob("*.py")}
    assert ours == {solutions_of(path) for path in PATHS}


def test_the_course_has_sixty_exercises_two_or_three_a_notebook_and_a_larger_assignment_a_week():
    counts = {path.stem: len(exercises(nbformat.read(path, as_version=4))) for path in PATHS}
    print(counts)
    assert {stem for stem, count in counts.items() if count not in (2, 3) and stem[1] != "_"} == set()
    assert sum(count for stem, count in counts.items() if stem[1] != "_") >= FEWEST
    assert [count >= 5 for stem, count in counts.items() if stem[1] == "_"] == [True] * len(WEEKS)


# --- the tests above notice what they are for ---

SETUP = "from minidsv4.course import show\n\nhalf_of = lambda x: x / 2"
CHECK = "show.exercise(half, ((4,), 2), ((0.5,), half_of(0.5)){fresh})"
FRESH = ", fresh=lambda generator: ((x := generator.uniform(),), half_of(x))"


def exercise_on_halving(stub="...", mark="", fresh=FRESH):
    """A notebook with one exercise, in the form of the convention."""
    cells = [
        v4.new_code_cell(SETUP),
        v4.new_markdown_cell("## Exercise 1 ●○○ (5 minutes)"),
        v4.new_code_cell(f"# exercise: half{mark}\ndef half(x):\n    return {stub}  # half of x"),
        v4.new_code_cell(CHECK.format(fresh=fresh)),
    ]
    return v4.new_notebook(cells=cells)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("notebook", "answer", "fault"),
    [
        (exercise_on_halving(), "x / 2", None),
        (exercise_on_halving(), "np.true_divide(x, 2)", None),
        (exercise_on_halving(), "x / 3", "half(4) is not right yet. It is 1.333, it should be 2"),
        (exercise_on_halving(stub="x / 2"), "x / 2", "it should say 'exercise half: not done yet'"),
        (exercise_on_halving(stub="x / 3", mark=" (repair)"), "x / 2", None),
        (exercise_on_halving(stub="x / 2", mark=" (repair)"), "x / 2", "should say 'exercise half: .* is not right"),
        (exercise_on_halving(fresh=""), "x / 2", "correct in 2 of 2 cases', it should say"),
        (exercise_on_halving(), None, "half needs a check and a solution, and dots in its heading"),
    ],
)
def test_only_an_exercise_whose_stub_fails_and_whose_solution_passes_is_sound(notebook, answer, fault, tmp_path):
    solutions = tmp_path / "half.py"
    if answer:
        solutions.write_text(f"import numpy as np\n\n\ndef half(x):\n    return {answer}\n")
    found = exercise_faults(notebook, solutions)
    assert found == [] if fault is None else len(found) == 1 and fault in found[0], found


def test_an_exercise_without_its_check_is_missed(tmp_path):
    notebook = exercise_on_halving()
    del notebook.cells[3]
    solutions = tmp_path / "half.py"
    solutions.write_text("def half(x):\n    return x / 2\n")
    assert exercise_faults(notebook, solutions) == ["half needs a check and a solution, and dots in its heading"]
