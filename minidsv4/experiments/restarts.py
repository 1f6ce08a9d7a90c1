"""An experiment: the lengths of texts that a service finishes, where any token may be the last before it is killed.

A text that begins again draws a new length. So a length l is finished in proportion to `p(l) (1 - h)^l`, where p is
what the model writes and h the share of tokens at which a kill comes: long texts are missing. A text that goes on has
the length that it was drawn with. The report names this bias as the reason for a log of every token.
"""

from typing import NamedTuple

import numpy as np


class Finished(NamedTuple):
    """The lengths of finished texts, in tokens, and how many tokens were computed for them."""

    lengths: np.ndarray
    n_computed: int


def begin_again(lengths: np.ndarray, kill_rate: float, n_texts: int, seed: int = 0) -> Finished:
    """Texts of a service that throws away what a kill interrupts, and draws it anew.

    lengths    of texts that the model wrote undisturbed, tokens; drawn from with equal chances
    kill_rate  probability of a kill at each token, 0 to below 1
    """
    rng = np.random.default_rng(seed)
    finished: list[int] = []
    n_computed = 0
    while len(finished) < n_texts:
        length = int(rng.choice(lengths))
        killed_at = int(rng.geometric(kill_rate)) if kill_rate else length + 1
        if killed_at > length:
            finished.append(length)
        n_computed += min(killed_at, length)
    return Finished(np.array(finished), n_computed)


def go_on(lengths: np.ndarray, kill_rate: float, n_texts: int, seed: int = 0) -> Finished:
    """Texts of a service with a log; a kill costs the one token that was not logged yet."""
    rng = np.random.default_rng(seed)
    finished = rng.choice(lengths, n_texts)
    n_kills = int(rng.negative_binomial(finished.sum(), 1 - kill_rate)) if kill_rate else 0
    return Finished(finished, int(finished.sum()) + n_kills)


def expected_lengths(lengths: np.ndarray, kill_rate: float) -> tuple[np.ndarray, np.ndarray]:
    """The lengths that occur, ascending, and the probability of each where texts begin again: `p(l) (1 - h)^l`."""
    values, counts = np.unique(lengths, return_counts=True)
    weight = counts * (1 - kill_rate) ** values
    return values, weight / weight.sum()
