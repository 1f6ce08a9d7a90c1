"""Points for returned works: the checks of the course, on fresh inputs, in a process of its own for each of them.

A student's cells run in the order of the notebook, after the course's own set-up cell; cells that the course ships are
left out. Only what a function gives back counts, and it is compared here, not where it was computed.
"""

import functools
import re
import time
from dataclasses import dataclass

import numpy as np

from minidsv4.course import checks, notebooks
from minidsv4.course.kit import exercises, track
from minidsv4.course.kit.exercises import Trial
from minidsv4.course.kit.pupil import Gone, Pupil
from minidsv4.course.kit.returned import TRACK, left_out, nothing_to_grade, own_cells, returned, without_steps
from minidsv4.options import readable

DRAWN = 10  # inputs for each exercise, beside those that its cell shows
NOT_DONE = "not done yet"


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
    """Name of a work = the course's own file, such as "01_attention" or "problems/1_decoding"; "build" is the track."""
    with_exercises = {
        name: path for name, path in notebooks.every().items() if exercises.exercises(exercises.read(path))
    }
    return with_exercises | {TRACK: track.FILE}


@functools.lru_cache(maxsize=4)
def trials(path, seed):
    """The Trials of a work.

    path  of the course's own file
    seed  of the inputs
    """
    if path == track.FILE:
        return track.trials(seed)
    notebook = exercises.read(path)
    tasks = exercises.tasks_of(notebook)
    found = []
    for number, exercise in enumerate(exercises.exercises(notebook)):
        task = tasks[exercise.name]
        generator = np.random.default_rng([seed, number])
        drawn = [task.fresh(generator) for _ in range(DRAWN)] if task.fresh else []
        found.append(Trial(exercise.name, exercise.points, [*task.cases, *drawn], _within(task.within), exercise.name))
    return found


def _within(within):
    """The comparison of a Trial that takes numbers for equal within so much."""
    return lambda arguments, given, due: checks.wrong(given, due, within)


def score(student, name, path, given, seed, limits):
    """The Scores of a student's work.

    name    of the work
    path    of the course's own file
    given   Returned of the student
    seed    of the inputs
    limits  Limits of the student's process
    """
    tried = trials(path, seed)
    if name not in given.works:
        reasons = dict.fromkeys((trial.name for trial in tried), given.missing(name, path.name))
    else:
        try:
            reasons = _reasons(tried, path, given.works[name], limits)
        except ValueError as error:
            reasons = dict.fromkeys((trial.name for trial in tried), str(error))
    scores = []
    for trial in tried:
        reason = reasons[trial.name]
        scores.append(Score(student, name, trial.name, 0 if reason else trial.points, trial.points, reason))
    return scores


def _reasons(tried, path, given, limits):
    """Name of an exercise = why it earns nothing; an empty reason where it is right."""
    cells = own_cells(given, path)
    written = " ".join(source for _, source in cells)
    setup = track.SETUP if path == track.FILE else exercises.setup_of(exercises.read(path))
    reasons = {}
    gone = {}
    for trial in tried:  # those whose function nobody touched need no process
        if not cells or path != track.FILE and not re.search(rf"\b{trial.name}\b", written):
            reasons[trial.name] = NOT_DONE
    waiting = [trial for trial in tried if trial.name not in reasons]
    while waiting:
        pupil = _begin(setup, cells, limits, gone)
        with pupil:
            while waiting:
                trial = waiting.pop(0)
                try:
                    reasons[trial.name] = _fault(pupil, trial, {**gone, **pupil.faults})
                except Gone as error:
                    reasons[trial.name] = str(error)
                    break
    return {trial.name: _needed(trial, reasons) for trial in tried}


def _needed(trial, reasons):
    """The reason of an exercise, or the name of one that it needs and that earns nothing either."""
    missing = [name for name in trial.needs if reasons[name]]
    reason = reasons[trial.name]
    return f"it needs {missing[0]}, which is not right" if missing and reason not in ("", NOT_DONE) else reason


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
    end = time.monotonic() + pupil.limits.seconds
    for number, (arguments, wanted) in enumerate(trial.cases):
        state, answer = pupil.ask(trial.call, arguments, end)
        if state == "missing":
            told = "; ".join(f"cell {cell}: {said}" for cell, said in faults.items())
            return f"there is no function {trial.name}" + (f" ({told})" if told else "")
        if state == "raised":
            return f"it stopped with {answer}"
        if answer is ...:
            return NOT_DONE
        if difference := _difference(trial, arguments, answer, wanted):
            return f"wrong for input {number + 1} of {len(trial.cases)}. {difference}"
    return ""


def _difference(trial, *case):
    """What tells an answer from the due one, in words; None where they agree. A case is (arguments, given, due)."""
    try:
        return trial.differs(*case)
    except Exception as error:  # an answer of a form that nobody thought of
        return f"It cannot be compared ({type(error).__name__})"


def grade_all(folder, seed, limits, wanted=None, tell=lambda said: None):
    """The Scores of all students for all exercises, students in the order of their names.

    folder  of returned notebooks
    seed    of the inputs
    limits  Limits of a student's process
    wanted  names or numbers of the works to grade; None for those that somebody returned
    tell    called with a line about seed and limits, and one for each work
    raises  ValueError for a name that is no work with exercises, and where no student returned one
    """
    known = gradable()
    works = notebooks.every() | known
    found = returned(folder, works)
    if not any(name in known for own in found.values() for name in own.works):
        raise ValueError(nothing_to_grade(folder, works))
    names = chosen(known, found, wanted)
    allowed = f"{limits.seconds:g} s and {readable(limits.memory)}"
    tell(f"inputs of --seed {seed}; each cell and each exercise may take {allowed}")
    for sentence in (*left_out(folder, works), *without_steps(found)):
        tell(sentence)
    scores = []
    for name in names:
        for student, own in sorted(found.items()):
            scores += score(student, name, known[name], own, seed, limits)
            tell(f"{student}: {name}")
    return sorted(scores, key=lambda one: one.student)


def chosen(known, found, wanted):
    """Names of the notebooks to grade, in the course's order.

    raises  ValueError for a name that is no notebook with exercises
    """
    if wanted is None:
        return [name for name in known if any(name in own.works for own in found.values())]
    names = []
    for word in wanted:
        fitting = [name for name in known if name == word or name.startswith(f"{word}_")]
        if not fitting:
            raise ValueError(f"--notebooks: {word!r} is no notebook with exercises; there are {', '.join(known)}")
        names += fitting
    return [name for name in known if name in names]
