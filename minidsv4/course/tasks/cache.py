"""Inputs of the exercises in notebook 05_cache."""

import numpy as np

from minidsv4.course.tasks import Task


def any_chunks(generator):
    """A text cut anywhere, and its entries as the whole text gives them."""
    text = generator.integers(0, 99, size=24).tolist()
    M = int(generator.choice([2, 4]))
    ends = sorted(generator.integers(0, 25, size=3).tolist())
    chunks = []
    wanted = []
    for start, stop in zip([0, *ends], [*ends, 24]):
        chunks.append(text[start:stop])
        closed = range(start // M, stop // M)
        wanted.append([float(np.mean(text[max(0, c - 1) * M : (c + 1) * M])) for c in closed])
    return (chunks, M), wanted


def means():
    """The entries that each chunk finishes."""
    cases = [(([[1, 2, 3], [4, 6, 8, 10], [12]], 2), [[1.5], [2.5, 5.25], [9.0]])]
    cases += [(([[1], [2], [3, 6]], 4), [[], [], [3.0]])]
    return Task(cases, any_chunks)
