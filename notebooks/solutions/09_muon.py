"""Solutions of the exercises in 09_muon.ipynb."""


def value_after(s, schedule):
    """The singular value after the steps of a schedule."""
    for a, b, c in schedule:
        s = a * s + b * s**3 + c * s**5
    return s


def muon_step(weight, gradient, momentum, rate, turn):
    """The new weight and the new momentum."""
    momentum = 0.95 * momentum + gradient
    ahead = 0.95 * momentum + gradient
    step = 0.18 * max(weight.shape) ** 0.5 * turn(ahead)
    return (1 - 0.1 * rate) * weight - rate * step, momentum
