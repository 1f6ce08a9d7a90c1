"""Inputs of the exercises in notebook 13_expert_parallelism."""

import torch

from minidsv4.course.tasks import Task
from minidsv4.parallel import balance


def any_ranks(generator):
    """Tokens of some ranks and their experts, and the sums on a single rank."""
    n = int(generator.integers(2, 5))  # ranks; each has two experts and three tokens
    scales = generator.integers(1, 99, size=2 * n)
    x = generator.integers(1, 9, size=(n, 3))
    picked = generator.random((n, 3, 2 * n)).argsort(-1)[..., :2]
    came = [picked[picked // 2 == rank].tolist() for rank in range(n)]
    alone = (x[..., None] * scales[picked]).sum(-1).tolist()  # one rank has all experts
    return (x.tolist(), picked.tolist(), scales.tolist()), (came, alone)


def exchange():
    """Dispatch and combine among ranks."""
    given = ([[5], [7, 2]], [[[0, 3]], [[2, 1], [3, 2]]], [1, 10, 100, 1000])
    wanted = ([[0, 1], [3, 2, 3, 2]], [[5005], [770, 2200]])
    return Task([(given, wanted)], any_ranks)


def any_loads(generator):
    """Loads of experts, and the fullest rank as the package packs them."""
    n_ranks = int(generator.integers(2, 6))
    loads = generator.integers(0, 200, size=4 * n_ranks).tolist()
    placed = balance.place(torch.tensor(loads), n_ranks).rank_loads(torch.tensor(loads))
    return (loads, n_ranks), placed.max().item()


def fullest_rank():
    """The load of the fullest rank."""
    cases = [(([9, 5, 4, 2], 2), 11), (([9, 3, 2, 1], 2), 10)]
    return Task(cases, any_loads)


def any_waves(generator):
    """Times of five waves, and the end as the longest chain of stages."""
    arrive, multiply, leave = generator.integers(1, 20, size=(3, 5))
    chains = []
    for first in range(5):
        for last in range(first, 5):
            chains.append(arrive[: first + 1].sum() + multiply[first : last + 1].sum() + leave[last:].sum())
    return (arrive.tolist(), multiply.tolist(), leave.tolist()), int(max(chains))


def finished():
    """When the last wave is back."""
    cases = [(([2, 2, 2], [3, 3, 3], [2, 2, 2]), 13), (([1, 5], [4, 1], [6, 1]), 12), (([0], [0], [0]), 0)]
    return Task(cases, any_waves)
