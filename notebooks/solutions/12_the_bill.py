"""Solutions of the exercises in 12_the_bill.ipynb."""

import minidsv4 as v4
from minidsv4.cost import memory, parameters


def growth(n_csa, n_hca):
    """Bytes that a token leaves behind on average, once the window is full."""
    return n_csa * (584 + 68) / 4 + n_hca * 584 / 128


def widest(device_bytes, n_tokens):
    """Bits a weight of Flash may have, so that it fills the device with its cache."""
    flash = v4.Config.flash()
    cache_bytes = sum(memory.cache(flash, n_tokens).values()) + memory.tail_room(flash)
    table = parameters.parameters(parameters.weights(flash))
    return 8 * (device_bytes - cache_bytes) / parameters.total(table).total


def smallest_batch(dense, expert, E, A, budget):
    """Grow the batch until a text's part of the bytes is small enough."""
    batch = 0
    each = budget + 1
    while each > budget:
        batch += 1
        visited = E * (1 - (1 - A / E) ** batch)
        each = (dense + expert * visited) / batch
    return batch
