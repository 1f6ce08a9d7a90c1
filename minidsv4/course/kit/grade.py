"""Points for returned notebooks: the checks of the course, on fresh inputs, in a process of its own for each notebook.

A student's cells run in the order of the notebook, after the course's own set-up cell; cells that the course ships are
left out. Only what a function gives back counts, and it is compared here, not where it was computed.
"""

import functools
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
import numpy as np

from minidsv4.course import checks, notebooks
from minidsv4.course.kit import exercises
from minidsv4.course.kit.pupil import Gone, Pupil
from minidsv4.options import readable

DRAWN = 10  # inputs for each exercise, beside those that its cell shows
NOT_RETURNED = "not returned"


@dataclass(frozen=True)
class Score:
    """Points of a student for an exercise, and the reason where they are 0."""

    student: str
    notebook: str
    exercise: str
    points: int
    most: int
    reason: str = ""


def gradable():
    """Name of a notebook with exercises, such as "01_attention" or "problems/1_decoding" = its path."""
    return {name: path for name, path in notebooks.every().items() if exercises.exercises(exercises.read(path))}


def returned(folder, known):
    """Who returned what: student = {name of a notebook: path}.

    folder  one subfolder for each student, or files that begin with the student's name: ada_01_attention.ipynb
    known   names of notebooks
    raises  ValueError where there is no notebook of the course, or one twice of the same student
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give the one that holds what students returned")
    found = {}
    for path in sorted(folder.rglob("*.ipynb")):
        student, name = _whose(path.relative_to(folder), known)
        if name is None or ".ipynb_checkpoints" in path.parts:
            continue
        first = found.setdefault(student, {}).setdefault(name, path)
        if first != path:
            raise ValueError(f"{student} returned {name} twice: {first} and {path}; leave one of them")
    if not found:
        raise ValueError(f"{folder} holds no notebook of the course; expected such as ada/01_attention.ipynb")
    return found


def left_out(folder, known):
    """Places of notebooks that bear no name of the course's, such as ada/01_attention (1).ipynb: nobody grades them."""
    places = sorted(path.relative_to(folder) for path in Path(folder).rglob("*.ipynb"))
    return [place for place in places if _whose(place, known)[1] is None and ".ipynb_checkpoints" not in place.parts]


def _whose(place, known):
    """(student, notebook's name) of a returned file's place; the name is None where it is no notebook of the course."""
    by_stem = {name.rpartition("/")[2]: name for name in known}
    if len(place.parts) > 1:
        return place.parts[0], by_stem.get(place.stem)
    for stem, name in by_stem.items():
        if found := re.fullmatch(rf"(.+?)[_ .-]+{re.escape(stem)}", place.stem):
            return found[1], name
    return place.stem, None


@dataclass(frozen=True)
class Trial:
    """An exercise with all the inputs that answers are tried on, drawn once for all students."""

    exercise: exercises.Exercise
    cases: list
    within: float


@functools.lru_cache(maxsize=4)
def trials(path, seed):
    """The Trials of a notebook of the course.

    path  of the course's own notebook
    seed  of the inputs
    """
    notebook = exercises.read(path)
    tasks = exercises.tasks_of(notebook)
    found = []
    for number, exercise in enumerate(exercises.exercises(notebook)):
        task = tasks[exercise.name]
        generator = np.random.default_rng([seed, number])
        drawn = [task.fresh(generator) for _ in range(DRAWN)] if task.fresh else []
        found.append(Trial(exercise, [*task.cases, *drawn], task.within))
    return found


def own_cells(path, shipped):
    """Pairs (number, source) of the code cells in a returned notebook that the course does not ship.

    raises  ValueError for a file that is no notebook
    """
    try:
        cells = nbformat.read(path, as_version=4).cells
    except (ValueError, KeyError, AttributeError, OSError, nbformat.ValidationError, json.JSONDecodeError) as error:
        raise ValueError(f"the file is no notebook ({type(error).__name__})") from None
    theirs = {cell.source.strip() for cell in exercises.code_cells(shipped)}
    numbered = [(number, cell.source) for number, cell in enumerate(cells) if cell.cell_type == "code"]
    return [(number, source) for number, source in numbered if source.strip() not in theirs]


