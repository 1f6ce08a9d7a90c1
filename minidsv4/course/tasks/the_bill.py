"""Inputs of the exercises in notebook 12_the_bill."""

import numpy as np

from minidsv4 import cost
from minidsv4.config import Config
from minidsv4.cost import memory
from minidsv4.course.tasks import Task

FLASH = Config.flash()
MILLION = 2**20


def any_layers(generator):
    """Numbers of layers, and the bytes over a common denominator."""
    n_csa, n_hca = generator.integers(1, 60, size=2).tolist()
    return (n_csa, n_hca), (163 * 128 * n_csa + 584 * n_hca) / 128


def growth():
    """The bytes that a token adds to the cache."""
    cases = [((21, 20), 3514.25), ((30, 31), 5031.4375)]
    return Task(cases, any_layers)


def any_device(generator):
    """A width drawn at random, and the device that it fills."""
    bits = float(generator.uniform(1.5, 8))
    n_tokens = int(generator.integers(1000, MILLION))
    n_weights = cost.bill(FLASH, 1).main.total
    room = sum(memory.cache(FLASH, n_tokens).values()) + memory.tail_room(FLASH)
    return (n_weights * bits / 8 + room, n_tokens), bits


def widest():
    """The bits that a weight may have."""
    cases = [((128e9, MILLION), 3.4973), ((64e9, MILLION), 1.6966)]
    return Task(cases, any_device, within=1e-4)


def any_step(generator):
    """A model's bytes, and the batch read off a list."""
    dense, expert = generator.uniform(1, 10, size=2).tolist()
    E = int(generator.integers(8, 40))
    A = int(generator.integers(1, 6))
    batch = np.arange(1, 2000)
    bytes_each = (dense + expert * E * (1 - (1 - A / E) ** batch)) / batch
    wanted = int(generator.integers(2, 60))
    budget = float(bytes_each[wanted - 2 : wanted].mean())
    return (dense, expert, E, A, budget), wanted


def smallest_batch():
    """The batch whose texts share enough."""
    return Task([((6.0, 1.0, 4, 2, 3.0), 4), ((6.0, 1.0, 4, 2, 8.0), 1)], any_step)
