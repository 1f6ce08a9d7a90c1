"""Inputs of the exercises in notebook 06_streams."""

import numpy as np

from minidsv4 import paper
from minidsv4.course.tasks import Task


def drawn_token(generator):
    """Fresh streams of a token, and what the loop of `paper.py` writes."""
    streams = generator.normal(size=(3, 2))
    y = generator.normal(size=2)
    post = generator.random(3)
    carry = generator.random((3, 3))
    maps = [(np.zeros(3), post, carry)]
    wanted = paper.hyper_connection(streams[None], maps, lambda x_TD: y[None])
    return (streams, y, post, carry), wanted[0]


def new_streams():
    """The new streams of a token."""
    shown = drawn_token(np.random.default_rng(7))
    return Task([shown], drawn_token)


def drawn_streams(generator):
    """Fresh streams, and their mean cosine pair by pair."""
    streams = generator.normal(size=(2, 3, 5)) + 0.5
    cosines = []
    for token in streams:
        for i, j in ((0, 1), (0, 2), (1, 2)):
            lengths = np.linalg.norm(token[i]) * np.linalg.norm(token[j])
            cosines.append(token[i] @ token[j] / lengths)
    return (streams,), np.mean(cosines)


def mean_cosine():
    """How alike the streams of a text are."""
    copies = (np.ones((2, 4, 3)),)
    return Task([(copies, 1.0)], drawn_streams)


def drawn_carry(generator):
    """A mixture of permutations, and the layers by powers of the matrix."""
    carry = np.zeros((3, 3))
    for weight in generator.dirichlet(np.ones(5)):
        carry += weight * np.eye(3)[generator.permutation(3)]
    carry = 0.9 * carry + 0.1 / 3
    streams = generator.normal(size=(3, 2))
    apart = streams - streams.mean(axis=0)
    layers = 1
    while np.linalg.norm(np.linalg.matrix_power(carry.T, layers) @ apart) >= 0.01 * np.linalg.norm(apart):
        layers += 1
    return (carry, streams, 0.01), layers


def layers_to_forget():
    """The layers after which the streams are nearly alike."""
    halving = np.array([[0.75, 0.25], [0.25, 0.75]])
    streams = np.array([[4.0], [0.0]])
    cases = [((halving, streams, 0.2), 3), ((halving, streams, 0.25), 3), ((halving, streams, 0.6), 1)]
    return Task(cases, drawn_carry)
