"""Solutions of the exercises in 08_mtp.ipynb."""

import numpy as np


def tokens_a_pass(conditional):
    """One token of the model's own, and each draft that is reached and kept."""
    total = 1.0
    reached = 1.0
    for share in conditional:
        reached = reached * share
        total = total + reached
    return total


def written(p, q, guess, first, second):
    """The guess where it is kept, otherwise a token drawn from what is missing."""
    if first * q[guess] < p[guess]:
        return guess
    missing = np.maximum(0, p - q)
    room = np.cumsum(missing / missing.sum())
    return int(np.searchsorted(room, second))
