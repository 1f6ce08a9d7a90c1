"""Inputs of the exercises in notebook 14_context_parallelism."""

import numpy as np

from minidsv4.course.tasks import Task


def any_ranks(generator):
    """Lengths of four ranks, and the owners of what each lacks, position by position."""
    lengths = generator.integers(1, 9, size=4).tolist()
    W = int(generator.integers(2, 12))
    owner = np.repeat(np.arange(4), lengths)
    wanted = []
    for rank in range(4):
        start = sum(lengths[:rank])
        lacking = owner[max(0, start - W + 1) : start]
        wanted.append(np.bincount(lacking, minlength=4).tolist())
    return (lengths, W), wanted


def fetched():
    """The entries that each rank fetches from each other one."""
    cases = [(([4, 4], 3), [[0, 0], [2, 0]])]
    cases += [(([4, 1, 4], 4), [[0, 0, 0], [3, 0, 0], [2, 1, 0]])]
    return Task(cases, any_ranks)
