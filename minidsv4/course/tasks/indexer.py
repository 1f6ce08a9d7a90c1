"""Inputs of the exercises in notebook 03_indexer."""

import numpy as np

from minidsv4 import paper
from minidsv4.course.tasks import Task


def any_entry(generator):
    """An indexer's query and one key, and their score by the loop of paper.py."""
    query_UZ = generator.normal(size=(3, 5))
    weight_U = generator.normal(size=3)
    key_CZ = generator.normal(size=(1, 5))
    wanted = paper.index_scores(query_UZ, weight_U, key_CZ)[0]
    return (query_UZ, weight_U, key_CZ[0]), wanted


def score():
    """The score of one entry."""
    votes = np.array([2.0, -1.0])
    cases = [((np.eye(2), votes, np.array([3.0, 1.0])), 5.0)]
    return Task(cases, any_entry)


def any_scores(generator):
    """Scores with ties, and the picks by the loop of paper.py."""
    score_TC = generator.integers(0, 4, size=(12, 4)).astype(float)
    M, k = (int(size) for size in generator.integers([3, 1], [5, 4]))
    picks = []
    for t in range(12):
        picks.append(sorted(paper.select_entries(score_TC[t], k, (t + 1) // M)))
    return (score_TC, M, k), picks


def picks_of_text():
    """The picks of every token of a text."""
    tied = np.array([[1.0, 2.0], [1.0, 1.0], [0.0, 3.0], [2.0, 5.0]])
    return Task([((tied, 2, 1), [[], [0], [0], [1]])], any_scores)


def any_query(generator):
    """Scores with ties, and weights that follow them a little."""
    score_C = generator.integers(0, 5, size=12).astype(float)
    weight_C = generator.random(12) * (1 + score_C)
    share = float(generator.uniform(0.2, 0.95))
    k = 1
    while weight_C[paper.select_entries(score_C, k, 12)].sum() < share * weight_C.sum():
        k += 1
    return (score_C, weight_C, share), k


def needed():
    """How many picks hold a part of the attention."""
    score_C = np.array([1.0, 3.0, 0.0, 3.0])
    weight_C = np.array([1.0, 2.0, 4.0, 1.0])
    cases = [((score_C, weight_C, 0.3), 2), ((score_C, weight_C, 0.5), 3), ((score_C, weight_C, 0.6), 4)]
    return Task(cases, any_query)
