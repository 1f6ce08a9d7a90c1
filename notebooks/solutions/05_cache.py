"""Solutions of the exercises in 05_cache.ipynb."""

import minidsv4 as v4
from minidsv4.cost import memory


def kept(n, ratio, window):
    """Window entries, finished entries and raw tokens of one CSA layer."""
    closed = ratio if n >= ratio else 0
    return min(n, window), n // ratio, n % ratio + closed


def longest(n_bytes):
    """The largest number of tokens whose cache takes at most n_bytes in Flash."""
    flash = v4.Config.flash()
    fits = 0
    too_long = 2**32
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if sum(memory.cache(flash, middle).values()) <= n_bytes:
            fits = middle
        else:
            too_long = middle
    return fits


def means(chunks, M):
    """The open and the closed window go from chunk to chunk."""
    closed = []
    waiting = []
    finished = []
    for chunk in chunks:
        entries = []
        for token in chunk:
            waiting.append(token)
            if len(waiting) == M:
                pooled = closed + waiting
                entries.append(sum(pooled) / len(pooled))
                closed = waiting
                waiting = []
        finished.append(entries)
    return finished
