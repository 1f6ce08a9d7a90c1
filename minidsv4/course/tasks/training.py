"""Inputs of the exercises in notebook 10_training."""

import numpy as np

from minidsv4.course.tasks import Task
from minidsv4.ops import NO_TARGET
from minidsv4.train import loop


def any_recipe(generator):
    """A step of a run, and the rate that the package takes there."""
    steps = int(generator.integers(50, 500))
    step = int(generator.integers(steps))
    decay = float(generator.uniform(0.1, 0.9))
    recipe = loop.Recipe(steps=steps, rate=2.0, warm_up=7, decay=decay)
    return (step, steps, 2.0, 7, decay), recipe.rate_at(step, step / steps)


def rate():
    """The learning rate at a step."""
    recipe = loop.Recipe(steps=100, rate=2.0, warm_up=10, decay=0.4)
    cases = []
    for step in (0, 9, 50, 80, 99):
        cases.append(((step, 100, 2.0, 10, 0.4), recipe.rate_at(step, step / 100)))
    return Task(cases, any_recipe)


def any_documents(generator):
    """Lengths of four documents, and the row by counting gaps."""
    lengths = generator.integers(2, 9, size=4).tolist()
    align = int(generator.integers(1, 6))
    end = 0
    row = []
    for number, length in enumerate(lengths):
        gap = -end % align
        row += [-1] * gap + [number] * length
        end += gap + length
    return (lengths, align), row


def packed_row():
    """Documents packed into a row."""
    cases = [(([3, 2], 4), [0, 0, 0, -1, 1, 1]), (([2, 2], 1), [0, 0, 1, 1])]
    return Task(cases, any_documents)


def any_row(generator):
    """A packed row, and its targets by a shifted copy."""
    ahead = int(generator.integers(1, 4))
    documents = np.repeat([0, -1, 1, 2], generator.integers(1, 6, size=4))
    ids = generator.integers(0, 50, size=len(documents))
    later = np.append(ids[ahead:], [NO_TARGET] * ahead)[: len(ids)]
    theirs = np.append(documents[ahead:], [-1] * ahead)[: len(ids)]
    later[(theirs != documents) | (documents == -1)] = NO_TARGET
    return (ids.tolist(), documents.tolist(), ahead), later.tolist()


def targets():
    """What each place of a row predicts."""
    row = [5, 6, 7, 0, 0, 8, 9]
    documents = [0, 0, 0, -1, -1, 1, 1]
    cases = [((row, documents, 1), [6, 7, -100, -100, -100, 9, -100])]
    cases += [((row, documents, 2), [7, -100, -100, -100, -100, -100, -100])]
    return Task(cases, any_row)
