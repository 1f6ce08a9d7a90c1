"""Inputs of the exercises in notebook 02_compression."""

import numpy as np
import torch

from minidsv4 import paper
from minidsv4.course.tasks import Task


def any_token(generator):
    """A token and a window, and the two entries."""
    t = int(generator.integers(1000))
    M = int(generator.integers(2, 9))
    return (t, M), (t // M, t // M + 1)


def fed_by():
    """The two entries that a token feeds."""
    cases = [((13, 4), (3, 4)), ((0, 4), (0, 1)), ((127, 4), (31, 32))]
    return Task(cases, any_token)


def any_windows(generator):
    """Two windows, and their entry by the softmax of paper.py."""
    before, own = generator.normal(size=(2, 2, 4, 3))
    values_SK = np.concatenate([before[0], own[0]])
    share_SK = paper.slot_softmax(np.concatenate([before[1], own[1]]))
    return (own, before), (share_SK * values_SK).sum(0)


def pool_entry():
    """One CSA entry."""
    by_hand = (np.array([[0.0], [8.0]]), np.log([[1.0], [3.0]]))
    before = (np.array([[4.0, 9.0]]), np.log([[1.0, 2.0]]))
    own = (np.array([[12.0, 0.0]]), np.log([[3.0, 1.0]]))
    return Task([((by_hand, None), np.array([6.0])), ((own, before), np.array([10.0, 6.0]))], any_windows)


def any_gates(generator):
    """Gates of 8 slots, and their mean perplexity as torch has it."""
    gates_SK = 2 * generator.normal(size=(8, 3))
    shares = torch.distributions.Categorical(logits=torch.tensor(gates_SK.T))
    return (gates_SK,), shares.perplexity().mean().item()


def listens_to():
    """The mean number of slots that matter."""
    cases = [((np.zeros((8, 3)),), 8.0)]
    cases += [((np.log([[1.0, 4.0], [1.0, 4.0], [2.0, 1e-99]]),), (2 * 2**0.5 + 2) / 2)]
    return Task(cases, any_gates)
