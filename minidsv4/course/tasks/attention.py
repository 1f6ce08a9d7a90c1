"""Inputs of the exercises in notebook 01_attention."""

import math

import numpy as np

from minidsv4 import paper
from minidsv4.course.tasks import Task


def any_scores(generator):
    """Scores, and the part that a sink drawn at random takes of them."""
    scores_S = generator.normal(size=5)
    sink = generator.normal()
    share = np.exp(sink) / (np.exp(sink) + np.exp(scores_S).sum())
    return (share, scores_S), sink


def sink_for():
    """The sink that takes a given part of a head's attention."""
    cases = [((0.5, np.log([2, 1, 0.5, 1])), math.log(4.5))]
    cases += [((0.9, np.zeros(128)), math.log(9 * 128))]
    return Task(cases, any_scores)


def any_text(generator):
    """Queries, entries and a window, and the answers by the loops of paper.py."""
    query_TK, entry_TK = generator.normal(size=(2, 6, 4))
    sink = generator.normal()
    W = int(generator.integers(1, 6))
    rows = []
    for t in range(6):
        seen_SK = entry_TK[list(paper.window_tokens(t, W))]
        rows.append(paper.core_attention(query_TK[t : t + 1], seen_SK, [sink])[0])
    return (query_TK, entry_TK, sink, W), np.array(rows)


def window_attention():
    """The answers of one head over a window."""
    one = np.array([[2.0, 0.0], [0.0, 1.0]])
    return Task([((one, one, -np.inf, 1), one)], any_text)


def any_vector(generator):
    """A vector of 8 channels and its turn by the loop of paper.py."""
    x_K = generator.normal(size=8)
    place = int(generator.integers(-50, 50))
    R = int(generator.choice([2, 4, 6]))
    return (x_K, place, R, 100.0), paper.rotate(x_K, place, paper.rope_frequencies(R, 100.0))


def turned():
    """A vector, turned to its place."""
    quarter = np.array([7.0, 1.0, 0.0])
    cases = [((quarter, 0, 2, 10.0), quarter)]
    cases += [((quarter, 1, 2, 10.0), np.array([7.0, math.cos(1), math.sin(1)]))]
    return Task(cases, any_vector)
