"""Inputs of the exercises in notebook lineage."""

import math

import numpy as np
import torch
from einops import reduce, repeat

from minidsv4.course.tasks import Task


def any_heads(generator):
    """Four heads over three tokens, and torch's attention over the means."""
    query_HK = generator.normal(size=(4, 5))
    key_HSK, value_HSK = generator.normal(size=(2, 4, 3, 5))
    n_groups = int(generator.choice([1, 2, 4]))
    means = []
    for x_HSK in (key_HSK, value_HSK):
        mean = reduce(torch.tensor(x_HSK), "(g n) s k -> g s k", "mean", g=n_groups)
        means.append(repeat(mean, "g s k -> (g n) s k", n=4 // n_groups))
    answer = torch.nn.functional.scaled_dot_product_attention(torch.tensor(query_HK)[:, None], *means)
    return (query_HK, key_HSK, value_HSK, n_groups), answer[:, 0].numpy()


def grouped():
    """The answers of heads that share keys and values."""
    query_HK = np.array([[0.0], [math.log(3)]])
    key_HSK = np.array([[[2.0], [0.0]], [[0.0], [0.0]]])
    value_HSK = np.array([[[8.0], [0.0]], [[0.0], [0.0]]])
    cases = [((query_HK, key_HSK, value_HSK, 1), np.array([[2.0], [3.0]]))]
    cases += [((query_HK, key_HSK, value_HSK, 2), np.array([[4.0], [0.0]]))]
    return Task(cases, any_heads)
