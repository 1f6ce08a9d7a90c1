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


def reached_from(schedule, low, high):
    """Go down from 1.000 while the value ends between the borders."""
    k = 1001
    while k > 1:
        s = (k - 1) / 1000
        for a, b, c in schedule:
            s = a * s + b * s**3 + c * s**5
        if not low <= s <= high:
            return k
        k -= 1
    return k
