"""A model that runs from disk: the bytes of weights that one new token touches, and how long a disk takes for them.

Released formats, without the MTP block. A bound: nothing is charged for computing, which goes on meanwhile.
"""

from dataclasses import dataclass

from minidsv4.cost.hardware import DISKS
from minidsv4.cost.parameters import stored_bytes, weights


@dataclass(frozen=True)
class Touched:
    """Bytes of stored weights that one token touches.

    dense    what every token touches, the vocabulary head included
    experts  the routed experts that the token visits
    rows     of the tables that are looked up by its id: the embedding, and experts of hash layers
    """

    dense: int
    experts: int
    rows: int

    @property
    def total(self) -> int:
        """All three."""
        return self.dense + self.experts + self.rows


def touched(model) -> Touched:
    """What one new token of a model touches.

    model   a `Config`, or `V32()`
    raises  ValueError for anything else
    """
    found = {"dense": 0, "experts": 0, "rows": 0}
    for weight in weights(model):
        if weight.part != "MTP block":
            kind = "experts" if weight.part == "routed experts" else "dense" if weight.active else "rows"
            share = weight.active / weight.copies if weight.active else 1 / weight.shape[0]
            found[kind] += round(stored_bytes(weight) * share)
    return Touched(**found)


def seconds(n_bytes: float) -> dict[str, float]:
    """Time to read so many bytes, by the name of the disk."""
    return {disk.name: n_bytes / disk.bandwidth for disk in DISKS}
