"""Inputs of the exercises in notebook 08_mtp."""

import numpy as np

from minidsv4.course.tasks import Task


def drawn_shares(generator):
    """Four conditional probabilities, and the mean number of tokens."""
    shares = generator.random(4)
    return (shares,), 1 + np.cumprod(shares).sum()


def tokens_a_pass():
    """The mean number of tokens a pass."""
    return Task([(([0.8, 0.5],), 2.2)], drawn_shares)


def drawn_guess(generator):
    """Fresh probabilities, and what the rule writes, looked up slot by slot."""
    p, q = generator.dirichlet(np.ones(5), size=2)
    guess = int(generator.integers(5))
    first, second = generator.random(2)
    wanted = guess
    if first >= p[guess] / q[guess]:
        room = np.maximum(0, p - q) / np.maximum(0, p - q).sum()
        wanted = sum(second > room[: n + 1].sum() for n in range(5))
    return (p, q, guess, first, second), wanted


def written():
    """The token that the rule writes."""
    one = (np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.7, 0.1]), 1, 0.9, 0.6)
    return Task([(one, 0)], drawn_guess)


def drawn_tables(generator):
    """A model's table and one that agrees at most places; the passes along the model's own text."""
    model = generator.integers(0, 9, size=9)
    wrong = generator.random(9) < 0.3
    block = np.where(wrong, generator.integers(0, 9, size=9), model)
    first, depth = int(generator.integers(9)), int(generator.integers(1, 4))
    text = [first]
    while len(text) < 40:
        text.append(int(model[text[-1]]))
    place = count = 0
    while place < 20:
        draft = [text[place]]
        for _ in range(depth):
            draft.append(int(block[draft[-1]]))
        same = [kept == due for kept, due in zip(draft, text[place:])]
        place += same.index(False) if False in same else depth + 1
        count += 1
    return (model.tolist(), block.tolist(), first, 20, depth), count


def passes():
    """The passes that drafting takes."""
    model = [1, 2, 3, 0]
    cases = [((model, [1, 2, 0, 0], 0, 8, 2), 4), ((model, model, 0, 8, 3), 2), ((model, [0, 0, 0, 1], 0, 8, 3), 8)]
    return Task(cases, drawn_tables)
