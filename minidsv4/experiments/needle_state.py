"""What a needle run measures and keeps on disk: its points, and the cache of a prefill that is under way.

A kill at any moment leaves the last whole state: files take their names once they are written, and every tensor of the
cache has a checksum. The cache of a million tokens of the small model takes some 50 MB, and one is kept at a time.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minidsv4 import checksums
from minidsv4.files import atomic_file
from minidsv4.model.cache import Cache
from minidsv4.model.model import Model

POINTS, PREFILL = "points.json", "prefill.safetensors"
# What the time left is told from:
EVEN = 1 << 17  # tokens at which scoring the entries costs as much as all else
ASKING = 1 << 14  # tokens whose reading costs as much as asking for the needles


@dataclass(frozen=True)
class Task:
    """One text to read: a choice of entries, tokens, a seed."""

    choice: str
    n_tokens: int
    seed: int

    def work(self, first: int = 0) -> float:
        """What is left once `first` tokens are read, in units of a token without entries."""
        return ASKING + (self.n_tokens - first) * (1 + (self.n_tokens + first) / (2 * EVEN))


@dataclass(frozen=True)
class Point:
    """What was found in one text and what it cost.

    depths, right    of each needle: where it lies from 0 to 1, and whether the answer was right
    ranks            of each needle's entries among all that the indexer scores, from 0
    prefill_seconds  to read the text, over all parts of a resumed run
    token_seconds    to decode one token after it, the median
    cache            bytes by kind
    mha_bytes        of a cache that keeps a key and a value of each of these heads in every layer
    peak_bytes       of the process so far, weights and libraries included
    """

    choice: str
    n_tokens: int
    seed: int
    depths: list[float]
    right: list[bool]
    ranks: list[int]
    prefill_seconds: float
    token_seconds: float
    cache: dict[str, int]
    mha_bytes: int
    peak_bytes: int
    n_threads: int

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return sum(self.right) / len(self.right)


def read_points(folder: Path) -> list[dict]:
    """The points that a folder keeps, in the order in which they were measured.

    raises  ValueError where they cannot be read
    """
    path = folder / POINTS
    if not path.is_file():
        return []
    try:
        return json.loads(path.read_text(encoding="utf-8"))["points"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"needle: {path} cannot be read ({error}); remove it, or give another --out") from error


def write_points(folder: Path, points: list[dict]) -> None:
    """Keep the points, all of them or those that were there before."""
    with atomic_file(folder / POINTS) as scratch:
        scratch.write_text(json.dumps({"points": points}, indent=1) + "\n", encoding="utf-8")


def keep_prefill(folder: Path, cache: Cache, fields: dict[str, str]) -> None:
    """Keep a cache, and with it what tells whose it is."""
    tensors = {f"{number}": series.contents().contiguous() for number, series in enumerate(cache.series())}
    told = fields | {"n_read": str(cache.n_tokens)}
    with atomic_file(folder / PREFILL) as scratch:
        save_file(tensors, scratch, metadata=checksums.metadata(tensors) | {"told": json.dumps(told)})


def kept_prefill(folder: Path, model: Model, fields: dict[str, str]) -> tuple[Cache, dict[str, str]] | None:
    """The cache that was kept for these fields, and all that was told with it; None where there is none.

    raises  ValueError where the file is damaged
    """
    path = folder / PREFILL
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            told = json.loads(metadata["told"])
            if any(told.get(name) != value for name, value in fields.items()):
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"needle: {path} is damaged ({error}); remove it, and that text is read anew") from error
    for name, tensor in tensors.items():
        checksums.verify(path.name, checksums.noted(path.name, metadata), name, tensor)
    return filled(model, tensors, int(told["n_read"])), told


def filled(model: Model, tensors: dict[str, Tensor], n_tokens: int) -> Cache:
    """A cache of one sequence that holds these tensors, numbered as its series."""
    cache = model.new_cache()
    for number, series in enumerate(cache.series()):
        series.replace(tensors[f"{number}"])
    cache.n_tokens = n_tokens
    return cache


def forget_prefill(folder: Path) -> None:
    """Remove the cache of a prefill that has ended."""
    (folder / PREFILL).unlink(missing_ok=True)
