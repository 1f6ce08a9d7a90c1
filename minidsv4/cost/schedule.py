"""One expert-parallel layer on three lanes: how much of the transfer does a schedule hide behind the products?

D width, F expert width. Report section 3.1 and figure 5. A layer is dispatch, linear 1 (gate and up), activation,
linear 2 (down), combine. Products run on the matrix lane, the activation on the vector lane, both transfers on the
link: on Ascend these are the units AIC, AIV and UB, which run side by side. A rank sends as much as it receives, so
each direction of its link carries dispatch and combine, and one lane with the bytes per second of one direction is
enough. rho is transfer time over product time; if nothing else counts, speed-ups depend on it alone.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minidsv4.config import Config
from minidsv4.cost.hardware import Device

LANES = {"matrix": "AIC", "vector": "AIV", "link": "UB"}  # a lane, and Ascend's name for the unit
STAGES = {"dispatch": "link", "linear1": "matrix", "activation": "vector", "linear2": "matrix", "combine": "link"}
FP8, BF16 = 1, 2  # bytes of a number: rows are dispatched in FP8 and combined in BF16
TILES = 5  # parts of a wave that follow each other from stage to stage


# --- the balance of compute and link ---


def pair_flops(config: Config) -> int:
    """FLOPs of one token in one of its experts: three matrices of D times F."""
    return 6 * config.hidden_size * config.moe_intermediate_size


def pair_bytes(config: Config, dispatch: float = FP8, combine: float = BF16) -> float:
    """Bytes of one token on its way to one of its experts and back; `dispatch` and `combine` are bytes a number."""
    return config.hidden_size * (dispatch + combine)


def balance_point(config: Config, dispatch: float = FP8, combine: float = BF16) -> float:
    """FLOP/s over bytes/s (C/B) up to which products take at least as long as transfers: 2 F in the report's formats.

    All rows are taken to leave the rank. Of R ranks only (R - 1) / R do, so the bound is R / (R - 1) times this.
    """
    return pair_flops(config) / pair_bytes(config, dispatch, combine)


@dataclass(frozen=True)
class Stages:
    """Time of each stage of one layer, in one unit of your choice."""

    dispatch: float
    linear1: float
    activation: float
    linear2: float
    combine: float

    @property
    def products(self) -> float:
        """Time of both products."""
        return self.linear1 + self.linear2

    @property
    def transfers(self) -> float:
        """Time of both transfers."""
        return self.dispatch + self.combine

    @property
    def rho(self) -> float:
        """Time of transfers over that of products: C / (2 F B) where nothing but the peaks counts."""
        return self.transfers / self.products

    @property
    def serial(self) -> float:
        """Time of all stages, one after the other."""
        return self.transfers + self.products + self.activation

    @property
    def bound(self) -> float:
        """Time of the busiest lane, which no schedule can beat."""
        return max(self.products, self.transfers, self.activation)


def stages(config: Config, device: Device, bits: int = 8) -> Stages:
    """Seconds of one token-expert pair at a device's peaks.

    bits    format of the products
    raises  ValueError for a device without neighbours
    """
    if not device.link:
        raise ValueError(f"stages: {device.name} has no link to other devices; give one of a cluster, such as B200")
    product = pair_flops(config) / device.peak(bits)
    activation = (2 * BF16 + FP8) * config.moe_intermediate_size / device.bandwidth  # reads gate and up, writes FP8
    row = config.hidden_size / device.link
    return Stages(FP8 * row, 2 / 3 * product, activation, product / 3, BF16 * row)


# --- closed forms, in units of the products' time ---


def ideal_speedup(rho, activation=0):
    """Serial time over that of perfect overlap; at most 2 without activation, reached at rho = 1, where C/B = 2 F."""
    return (1 + activation + rho) / np.maximum(1, rho)


def comet_speedup(rho, activation=0):
    """Serial time over that of Comet's two pairs (arXiv 2502.19811), both perfectly overlapped.

    max(dispatch, linear 1) + activation + max(linear 2, combine), of which linear 1 is 2/3 of the products and
    dispatch 1/3 of the transfers. Without activation it is 1.5 wherever 0.5 <= rho <= 2.
    """
    return 3 * (1 + activation + rho) / (np.maximum(2, rho) + 3 * activation + np.maximum(1, 2 * rho))


def figure_comet(stages: Stages, first: float, last: float) -> float:
    """Time of Comet as the report's figure 5 draws it: linear 1 from its first tile on, then combine from its own.

    first, last  lag of the first tile of tokens, and of the last stage's first tile
    """
    return first + stages.linear1 + stages.activation + last + stages.combine


def figure_waves(stages: Stages, first: float, last: float, n_waves: int = 3) -> float:
    """Time of waves as figure 5 draws them: products without a gap, then what combine is longer than linear 2."""
    return first + stages.products + last + (stages.combine - stages.linear2) / n_waves


# --- simulation ---


class Task(NamedTuple):
    """A part of a stage: its time, and the (stage, part) of all tasks that come before it."""

    stage: str
    part: int
    time: float
    needs: tuple[tuple[str, int], ...] = ()

    @property
    def lane(self) -> str:
        """The lane that does it."""
        return STAGES[self.stage]


class Span(NamedTuple):
    """When a task runs."""

    task: Task
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """All tasks of a layer with their times."""

    spans: list[Span]

    @property
    def time(self) -> float:
        """When the last task ends."""
        return max(span.end for span in self.spans)

    def busy(self, lane: str) -> float:
        """Time for which a lane works."""
        return sum(span.end - span.start for span in self.spans if span.task.lane == lane)


def simulate(tasks: Iterable[Task]) -> Timeline:
    """The timeline of tasks; a lane does one at a time, of those that may begin the first in `tasks`.

    raises  ValueError where a task waits for one that is not there, or for itself
    """
    tasks = list(tasks)
    place = {(task.stage, task.part): i for i, task in enumerate(tasks)}
    missing = [needed for task in tasks for needed in task.needs if needed not in place]
    if missing:
        raise ValueError(f"simulate: a task needs {missing[0]}, which is not among the tasks")
    waits, followers = [len(task.needs) for task in tasks], [[] for _ in tasks]
    for i, task in enumerate(tasks):
        for needed in task.needs:
            followers[place[needed]].append(i)
    spans = _run(tasks, waits, followers)
    if len(spans) < len(tasks):
        raise ValueError(f"simulate: {len(tasks) - len(spans)} of {len(tasks)} tasks wait for themselves")
    return Timeline(spans)


def _run(tasks: list[Task], waits: list[int], followers: list[list[int]]) -> list[Span]:
    """The spans in the order of their starts; `waits` counts down what each task still needs."""
    ready = {lane: [] for lane in LANES}
    for i, task in enumerate(tasks):
        if not waits[i]:
            ready[task.lane].append(i)  # ascending, so it is a heap
    spans, running, idle, now = [], [], set(LANES), 0.0
    while True:
        for lane in sorted(lane for lane in idle if ready[lane]):
            i = heapq.heappop(ready[lane])
            spans.append(Span(tasks[i], now, now + tasks[i].time))
            heapq.heappush(running, (spans[-1].end, i))
            idle.remove(lane)
        if not running:
            return spans
        now = running[0][0]
        while running and running[0][0] == now:
            _, done = heapq.heappop(running)
            idle.add(tasks[done].lane)
            for i in followers[done]:
                waits[i] -= 1
                if not waits[i]:
                    heapq.heappush(ready[tasks[i].lane], i)


def naive(stages: Stages) -> Timeline:
    """The timeline of one stage after the other."""
    names = list(STAGES)
    needs = [(), *(((name, 0),) for name in names)]
    return simulate(Task(name, 0, getattr(stages, name), before) for name, before in zip(names, needs))


def comet(stages: Stages, n_tiles: int = 3 * TILES) -> Timeline:
    """Comet's timeline: dispatch beside linear 1, then linear 2 beside combine, tile by tile.

    The activation waits for all of linear 1.
    """
    _at_least_one("comet", n_tiles=n_tiles)
    tiles, part = range(n_tiles), {name: getattr(stages, name) / n_tiles for name in STAGES}
    return simulate(
        [
            *(Task("dispatch", i, part["dispatch"]) for i in tiles),
            *(Task("linear1", i, part["linear1"], (("dispatch", i),)) for i in tiles),
            Task("activation", 0, stages.activation, tuple(("linear1", i) for i in tiles)),
            *(Task("linear2", i, part["linear2"], (("activation", 0),)) for i in tiles),
            *(Task("combine", i, part["combine"], (("linear2", i),)) for i in tiles),
        ]
    )


def waves(
    stages: Stages, n_waves: int = 3, n_tiles: int = TILES, start: str = "tile", first: str = "dispatch"
) -> Timeline:
    """V4's schedule: the experts in waves; while one is multiplied, the next arrives and the last goes back.

    Within a wave all tiles of linear 1 come before those of linear 2, and each tile follows its own activation.

    n_tiles  parts of each wave
    start    when linear 1 of a tile may begin: its own tokens are there ("tile", as in DeepGEMM), or those of its
             whole wave ("wave", as in the report's words)
    first    what the link sends when both could go: "dispatch" or "combine"
    raises   ValueError for another choice, or for fewer than one wave or tile
    """
    _at_least_one("waves", n_waves=n_waves, n_tiles=n_tiles)
    _one_of("waves", "start", start, ("tile", "wave"))
    _one_of("waves", "first", first, ("dispatch", "combine"))
    n_parts = n_waves * n_tiles
    part = {name: getattr(stages, name) / n_parts for name in STAGES}
    dispatch = [Task("dispatch", i, part["dispatch"]) for i in range(n_parts)]
    combine = [Task("combine", i, part["combine"], (("linear2", i),)) for i in range(n_parts)]
    middle = []
    for wave in range(n_waves):
        own = range(wave * n_tiles, (wave + 1) * n_tiles)
        middle += [Task("linear1", i, part["linear1"], (("dispatch", i if start == "tile" else own[-1]),)) for i in own]
        middle += [Task("activation", i, part["activation"], (("linear1", i),)) for i in own]
        middle += [Task("linear2", i, part["linear2"], (("activation", i),)) for i in own]
    link = (dispatch, combine) if first == "dispatch" else (combine, dispatch)
    return simulate([*link[0], *middle, *link[1]])


def _at_least_one(function: str, **counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{function}: {name} = {count}, it must be 1 or more")


def _one_of(function: str, name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{function}: {name} = {value!r}, it is one of {', '.join(known)}")
