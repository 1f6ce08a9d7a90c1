"""The track `build` for the grader: each step of a student's my_v4.py on fresh inputs, a point a step.

The student's part runs in his process, as a notebook's functions do; the package's answer is computed here.
"""

import copy

import torch

from minidsv4.course import notebooks
from minidsv4.course.build.compare import close, parts, value_fault
from minidsv4.course.build.judge import all_close, float64, form, named_mistake
from minidsv4.course.build.steps import Draw
from minidsv4.course.build.track import TRACK
from minidsv4.course.kit import calls
from minidsv4.course.kit.exercises import Trial

FILE = notebooks.FOLDER / "build" / "my_v4.py"
SETUP = f"from {calls.__name__} import callers\n\nglobals().update(callers(globals()))"


def trials(seed):
    """The Trials of all steps, in order.

    seed  of the inputs
    """
    found = []
    for step in TRACK.values():
        with float64():
            drawn = list(step.draw(Draw(seed)))
            cases = [(arguments, step.right(*copy.deepcopy(arguments))) for arguments in drawn]
        found.append(Trial(step.name, 1, cases, differing(step), calls.call_of(step.name), step.needs))
    return found


def differing(step):
    """The function from (arguments, given, due) of a step to what is wrong with the answer; None where it is right."""

    def difference(arguments, given, due):
        wanted = parts(due)
        if all_close(given, wanted):
            return None
        answers = [(arguments, given)]
        return named_mistake(step, answers) or form(step, answers, [wanted]) or first_fault(step, given, wanted)

    return difference


def first_fault(step, given, wanted):
    """What is wrong with the first part of an answer that is."""
    for part, due, axes in zip(parts(given), wanted, step.axes):
        if not close(part, due):
            return value_fault(torch.as_tensor(part), torch.as_tensor(due), axes)
    raise AssertionError("something was wrong")
