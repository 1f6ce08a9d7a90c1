"""What a student's process has of the track `build`: the call of each step.

Every student's process loads this anew, so it leaves out what reads notebooks and draws, which the grader needs alone.
"""

import copy
from types import SimpleNamespace

from minidsv4.course.build.judge import changed, float64
from minidsv4.course.build.reader import place_of
from minidsv4.course.build.track import TRACK

CELL = "cell"  # the file's name in the student's process, worker.py


def call_of(name):
    """The name under which the student's process has the call of a step; no function can be called so."""
    return f"step {name}"


def callers(names):
    """Functions that call the student's parts, by `call_of` their step.

    names  what the student's file has defined by the time of a call
    """
    return {call_of(step.name): caller(step, names) for step in TRACK.values()}


def caller(step, names):
    """The function that gives what the student's part gives for the arguments of a step; `...` for a stub.

    raises  ValueError where it changes an argument, and what the student's code raises
    """

    def call(*arguments):
        before = copy.deepcopy(arguments)
        try:
            with float64():
                given = step.call(SimpleNamespace(**names), *arguments)
        except NotImplementedError as error:
            if place_of(error, CELL) == step.target:
                return ...
            raise
        if name := changed(step, before, arguments):
            raise ValueError(f"it changes {name} in place")
        return given

    return call
