"""Solutions of the exercises in 04_who_sees_what.ipynb."""

import numpy as np


def blind_spot(t, M, W):
    """Tokens behind the last finished entry and before the window."""
    return list(range((t + 1) // M * M, t - W + 1))


def mask(T, W, M):
    """Tokens of the window, then finished entries."""
    seen = np.zeros((T, T + T // M))
    for t in range(T):
        seen[t, max(0, t - W + 1) : t + 1] = 1
        seen[t, T : T + (t + 1) // M] = 1
    return seen


def stacked(maps):
    """The product of all layers, the newest on the left."""
    reached = np.eye(len(maps[0]))
    for joins in maps:
        reached = joins @ reached
    return (reached > 0).astype(int)
