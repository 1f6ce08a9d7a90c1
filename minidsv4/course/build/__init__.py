"""Build a V4: checks of what the reader writes in `my_v4.py`, hints in three strengths, and where the reader stands.

from minidsv4.course import build
build.check("rotate")      # loads my_v4.py anew, tries it on fresh inputs, says what is wrong
build.hint("rotate", 2)    # 1 points to the idea, 2 says how, 3 nearly gives it away
build.table()              # every step, and how it stands
x, due = build.inputs("rotate", seed=7)  # inputs of a check, and what is due for them
mine = build.answer("rotate", x)         # what my_v4.py gives for them
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minidsv4.course.build import reader
from minidsv4.course.build.hints import HINTS
from minidsv4.course.build.judge import RIGHT, Judge, Verdict, float64
from minidsv4.course.build.parts import weights
from minidsv4.course.build.reader import load
from minidsv4.course.build.steps import Draw, Step
from minidsv4.course.build.track import NOTEBOOKS, TRACK

__all__ = [
    "RIGHT",
    "TRACK",
    "Verdict",
    "all_right",
    "answer",
    "check",
    "hint",
    "inputs",
    "known",
    "load",
    "print_table",
    "table",
    "verdicts",
    "weights",
]
FILE = f"{reader.NAME}.py"


def known(name: str) -> Step:
    """The step of this name."""
    if name not in TRACK:
        raise ValueError(f"step: {name!r} is not part of the track; there are {', '.join(TRACK)}")
    return TRACK[name]


def verdicts(file: str | Path = FILE, names: Sequence[str] = tuple(TRACK), seed: int | None = None) -> list[Verdict]:
    """How these steps of the reader's file stand.

    seed    of the inputs; new ones at every call where None
    raises  ValueError where the file does not load
    """
    judge = Judge(load(file), seed)
    return [judge.verdict(name) for name in names]


def check(name: str, file: str | Path = FILE, seed: int | None = None) -> None:
    """Print how one step of the reader's file stands; never stops a notebook, whatever the file does."""
    known(name)
    try:
        print(*verdicts(file, [name], seed))
    except ValueError as stopped:
        print(f"{name}: {stopped}")


def inputs(name: str, seed: int, case: int = 0) -> tuple[tuple, Any]:
    """The arguments that a check with this seed draws, in a tuple, and the package's answer to them.

    case  which of the check's inputs, from 0
    """
    step = known(name)
    with float64():
        drawn = list(step.draw(Draw(seed)))
        if case not in range(len(drawn)):
            raise ValueError(f"case: {case!r} is not drawn for {name}; give 0 to {len(drawn) - 1}")
        return drawn[case], step.right(*copy.deepcopy(drawn[case]))


def answer(name: str, x: tuple, file: str | Path = FILE) -> Any:
    """What the reader's file gives for the arguments `x` of `inputs`, with new tensors in float64.

    An exception of the reader's code passes through, with its traceback.
    """
    with float64():
        return known(name).call(load(file), *copy.deepcopy(x))


def table(file: str | Path = FILE) -> None:
    """Print every step and how it stands; never stops a notebook, whatever the file does."""
    try:
        print_table(verdicts(file))
    except ValueError as stopped:
        print(stopped)


def all_right(file: str | Path = FILE) -> bool:
    """Whether every step of the file is right; False too where the file does not load."""
    try:
        return all(verdict.state == RIGHT for verdict in verdicts(file))
    except ValueError:
        return False


def print_table(found: list[Verdict]) -> None:
    """Print verdicts on all steps, by notebook, and how many are right."""
    states = {verdict.step.name: verdict.state for verdict in found}
    for notebook, names in NOTEBOOKS.items():
        print(notebook)
        for name in names:
            print(f"  {name:20}{states[name]}")
    print(f"{sum(state == RIGHT for state in states.values())} of {len(states)} steps are right")


def hint(name: str, strength: int = 1) -> None:
    """Print a hint for a step: 1 points to the idea, 2 says how, 3 nearly gives it away."""
    if strength not in (1, 2, 3):
        raise ValueError(f"hint: strength = {strength!r} is not known; give 1, 2 or 3")
    print(HINTS[known(name).name][strength - 1])
