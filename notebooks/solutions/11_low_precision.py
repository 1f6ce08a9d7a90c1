"""Solutions of the exercises in 11_low_precision.ipynb."""

import math

from minidsv4.lowbit import mxfp4
from minidsv4.model.indexer import Hadamard


def to_e2m1(number):
    """The nearest number of E2M1, by steps that depend on its size."""
    size = min(abs(number), 6.0)
    step = 0.5
    if size >= 2:
        step = 1.0
    if size >= 4:
        step = 2.0
    return math.copysign(round(size / step) * step, number)


def largest_gap(largest, step_exponent):
    """6 times 2^up is within `largest`; 0.5 times 2^up is halved down to one step."""
    up = math.floor(math.log2(largest / 6))
    return up - 1 + step_exponent


def hadamard_gain(x_Z):
    """The error of the vector over the error of the turned vector."""
    turned_Z = Hadamard(32).to(x_Z)(x_Z)
    without = (mxfp4.rounded(x_Z) - x_Z).norm()
    with_it = (mxfp4.rounded(turned_Z) - turned_Z).norm()
    return (without / with_it).item()
