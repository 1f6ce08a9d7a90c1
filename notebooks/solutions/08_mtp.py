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


def passes(model, block, first, n, depth):
    """Each pass keeps the guesses up to the first wrong one, and one token more."""
    last = first
    n_written = 0
    n_passes = 0
    while n_written < n:
        guess = last
        for _ in range(depth):
            guess = block[guess]
            if guess != model[last]:
                break
            last = guess
            n_written += 1
        last = model[last]
        n_written += 1
        n_passes += 1
    return n_passes
