"""The bug museum: every known trap of a V4 port as a switchable change of the real model.

    with mutant("carry_transposed"):
        model(ids)  # as wrong as the ports that shipped this

Nothing below this room knows of it: on entry a mutant replaces an operation of `ops.py`, or a function of the model's
modules and classes, on exit it puts it back. Models built before and after entry show the bug alike. Each mutant is a
function that is handed the `right` one and its arguments and does the wrong thing instead; its docstring is the
mistake, its decorator says what one sees (`symptom`), who shipped it (`found`: project and issue, empty where none is
known) and which checks notice (`killed_by`: these and no others; they stand in `minidsv4/course/checkups/`). Traps are
numbered as in the project's list of 47.

Not here, because they change nothing: a mean instead of a sum over index heads (a positive factor moves no pick), and
the weight-free norm of a query head after its rotation instead of before it (a rotation keeps the length). Nor are two
traps of the list. 33, heads of 512 numbers and a sink, which some attention kernels do not take, is a limit of kernels
that nothing here calls: attention is written out in `ops.py`. 47, tests that compare with a port that makes the same
mistake, is one of tests: it is why `agrees_with_paper` compares with loops written down from the equations.
"""

from minidsv4.course.mutants import (
    attention,
    caching,
    compression,
    experts,
    files,
    posttraining,
    rotary,
    selection,
    serving,
    streams,
    talking,
)
from minidsv4.course.mutants.museum import MUTANTS, Mutant, known, mutant

__all__ = [
    "MUTANTS",
    "Mutant",
    "attention",
    "caching",
    "compression",
    "experts",
    "files",
    "known",
    "mutant",
    "posttraining",
    "rotary",
    "selection",
    "serving",
    "streams",
    "talking",
]
