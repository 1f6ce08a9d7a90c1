"""Inputs of the exercises in notebook 00_tour."""

import numpy as np

from minidsv4.course.tasks import Task


def any_layers(generator):
    """Layers of three kinds, and what they keep after up to 5,000 tokens."""
    ratios = generator.choice([0, 4, 8], size=5).tolist()
    window = int(generator.integers(4, 20))
    other = int(generator.integers(3, 6))
    n = np.arange(1, 5000)
    kept = len(ratios) * np.minimum(n, window)
    for ratio in ratios:
        if ratio:
            kept = kept + n // ratio
    return (ratios, window, other), int(n[kept < other * n][0])


def overtakes():
    """The number of tokens from which V4 keeps less."""
    return Task([(([0, 4], 8, 1), 22), (([0], 4, 1), 5), (([0], 4, 2), 1)], any_layers)
