"""Inputs of the exercises in notebook 09_muon."""

import numpy as np

from minidsv4 import paper
from minidsv4.course.tasks import Task
from minidsv4.train import muon


def any_value(generator):
    """A value and three steps, and where they lead as a matrix of one number."""
    schedule = generator.uniform(-1, 1, size=(3, 3)).tolist()
    s = float(generator.uniform(0, 1))
    turned = np.array([[s]])
    for a, b, c in schedule:
        turned = paper.newton_schulz_step(turned, a, b, c)
    return (s, schedule), float(turned[0, 0])


def value_after():
    """A singular value after some steps."""
    cases = [((0.5, [(2, -1.5, 0.5)]), 0.828125), ((1.0, muon.SCHEDULE[:1]), 0.701)]
    return Task(cases, any_value)


def any_schedule(generator):
    """Some fast and some exact steps, and the borders of what may come out."""
    n_fast, n_exact = (int(number) for number in generator.integers(0, [6, 4]))
    schedule = [*muon.SCHEDULE[:n_fast], *muon.SCHEDULE[-2:][:n_exact]]
    low = float(generator.uniform(0.3, 0.9))
    values = np.arange(1, 1001) / 1000
    for a, b, c in schedule:
        values = a * values + b * values**3 + c * values**5
    outside = np.flatnonzero((values < low) | (values > 1.2))
    return (schedule, low, 1.2), int(outside[-1]) + 2 if len(outside) else 1


def reached_from():
    """The smallest singular value that arrives."""
    exact = muon.SCHEDULE[-2:]
    return Task(
        [(([], 0.5, 1.0), 500), ((exact, 0.9, 1.01), 312), ((exact, 0.2, 0.9), 1001), ((muon.SCHEDULE, 0.99, 1.01), 1)],
        any_schedule,
    )
