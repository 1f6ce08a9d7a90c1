"""Inputs of the assignment problems/2_router."""

import numpy as np
import torch
from einops import einsum

from minidsv4 import paper
from minidsv4.course.tasks import Task
from minidsv4.train.balance import max_violation


def visited_by_loop(scores, biases, n_active):
    """Who visits whom, as ones and zeros (T, E), by `paper.route`."""
    visited = np.zeros(scores.shape)
    for row, score_E in zip(visited, scores):
        row[paper.route(score_E, n_active, 1.0, biases)[0]] = 1
    return visited


def drawn_scores(generator):
    """Scores with ties, and the visits."""
    scores = generator.integers(1, 6, size=(5, 4)) / 4
    biases = generator.integers(-2, 3, size=4) / 4
    n_active = int(generator.integers(1, 4))
    return (scores, biases, n_active), visited_by_loop(scores, biases, n_active)


def visits():
    """Which experts each token visits."""
    scores = np.array([[1.0, 2.0, 2.0], [3.0, 2.0, 1.0]])
    cases = [((scores, np.zeros(3), 1), np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))]
    cases += [((scores, np.array([-3.0, 0.0, 0.0]), 2), np.array([[0.0, 1.0, 1.0], [0.0, 1.0, 1.0]]))]
    return Task(cases, drawn_scores)


def drawn_visits(generator):
    """Scores and visits, and the weights by `paper.route`."""
    scores = generator.random((5, 4)) + 0.1
    biases = generator.normal(size=4)
    weights = np.zeros((5, 4))
    for row, score_E in zip(weights, scores):
        chosen, given = paper.route(score_E, 2, 1.5, biases)
        row[chosen] = given
    return (scores, visited_by_loop(scores, biases, 2), 1.5), weights


def weights():
    """The weights of the visited experts."""
    scores = np.array([[1.0, 3.0, 9.0]])
    return Task([((scores, np.array([[1.0, 1.0, 0.0]]), 2.0), np.array([[0.5, 1.5, 0.0]]))], drawn_visits)


def drawn_layer(generator):
    """Tokens, matrices and weights, and the sums over all experts at once."""
    x_TD = generator.normal(size=(6, 3))
    matrices = generator.normal(size=(4, 3, 3))
    weight_TE = generator.random((6, 4)) * (generator.random((6, 4)) < 0.5)
    parts = einsum(torch.tensor(x_TD), torch.tensor(matrices), "t i, e i d -> t e d")
    answer = (torch.nn.functional.silu(parts) * torch.tensor(weight_TE)[..., None]).sum(1)
    rows = [int((column > 0).sum()) for column in weight_TE.T]
    return (x_TD, matrices, weight_TE), (answer.tolist(), rows)


def layer():
    """The outputs of a layer of experts, and the rows of each expert."""
    return Task([drawn_layer(np.random.default_rng(7))], drawn_layer)


def drawn_sequence(generator):
    """Scores and visits of a sequence, and its balance loss by the loop of paper.py."""
    scores = generator.random((7, 4)) + 0.1
    chosen = np.array([paper.route(score_E, 2, 1.0)[0] for score_E in scores])
    visited = visited_by_loop(scores, np.zeros(4), 2)
    return (scores, visited), paper.balance_loss(scores, chosen)


def sequence_loss():
    """The balance loss of a sequence."""
    leaning = np.array([[3.0, 1.0], [3.0, 1.0]])
    cases = [((leaning, np.eye(2)), 1.0), ((leaning, np.array([[1.0, 0.0], [1.0, 0.0]])), 1.5)]
    return Task(cases, drawn_sequence)


def violations_by_loop(batches, n_active, speed):
    """The largest load over the mean, minus 1, of each batch."""
    biases = np.zeros(batches[0].shape[1])
    found = []
    for scores in batches:
        loads = visited_by_loop(scores, biases, n_active).sum(0)
        found.append(float(max_violation(torch.tensor(loads))))
        biases = paper.updated_bias(biases, loads, speed)
    return found


def leaning_batches(generator, steps=12):
    """Batches of scores in which some experts are better for all tokens."""
    lean = 0.5 * generator.random(4)
    return [generator.random((16, 4)) + lean for _ in range(steps)]


def drawn_run(generator):
    """Batches, and the violation of each by the loops of paper.py."""
    batches = leaning_batches(generator)
    speed = float(generator.choice([0.0, 0.02, 0.1]))
    return (batches, 2, speed), violations_by_loop(batches, 2, speed)


def violations():
    """How far from even the load of each batch is."""
    same = [np.array([[0.5, 0.375], [0.5, 0.25]])] * 3
    return Task([((same, 1, 0.125), [1.0, 0.0, 0.0]), ((same, 1, 0.0), [1.0, 1.0, 1.0])], drawn_run)


def drawn_speeds(generator):
    """Batches and speeds, and the slowest that is good enough."""
    batches = leaning_batches(generator)
    speeds = [0.003, 0.01, 0.03, 0.1, 0.3]
    later = {speed: np.mean(violations_by_loop(batches, 2, speed)[6:]) for speed in speeds}
    worst = float(np.quantile(list(later.values()), generator.random())) + 1e-6
    good = [speed for speed in speeds if later[speed] <= worst]
    order = generator.permutation(speeds).tolist()
    return (batches, 2, order, worst), min(good, default=None)


def slowest():
    """The smallest speed that balances well enough."""
    same = [np.array([[0.5, 0.375], [0.5, 0.125]])] * 4
    cases = [((same, 1, [0.5, 0.0625, 0.125, 0.03125], 0.0), 0.0625), ((same, 1, [0.0], 0.5), None)]
    return Task(cases, drawn_speeds)
