"""Inputs of the assignment problems/3_muon_in_4_bits."""

import numpy as np
import torch

from minidsv4 import paper
from minidsv4.course.tasks import Task
from minidsv4.lowbit import mxfp4
from minidsv4.train.muon import SCHEDULE

OUT, IN, ROWS = 4, 32, 12


def drawn_matrix(generator):
    """A matrix that is wide or high, and its steps by singular values."""
    n, m = generator.integers(2, 7, size=2)
    matrix = generator.normal(size=(n, m))
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.linalg.norm(matrix)
    for a, b, c in SCHEDULE:
        values = a * values + b * values**3 + c * values**5
    return (matrix, list(SCHEDULE)), (left * values) @ right


def orthogonal():
    """A matrix whose singular values went through the steps."""
    return Task([((np.array([[3.0, 4.0]]), [(2.0, -1.5, 0.5)]), np.array([[0.6, 0.8]]))], drawn_matrix, within=1e-7)


def rounded_by_package(weight):
    """MXFP4 and back, as the package does it."""
    return mxfp4.rounded(torch.tensor(weight)).numpy()


def drawn_weight(generator):
    """A matrix of rows with their own size, and its rounding."""
    weight = generator.normal(size=(3, 32)) * 10.0 ** generator.integers(-3, 3, size=(3, 1))
    return (weight,), rounded_by_package(weight)


def in_4_bits():
    """A matrix on the numbers of MXFP4."""
    row = np.zeros((1, 32))
    row[0, :6] = [6.5, -4.1, 2.4, 0.9, 0.4, 0.0]
    nearest = np.zeros((1, 32))
    nearest[0, :6] = [6.0, -4.0, 2.0, 1.0, 0.0, 0.0]
    return Task([((row,), nearest), ((row / 4,), nearest / 4)], drawn_weight)


def drawn_problem(generator):
    """A weight, inputs, and what another weight would answer."""
    weight, other = 0.2 * generator.normal(size=(2, OUT, IN))
    x = generator.normal(size=(ROWS, IN))
    return weight, x, x @ other.T


def loss_by_torch(weight, x, y):
    """(loss, gradient) of the mean squared error with the weight as it is."""
    weight = torch.tensor(weight, requires_grad=True)
    loss = torch.nn.functional.mse_loss(torch.tensor(x) @ weight.T, torch.tensor(y))
    loss.backward()
    return loss.item(), weight.grad.numpy()


def drawn_gradient(generator):
    """A problem, and its loss and gradient by torch at the rounded weight."""
    weight, x, y = drawn_problem(generator)
    loss, gradient = loss_by_torch(rounded_by_package(weight), x, y)
    return (weight, x, y), (loss, gradient.tolist())


def straight_through():
    """Loss and gradient of a rounded weight."""
    return Task([drawn_gradient(np.random.default_rng(7))], drawn_gradient)


def losses_by_loop(weight, x, y, steps, rate, rounds):
    """The loss before each step and after the last, with `paper.muon_update`."""
    momentum = np.zeros_like(weight)
    losses = []
    for step in range(steps + 1):
        loss, gradient = loss_by_torch(rounded_by_package(weight) if rounds else weight, x, y)
        losses.append(loss)
        if step < steps:
            weight, momentum = paper.muon_update(weight, gradient, momentum, rate)
    return losses, weight


def drawn_run(generator):
    """A problem, and the losses of five steps."""
    given = drawn_problem(generator)
    return (*given, 5, 0.05), losses_by_loop(*given, 5, 0.05, rounds=True)[0]


def trained():
    """The losses of a run that trains what it stores."""
    return Task([drawn_run(np.random.default_rng(7))], drawn_run, within=1e-6)


def drawn_choice(generator):
    """A problem, and the last loss of either way."""
    weight, x, y = drawn_problem(generator)
    aware = losses_by_loop(weight, x, y, 8, 0.05, rounds=True)[0][-1]
    free = losses_by_loop(weight, x, y, 8, 0.05, rounds=False)[1]
    return (weight, x, y, 8, 0.05), (aware, loss_by_torch(rounded_by_package(free), x, y)[0])


def two_ways():
    """The loss of rounding during the training, and of rounding after it."""
    return Task([drawn_choice(np.random.default_rng(7))], drawn_choice, within=1e-6)
