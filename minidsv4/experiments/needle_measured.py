"""The needle runs that ship: what was found in texts of up to a million tokens, what that cost, and on what.

    python -m minidsv4.experiments.needle_measured runs/needle  keep the points of these folders in assets/

The folders are those of `python -m minidsv4 needle --tokens 1048576 --curve --seeds 3`, and of the same with `--reads`.
"""

import argparse
import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from minidsv4 import options
from minidsv4.experiments.choices import CHOICES
from minidsv4.experiments.needle_state import Point, read_points

FILE = Path(__file__).resolve().parents[1] / "assets" / "needle.measured.json"
LIBRARIES = ("torch", "numba")
HEAD = ("tokens", "found", "read, tokens/s", "one more token, ms", "cache", "all keys and values", "peak", "threads")


class Runs(NamedTuple):
    """What ships.

    of      the machine in words, the versions, and the checksums of weights and text, by name
    points  of every choice, length and seed, in this order
    """

    of: dict[str, str]
    points: list[Point]

    def at(self, choice: str, n_tokens: int) -> list[Point]:
        """The points of a choice and a length, a seed each."""
        return [point for point in self.points if (point.choice, point.n_tokens) == (choice, n_tokens)]

    def lengths(self, choice: str) -> list[int]:
        """The lengths at which a choice was measured, ascending."""
        return sorted({point.n_tokens for point in self.points if point.choice == choice})

    def accuracy(self, choice: str) -> dict[int, float]:
        """The share of needles that were found, over all seeds, by length."""
        return {n: statistics.mean(point.accuracy for point in self.at(choice, n)) for n in self.lengths(choice)}


def measured(path: Path = FILE) -> Runs:
    """The runs that ship."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    return Runs(kept["of"], [Point(**point) for point in kept["points"]])


def rows(runs: Runs) -> list[tuple[str, ...]]:
    """A row a length of the model as it is, under `HEAD`: medians over the seeds, the largest peak, threads."""
    found = []
    for n_tokens in runs.lengths("CSA"):
        points = runs.at("CSA", n_tokens)
        right = [answer for point in points for answer in point.right]
        pace = statistics.median(n_tokens / point.prefill_seconds for point in points)
        sizes = sum(points[0].cache.values()), points[0].mha_bytes, max(point.peak_bytes for point in points)
        milliseconds = 1000 * statistics.median(point.token_seconds for point in points)
        numbers = f"{n_tokens:,}", f"{sum(right)} of {len(right)}", f"{round(pace, -2):,.0f}", f"{milliseconds:.1f}"
        found.append((*numbers, *map(options.readable, sizes), f"{points[0].n_threads}"))
    return found


def gathered(folders: Sequence[Path], machine: str) -> dict:
    """What `FILE` holds: the points of these folders, each task's once, and what they were measured on.

    raises  ValueError where the points are of several weights or texts
    """
    records = [record for folder in folders for record in read_points(folder)]
    names = [field.name for field in fields(Point)]
    sources = {(record["weights"], record["source"]) for record in records}
    if len(sources) != 1:
        found = f"needle_measured: {len(sources)} pairs of weights and text in these folders"
        raise ValueError(f"{found}; give the folders of one model and one text")
    ((weights, source),) = sources
    order = list(CHOICES)
    tasks = {(order.index(record["choice"]), record["n_tokens"], record["seed"]): record for record in records}
    libraries = {name: version(name) for name in LIBRARIES}
    of = {"machine": machine, "python": platform.python_version(), **libraries, "weights": weights, "source": source}
    return {"of": of, "points": [{name: tasks[task][name] for name in names} for task in sorted(tasks)]}


def written(content: dict) -> str:
    """The text of `FILE`: a line a point, numbers of a measurement to four digits."""
    points = [{name: _short(value) for name, value in point.items()} for point in content["points"]]
    lines = ",\n  ".join(json.dumps(point) for point in points)
    return f'{{\n "of": {json.dumps(content["of"])},\n "points": [\n  {lines}\n ]\n}}\n'


def _short(value: object) -> object:
    """A number of seconds to four digits; anything else as it is."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    """Gather the points of runs into the file that ships."""
    prog = "python -m minidsv4.experiments.needle_measured"
    parser = argparse.ArgumentParser(prog=prog, description="Keep the points of needle runs.")
    parser.add_argument("folders", nargs="+", type=options.folder, help="what --out was of each run")
    parser.add_argument("--machine", default=platform.machine(), help="the machine in words")
    arguments = parser.parse_args()
    content = gathered([Path(folder) for folder in arguments.folders], arguments.machine)
    FILE.write_text(written(content), encoding="utf-8")


if __name__ == "__main__":
    main()
