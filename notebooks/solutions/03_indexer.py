"""Solutions of the exercises in 03_indexer.ipynb."""

import numpy as np


def score(query_UZ, weight_U, key_Z):
    """Each head's product, cut at 0, times its weight, summed."""
    votes_U = np.maximum(query_UZ @ key_Z, 0)
    return weight_U @ votes_U


def picks_of_text(score_TC, M, k):
    """For each token the k best visible entries, ascending."""
    picks = []
    for t in range(len(score_TC)):
        visible = range((t + 1) // M)
        by_score = sorted(visible, key=lambda c, t=t: -score_TC[t][c])
        picks.append(sorted(by_score[:k]))
    return picks


def needed(score_C, weight_C, share):
    """The first place at which the sum of weights, best score first, is enough."""
    best_first = np.argsort(-score_C, kind="stable")
    held = np.cumsum(weight_C[best_first])
    enough = held >= share * weight_C.sum()
    return int(np.argmax(enough)) + 1
