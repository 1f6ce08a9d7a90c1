"""Solution of the assignment problems/3_muon_in_4_bits.ipynb."""

import numpy as np

SCHEDULE = [(3.4445, -4.7750, 2.0315)] * 8 + [(2.0, -1.5, 0.5)] * 2


def orthogonal(matrix, schedule):
    """The steps of equation (28) from norm 1."""
    x = matrix / np.sqrt((matrix**2).sum())
    for a, b, c in schedule:
        gram = x @ x.T
        x = a * x + b * gram @ x + c * gram @ gram @ x
    return x


def in_4_bits(weight):
    """The nearest number of E2M1 under the scale of each row."""
    sizes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    largest = np.abs(weight).max(axis=1, keepdims=True)
    scale = 2.0 ** np.ceil(np.log2(largest / 6))
    distance = np.abs(np.abs(weight / scale)[:, :, None] - sizes)
    return np.sign(weight) * sizes[distance.argmin(axis=2)] * scale


def straight_through(weight, x, y):
    """The gradient at the rounded weight, handed to the weight itself."""
    loss, gradient = _loss(in_4_bits(weight), x, y)
    return loss, gradient.tolist()


def _loss(used, x, y):
    """The mean squared error of x @ used.T, and its gradient."""
    error = x @ used.T - y
    return (error**2).mean(), 2 * error.T @ x / error.size


def _muon(weight, gradient, momentum, rate):
    """Muon's step."""
    momentum = 0.95 * momentum + gradient
    turned = orthogonal(0.95 * momentum + gradient, SCHEDULE)
    step = 0.18 * max(weight.shape) ** 0.5 * turned
    return (1 - 0.1 * rate) * weight - rate * step, momentum


def trained(weight, x, y, steps, rate):
    """The loss before each step, and after the last one."""
    momentum = np.zeros(weight.shape)
    losses = []
    for _ in range(steps):
        loss, gradient = straight_through(weight, x, y)
        losses.append(loss)
        weight, momentum = _muon(weight, np.array(gradient), momentum, rate)
    losses.append(straight_through(weight, x, y)[0])
    return losses


def two_ways(weight, x, y, steps, rate):
    """Round in every step, or only at the end."""
    aware = trained(weight, x, y, steps, rate)[-1]
    momentum = np.zeros(weight.shape)
    for _ in range(steps):
        gradient = _loss(weight, x, y)[1]
        weight, momentum = _muon(weight, gradient, momentum, rate)
    return aware, straight_through(weight, x, y)[0]
