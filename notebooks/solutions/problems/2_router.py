"""Solution of the assignment problems/2_router.ipynb."""

import numpy as np


def visits(scores, biases, n_active):
    """Ones at the experts with the largest score plus bias."""
    best_first = np.argsort(-(scores + biases), axis=1, kind="stable")
    visited = np.zeros(scores.shape)
    np.put_along_axis(visited, best_first[:, :n_active], 1, axis=1)
    return visited


def weights(scores, visited, scale):
    """The scores of the visited experts over their sum."""
    chosen = scores * visited
    return scale * chosen / chosen.sum(axis=1, keepdims=True)


def layer(x_TD, matrices, weight_TE):
    """Each expert once, over the tokens that visit it."""
    answer = np.zeros(x_TD.shape)
    rows = []
    for expert, matrix in enumerate(matrices):
        theirs = np.flatnonzero(weight_TE[:, expert])
        product = x_TD[theirs] @ matrix
        activated = product / (1 + np.exp(-product))
        answer[theirs] += weight_TE[theirs, expert][:, None] * activated
        rows.append(len(theirs))
    return answer.tolist(), rows


def sequence_loss(scores, visited):
    """Loads times mean shares of the scores, summed over experts."""
    n_experts = scores.shape[1]
    load = n_experts * visited.sum(axis=0) / visited.sum()
    share = (scores / scores.sum(axis=1, keepdims=True)).mean(axis=0)
    return load @ share


def violations(batches, n_active, speed):
    """Route each batch with the biases of now, then move them."""
    biases = np.zeros(batches[0].shape[1])
    found = []
    for scores in batches:
        loads = visits(scores, biases, n_active).sum(axis=0)
        found.append(loads.max() / loads.mean() - 1)
        biases = biases + speed * np.sign(loads.mean() - loads)
    return found


def slowest(batches, n_active, speeds, worst):
    """The smallest speed whose later batches are balanced well enough."""
    good = []
    for speed in speeds:
        found = violations(batches, n_active, speed)
        if np.mean(found[len(found) // 2 :]) <= worst:
            good.append(speed)
    return min(good) if good else None
