"""Inputs of the exercises in notebook 07_experts."""

import numpy as np

from minidsv4 import paper
from minidsv4.course.tasks import Task


def routed_by_the_loop(generator):
    """Fresh logits, and what `paper.route` makes of each token."""
    logits = generator.normal(size=(3, 5))
    biases = generator.normal(size=5)
    experts = []
    weights = []
    for score_E in np.sqrt(np.logaddexp(0, logits)):
        visited = sorted(zip(*paper.route(score_E, 2, 1.5, biases)))
        experts.append([expert for expert, _ in visited])
        weights.append([weight for _, weight in visited])
    return (logits, biases, 2, 1.5), np.stack([experts, weights])


def route_batch():
    """The routing of a batch."""
    shown = routed_by_the_loop(np.random.default_rng(7))
    return Task([shown], routed_by_the_loop)


def drawn_visits(generator):
    """Fresh visits of 6 ids to 5 experts, and their steadiness."""
    visits = generator.integers(0, 9, size=(6, 5)).astype(float)
    visits[0] = 0
    fewest = int(visits[1:].sum(axis=1).max()) // 2
    visits[1] = np.diff([0, 0, 1, 2, 3, fewest])  # an id that is seen just often enough
    seen = [sorted(row) for row in visits if sum(row) >= fewest]
    wanted = np.mean([sum(row[-2:]) / sum(row) for row in seen])
    return (visits, 2, fewest), wanted


def steadiness():
    """How steady the experts of an id are."""
    of_a_table = np.array([[3.0, 0.0, 3.0], [0.0, 9.0, 9.0], [0.0, 1.0, 1.0]])
    return Task([((of_a_table, 2, 4), 1.0)], drawn_visits)


def drawn_lean(generator):
    """Scores that lean to some experts, and the steps by the loops of paper.py."""
    scores = generator.random((16, 4)) + 0.3 * generator.random(4)
    biases = np.zeros(4)
    for step in range(200):
        picked = [expert for row in scores for expert in paper.route(row, 2, 1.0, biases)[0]]
        loads = [picked.count(expert) for expert in range(4)]
        if max(loads) <= 1.2 * np.mean(loads):
            return (scores, 2, 0.02, 1.2), step
        biases = paper.updated_bias(biases, loads, 0.02)
    return (scores, 2, 0.02, 1.2), 200


def steps_to_balance():
    """The steps until the load is even."""
    leaning = np.array([[0.5, 0.3], [0.5, 0.4], [0.5, 0.1], [0.5, 0.2]])
    cases = [((leaning, 1, 0.04, 1.0), 3), ((leaning, 1, 0.04, 1.5), 2), ((leaning, 2, 0.04, 1.0), 0)]
    cases += [((leaning, 1, 0.0, 1.0), 200)]
    return Task(cases, drawn_lean)
