"""Figures of what V4 costs, and of how its work is cut over ranks: notebooks 12 to 14 and the README."""

import itertools
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from minidsv4.bench.rows import Point
from minidsv4.config import Config
from minidsv4.cost import V32, flops, megamoe, memory, schedule
from minidsv4.cost.hardware import DEVICES
from minidsv4.course import plots
from minidsv4.course.plots import HEADING
from minidsv4.parallel import context

CURVES = Path(__file__).resolve().parents[1] / "assets" / "curves.json"
# Notebook 13: seconds of a layer by waves, from 20 rounds of 4 ranks paced to 0.15 s of products and rho = 1. Measured
# once over gloo, on 2 cores that ten other programs used as well; 0.15 (1 + 1/W) would be exact.
PACED = {
    "fastest": {1: 0.3202, 2: 0.2522, 3: 0.2169, 4: 0.2050, 6: 0.1968, 12: 0.1941},
    "median": {1: 0.3802, 2: 0.3031, 3: 0.2568, 4: 0.2820, 6: 0.2666, 12: 0.3145},
}


def flops_and_cache():
    """The report's figure 1: FLOPs of one token and cache of one sequence against length, for V3.2, Pro and Flash."""
    n_tokens = 4000 * np.arange(1, 251)
    colours = {
        "V3.2": plots.COLOURS["masked"],
        "V4-Pro": plots.COLOURS["query"],
        "V4-Flash": plots.COLOURS["compressed"],
    }
    panels = {
        "Work for one more token": ("FP8-equivalent TFLOP", flops.decode, flops.weighted, 1e12),
        "Memory of one sequence": ("cache, GB", memory.cache, lambda held: sum(held.values()), 1e9),
    }
    figure = Figure(figsize=(6.0, 3.0))
    for axes, (title, (unit, amounts, total, scale)) in zip(figure.subplots(1, 2), panels.items()):
        curves = [total(amounts(model, n_tokens)) / scale for model in (V32(), Config.pro(), Config.flash())]
        for (name, colour), curve, style, lift in zip(colours.items(), curves, ("--", "-", "-."), (0, 5, -5)):
            axes.plot(n_tokens / 1000, curve, color=colour, linestyle=style, label=name)
            words = name if name == "V3.2" else f"{name}: 1/{curves[0][-1] / curve[-1]:.1f}"
            axes.annotate(words, (1000, curve[-1]), (4, lift), textcoords="offset points", color=colour, va="center")
        axes.set(xlabel="tokens in context, thousands", ylabel=unit, xlim=(0, 1000), ylim=(0, None))
        axes.set_title(title, fontweight="normal")
    figure.suptitle("At a million tokens V4 needs 1/4 to 1/14 of what V3.2 needs", **HEADING)
    return figure


def schedules(n_waves=3):
    """Notebook 13: the report's figure 5, simulated with Flash's shapes and the data sheet of B200.

    n_waves  of the last panel
    """
    part = schedule.stages(Config.flash(), DEVICES["B200"])
    timelines = {
        "One stage after the other": schedule.naive(part),
        "Comet: two pairs overlap": schedule.comet(part),
        f"V4: experts in waves, here {n_waves}": schedule.waves(part, n_waves),
    }
    gains = [part.serial / timeline.time for timeline in timelines.values()]
    reported = ("", ", report 1.42", ", report 1.92" if n_waves == 3 else "")
    words = {name: f"{gain:.2f}x{said}" for name, gain, said in zip(timelines, gains, reported)}
    lanes = {lane: f"{lane}, {schedule.LANES[lane]}" for lane in ("link", "matrix", "vector")}
    times = f"{gains[-1]:.2f} times as fast as one stage after the other"
    title = f"{n_waves} wave{'s' if n_waves > 1 else ''} of experts: {times}"
    return plots.gantt(timelines, lanes, part.products, title, words)


def rows_by_ranks(n_active=6):
    """Notebook 13: rows that a token costs each way, by strategy; V4 has six active experts."""
    n_ranks = np.arange(2, 65)
    remote = (n_ranks - 1) / n_ranks
    curves = {
        "all-gather": n_ranks - 1,
        "all-to-all of pairs": n_active * remote,
        "all-to-all, a token once to a rank": megamoe.ranks_met(n_active, n_ranks) * remote,
    }
    return plots.rows_by_ranks(n_ranks, curves, n_active)


def overlap_by_ratio():
    """Notebook 13: what overlap is worth by rho, with Flash on six chips; and C/B of these chips."""
    rho, names = np.geomspace(0.1, 4.5, 181), ("H20", "Ascend 950DT", "Ascend 910C", "H200", "B200", "H800")
    parts = {name: schedule.stages(Config.flash(), DEVICES[name]) for name in names}
    curves = {
        "perfect overlap, no activation": (rho, schedule.ideal_speedup(rho)),
        "Comet at best, no activation": (rho, schedule.comet_speedup(rho)),
        "serial": (rho, np.ones_like(rho)),
    }
    chips = {
        name: (part.rho, part.serial / schedule.waves(part, 8).time, part.serial / part.bound)
        for name, part in parts.items()
    }
    ratios = {name: DEVICES[name].peak(8) / DEVICES[name].link for name in names}
    bounds = {
        name: schedule.balance_point(config) for name, config in (("Flash", Config.flash()), ("Pro", Config.pro()))
    }
    return plots.overlap_by_ratio(curves, chips, ratios, bounds)


def gain_by_batch():
    """Notebook 13: the speed-ups of DeepGEMM's table, taken apart by the model of minidsv4/cost/megamoe.py."""
    models = {"Flash": ("flash", megamoe.FLASH), "Pro": ("pro", megamoe.PRO)}
    published = {
        model: {row.n_tokens: row.speedup for row in megamoe.DEEPGEMM if row.model == name}
        for model, (name, _) in models.items()
    }
    gains = {
        model: {n_tokens: megamoe.gain(config, n_tokens, megamoe.B200) for n_tokens in published[model]}
        for model, (_, config) in models.items()
    }
    return plots.gain_by_batch(gains, published)


def cost_curves():
    """README: what a text of a thousand to a million tokens costs; measured by `bench --curve`, kept in assets/."""
    return plots.bench_curves([Point(**point) for point in json.loads(CURVES.read_text(encoding="utf-8"))["points"]])


def cut_row(lengths=(10, 7, 7), window=4, ratios=(4, 8)):
    """Notebook 14: 24 tokens on three ranks, and what crosses the borders in a window, a CSA and an HCA layer."""
    starts, edges = list(itertools.accumulate(lengths))[:-1], [0, *itertools.accumulate(lengths)]
    overlap, plain = ratios
    fetched = {
        f"window of {window}": [(rank, 0, context.window_reach(start, window)) for rank, start in enumerate(starts, 1)],
        f"CSA, M = {overlap}": [
            (rank, context.raw_reach(start, overlap, 2) - start % overlap, start % overlap)
            for rank, start in enumerate(starts, 1)
        ],
        f"HCA, M' = {plain}": [(rank, 0, context.raw_reach(start, plain, 1)) for rank, start in enumerate(starts, 1)],
    }
    return plots.cut_row(edges, dict(zip([*fetched][1:], ratios)), fetched)