def score(student, name, path, given, seed, limits):
    """The Scores of a student's notebook.

    name    of the notebook
    path    of the course's own
    given   path of the returned one, or None
    seed    of the inputs
    limits  Limits of the student's process
    """
    tried = trials(path, seed)
    if given is None:
        reasons = dict.fromkeys((trial.exercise.name for trial in tried), NOT_RETURNED)
    else:
        try:
            reasons = _reasons(tried, path, given, limits)
        except ValueError as error:
            reasons = dict.fromkeys((trial.exercise.name for trial in tried), str(error))
    scores = []
    for exercise in (trial.exercise for trial in tried):
        reason = reasons[exercise.name]
        scores.append(Score(student, name, exercise.name, 0 if reason else exercise.points, exercise.points, reason))
    return scores


def _reasons(tried, path, given, limits):
    """Name of an exercise = why it earns nothing; an empty reason where it is right."""
    shipped = exercises.read(path)
    cells = own_cells(given, shipped)
    written = " ".join(source for _, source in cells)
    setup = exercises.setup_of(shipped)
    reasons = {}
    gone = {}
    for trial in tried:  # those whose function nobody touched need no process
        if not re.search(rf"\b{trial.exercise.name}\b", written):
            reasons[trial.exercise.name] = "not done yet"
    waiting = [trial for trial in tried if trial.exercise.name not in reasons]
    while waiting:
        pupil = _begin(setup, cells, limits, gone)
        with pupil:
            while waiting:
                trial = waiting.pop(0)
                try:
                    reasons[trial.exercise.name] = _fault(pupil, trial, {**gone, **pupil.faults})
                except Gone as error:
                    reasons[trial.exercise.name] = str(error)
                    break
    return reasons


def _begin(setup, cells, limits, gone):
    """A Pupil that has run the cells, without those that end the process or run too long: they go into `gone`."""
    while True:
        try:
            return Pupil(setup, [cell for cell in cells if cell[0] not in gone], limits)
        except Gone as error:
            if error.at is None:
                raise ValueError(f"the notebook could not be started: it {error}") from None
            gone[error.at] = str(error)


def _fault(pupil, trial, faults):
    """Why an exercise is not right, in words; an empty text where it is."""
    name = trial.exercise.name
    end = time.monotonic() + pupil.limits.seconds
    for number, (arguments, wanted) in enumerate(trial.cases):
        state, answer = pupil.ask(name, arguments, end)
        if state == "missing":
            told = "; ".join(f"cell {cell}: {said}" for cell, said in faults.items())
            return f"there is no function {name}" + (f" ({told})" if told else "")
        if state == "raised":
            return f"it stopped with {answer}"
        if answer is ...:
            return "not done yet"
        if difference := _difference(answer, wanted, trial.within):
            return f"wrong for input {number + 1} of {len(trial.cases)}. {difference}"
    return ""


def _difference(answer, wanted, within):
    """What tells an answer from the wanted one, in words; None where they agree."""
    try:
        return checks.wrong(answer, wanted, within)
    except Exception as error:  # an answer of a form that nobody thought of
        return f"It cannot be compared ({type(error).__name__})"


def grade_all(folder, seed, limits, wanted=None, tell=lambda said: None):
    """The Scores of all students for all exercises, students in the order of their names.

    folder  of returned notebooks
    seed    of the inputs
    limits  Limits of a student's process
    wanted  names or numbers of the notebooks to grade; None for those that somebody returned
    tell    called with a line about seed and limits, and one for each notebook
    raises  ValueError for a name that is no notebook with exercises
    """
    known = gradable()
    found = returned(folder, known)
    names = chosen(known, found, wanted)
    allowed = f"{limits.seconds:g} s and {readable(limits.memory)}"
    tell(f"inputs of --seed {seed}; each cell and each exercise may take {allowed}")
    for place in left_out(folder, notebooks.every()):
        tell(f"left out, for its name is no notebook's of the course: {place}")
    scores = []
    for name in names:
        for student, given in sorted(found.items()):
            scores += score(student, name, known[name], given.get(name), seed, limits)
            tell(f"{student}: {name}")
    return sorted(scores, key=lambda one: one.student)


def chosen(known, found, wanted):
    """Names of the notebooks to grade, in the course's order.

    raises  ValueError for a name that is no notebook with exercises
    """
    if wanted is None:
        return [name for name in known if any(name in given for given in found.values())]
    names = []
    for word in wanted:
        fitting = [name for name in known if name == word or name.startswith(f"{word}_")]
        if not fitting:
            raise ValueError(f"--notebooks: {word!r} is no notebook with exercises; there are {', '.join(known)}")
        names += fitting
    return [name for name in known if name in names]
