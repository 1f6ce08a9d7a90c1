"""Inputs of the course's exercises: what a cell shows, and what it draws anew to try an answer on.

The module `attention` holds those of notebook 01_attention: a function for each exercise, of its name, that returns a
Task. A notebook tries an answer by `show.exercise_of("01_attention", answer)`.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """Pairs (arguments, wanted) that an exercise shows, and a function from a NumPy Generator to one more pair.

    cases   list of pairs; arguments is a tuple
    fresh   function from a Generator to such a pair
    within  largest absolute difference allowed
    """

    cases: list
    fresh: Callable
    within: float = 1e-9


def find(notebook, name):
    """The Task of an exercise.

    notebook  such as "01_attention"
    name      of the function that the reader writes
    raises    ValueError for a notebook or a name without a task
    """
    module = f"{__name__}.{notebook.partition('_')[2] or notebook}"
    try:
        return getattr(importlib.import_module(module), name)()
    except (ModuleNotFoundError, AttributeError):
        raise ValueError(
            f"exercise {name!r} of notebook {notebook!r} is not known: {module} should define it"
        ) from None
