"""Tasks with planted dependencies: sequences of token ids in which the distance from question to answer can be set.

At toy size real text says little about long contexts. All from a seed, by numbers that no version of Python changes.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple


class Task(NamedTuple):
    """One sequence of token ids, and the positions to be predicted from what is planted before them."""

    ids: list[int]
    asked: list[int]


MARK, ASK = 2, 3  # before what is planted, and before what is asked for
_FIRST = 4  # the other ids are shared out: a third are keys, a third values, the rest filler


def recall(seed: int, length: int, distance: int, vocab_size: int, n_pairs: int = 1) -> Task:
    """Filler with pairs `MARK key value` in it; at its end `ASK key` and, to be predicted, that key's value.

    distance  tokens from the planted value to the position where it is asked for, from 3
    n_pairs   pairs with keys of their own; the others lie anywhere
    raises    ValueError where they do not fit
    """
    generator = random.Random(f"recall {seed}")
    third = (vocab_size - _FIRST) // 3
    planted = length - 3 - distance  # where MARK stands; the other pairs lie whole triples before or after it
    free = [position for position in range(planted % 3, length - 5, 3) if position != planted]
    if distance < 3 or planted < 0 or not 1 <= n_pairs <= min(third, 1 + len(free)):
        raise ValueError(
            f"recall: distance = {distance} and n_pairs = {n_pairs} do not fit {length} tokens and {vocab_size} ids"
        )
    ids = _filler(generator, length, vocab_size)
    keys = _drawn(generator, range(_FIRST, _FIRST + third), n_pairs)
    for key, position in zip(keys, [planted, *_drawn(generator, free, n_pairs - 1)]):
        ids[position : position + 3] = [MARK, key, _FIRST + third + int(generator.random() * third)]
    ids[-3:] = [ASK, keys[0], ids[planted + 2]]
    return Task(ids, [length - 1])


def copy(seed: int, length: int, distance: int, vocab_size: int, n_copied: int = 8) -> Task:
    """`MARK` and some values, filler, and at the end `ASK` and the same values in their order, all to be predicted.

    distance  tokens from each value to the position where it is asked for, above `n_copied`
    raises    ValueError where they do not fit
    """
    generator = random.Random(f"copy {seed}")
    third = (vocab_size - _FIRST) // 3
    planted = length - 1 - n_copied - distance
    if not 1 <= n_copied < distance or planted < 0:
        raise ValueError(f"copy: distance = {distance} and n_copied = {n_copied} do not fit {length} tokens")
    ids = _filler(generator, length, vocab_size)
    values = [_FIRST + third + int(generator.random() * third) for _ in range(n_copied)]
    ids[planted : planted + 1 + n_copied] = [MARK, *values]
    ids[-1 - n_copied :] = [ASK, *values]
    return Task(ids, list(range(length - n_copied, length)))


def _filler(generator: random.Random, n: int, vocab_size: int) -> list[int]:
    """Ids that are neither keys nor values."""
    first = _FIRST + (vocab_size - _FIRST) // 3 * 2
    return [first + int(generator.random() * (vocab_size - first)) for _ in range(n)]


def _drawn(generator: random.Random, choices: Sequence[int], n: int) -> list[int]:
    """So many different ones, by `random()` alone, whose numbers Python never changes."""
    return sorted(choices, key=lambda _: generator.random())[:n]
