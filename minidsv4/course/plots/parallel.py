"""Pictures of notebook 13: experts over ranks, what travels between them, and schedules that hide it."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from minidsv4.course.plots.shapes import Box, shapes
from minidsv4.course.plots.style import COLOURS, HEADING, INK

# The look of a stage, its colour and how strong it is.
STAGES = {
    "dispatch": ("key", 1.0),
    "linear1": ("query", 1.0),
    "activation": ("sink", 1.0),
    "linear2": ("query", 0.55),
    "combine": ("compressed", 1.0),
}
STAGE_WORDS = {"linear1": "linear 1", "linear2": "linear 2"}


def expert_parallel_shapes():
    """The way of a rank's tokens to their experts and back.

    returns  a matplotlib Figure
    """
    boxes = {
        "x": Box("x", "tokens, weights", "T D, T A", 0, 0),
        "rows": Box("rows", "one a pair, by rank", "T·A D+1", 1, 0, "key"),
        "came": Box("rows that came", "after dispatch", "n D+1", 2, 0, "key"),
        "inner": Box("inner", "linear 1, SwiGLU", "n F", 3, 0, "query"),
        "made": Box("results", "linear 2, weighted", "n D", 3, 1, "query"),
        "back": Box("results at home", "after combine", "T·A D", 2, 1, "compressed"),
        "slots": Box("by pick", "put in their place", "T A D", 1, 1, "compressed"),
        "y": Box("y", "sum over A", "T D", 0, 1),
    }
    path = list(boxes)
    title = "Dispatch sends rows to their experts' ranks, combine brings results home"
    return shapes(boxes, list(zip(path, path[1:])), title, size=(6.0, 1.95), box=(1.32, 0.62))


def traffic(rows):
    """How many rows each rank sends to each, a panel a kind of routing.

    rows     {name: numpy integers [from rank, to rank]}
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.5))
    most = max(there.max() for there in rows.values())
    panels = figure.subplots(1, len(rows), sharey=True)
    for axes, (name, there) in zip(panels, rows.items()):
        n_ranks = len(there)
        image = axes.pcolormesh(there, vmin=0, vmax=most, edgecolor="white", linewidth=0.5)
        axes.set(xlabel="to rank", ylim=(n_ranks, 0), aspect="equal")
        axes.set(xticks=(0.5, n_ranks - 0.5), xticklabels=(0, n_ranks - 1))
        axes.set_title(name, fontweight="normal")
    panels[0].set(ylabel="from rank", yticks=(0.5, n_ranks - 0.5), yticklabels=(0, n_ranks - 1))
    figure.colorbar(image, ax=panels, label="rows sent", shrink=0.7)
    figure.suptitle("Every rank sends to every rank; popular experts make bright columns", **HEADING)
    return figure


def rows_by_ranks(ranks, curves, n_active):
    """Rows that a token costs each way, by the number of ranks.

    ranks     numpy integers
    curves    {name: rows sent for a token}, three of them
    n_active  active experts of a token
    returns   a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 3.0))
    axes = figure.subplots()
    for (name, rows), colour, line in zip(curves.items(), ("masked", "query", "compressed"), ("--", "-", "-.")):
        axes.plot(ranks, rows, line, color=COLOURS[colour], label=name)
    axes.axvline(n_active, color=INK, linewidth=0.8)
    axes.annotate(f"ranks = A = {n_active}", (n_active, 11), (5, 0), textcoords="offset points")
    axes.set(xscale="log", xlabel="ranks", ylabel="rows sent for a token, each way", ylim=(0, 15))
    axes.set_title("Beyond A ranks, pairs are cheaper than whole tokens")
    numbers = (2, 4, 6, 8, 16, 32, 64)
    axes.set_xticks(numbers, numbers)
    axes.minorticks_off()
    axes.legend(loc="lower right")
    return figure


def paced_waves(measured):
    """Speed-up over one wave by the number of waves: theory, and what real ranks took at an emulated chip's pace.

    measured  {kind: {waves: seconds}}, two kinds
    returns   a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.8))
    axes = figure.subplots()
    waves = np.linspace(1, 12, 100)
    axes.plot(waves, 2 / (1 + 1 / waves), "-", color=COLOURS["compressed"], label="theory: 2 / (1 + 1 / waves)")
    for (kind, seconds), look, colour in zip(measured.items(), ("o", "s"), ("key", "masked")):
        gains = [seconds[1] / second for second in seconds.values()]
        axes.plot(list(seconds), gains, look, color=COLOURS[colour], label=f"{kind} of 20 rounds")
    axes.set(xlabel="waves", ylabel="speed-up over one wave", xticks=range(1, 13), ylim=(0.9, 2))
    axes.set_title("Measured once: the first waves pay most, each costs a little")
    axes.legend(loc="lower center")
    return figure


def sorted_loads(loads):
    """Loads of ranks over their mean, the fullest first, a line a placement.

    loads    {name: numpy array, one number a rank}, three of them
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.6))
    axes = figure.subplots()
    for (name, load), colour, line in zip(loads.items(), ("masked", "key", "compressed"), (":", "--", "-")):
        falling = np.sort(load / load.mean())[::-1]
        places = range(1, len(load) + 1)
        axes.plot(places, falling, line, marker="o", markersize=4, color=COLOURS[colour], label=name)
    axes.set(xlabel="ranks, the fullest first", ylabel="load over the mean load", ylim=(0, None), xticks=places)
    axes.set_title("Packing cannot split the most popular expert; copies can")
    axes.legend()
    return figure


def gantt(timelines, lanes, unit, title, words):
    """what each lane does when, a panel a schedule.

    timelines  {name: minidsv4.cost.schedule.Timeline}
    lanes      {lane: its name on the left}, the first one on top
    unit       the time that is 1 on the axis
    words      {name: what stands at its end}
    returns    a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 1.1 + 0.85 * len(timelines)))
    panels = figure.subplots(len(timelines), 1, sharex=True, squeeze=False)[:, 0]
    longest = 0
    for axes, (name, timeline) in zip(panels, timelines.items()):
        for task, start, end in timeline.spans:
            colour, strength = STAGES[task.stage]
            place = list(lanes).index(task.lane)
            long = (end - start) / unit
            axes.barh(place, long, 0.8, start / unit, color=COLOURS[colour], alpha=strength, edgecolor="white", lw=0.2)
        axes.set(yticks=range(len(lanes)), yticklabels=lanes.values(), ylim=(len(lanes) - 0.4, -0.6))
        axes.set_title(name, fontweight="normal", fontsize=9, pad=2)
        axes.text(timeline.time / unit + 0.03, 1, words[name], va="center", fontsize=9)
        axes.tick_params(axis="y", length=0)
        longest = max(longest, timeline.time / unit)
    panels[-1].set(xlim=(0, 1.22 * longest), xlabel="time, both products together being 1")
    looks = [Patch(color=COLOURS[colour], alpha=strength) for colour, strength in STAGES.values()]
    figure.legend(looks, [STAGE_WORDS.get(stage, stage) for stage in STAGES], loc="outside lower center", ncols=5)
    figure.suptitle(title, **HEADING)
    return figure


def overlap_by_ratio(curves, chips, ratios, bounds):
    """speed-up against rho, chips as dots; and each chip's FLOPs a byte against what models need.

    curves   {name: (rho, speed-up) numpy arrays}
    chips    {name: (rho, speed-up of 8 waves, bound with the activation)} of one model
    ratios   {name: FLOP/s of FP8 over bytes/s of the link}
    bounds   {model: the ratio up to which its transfers can be hidden}
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 3.0))
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    for (name, (rho, gain)), colour, line in zip(curves.items(), ("compressed", "query", "masked"), ("-", "--", ":")):
        left.plot(rho, gain, color=COLOURS[colour], linestyle=line, label=name)
    places, reached, bound = zip(*chips.values())
    left.plot(places, bound, "o", color=COLOURS["key"], fillstyle="none", markersize=8, label="bound with activation")
    left.plot(places, reached, "o", color=COLOURS["key"], markersize=4, label="8 waves")
    for name, (rho, gain, _) in chips.items():
        place, align = ((-6, -2), "right") if rho < 1 else ((6, -2), "left")
        left.annotate(name, (rho, gain), place, textcoords="offset points", fontsize=8, ha=align)
    left.set(xscale="log", xticks=(0.1, 0.2, 0.5, 1, 2, 4), xticklabels=("0.1", "0.2", "0.5", "1", "2", "4"))
    left.set(
        xlabel="ρ: time of transfers over products", ylabel="speed-up over serial", xlim=(0.08, 5), ylim=(0.9, 2.8)
    )
    left.minorticks_off()
    left.legend(loc="upper left", fontsize=8)
    places = range(len(ratios))
    right.barh(places, list(ratios.values()), color=COLOURS["masked"])
    right.set(
        yticks=places, yticklabels=ratios, xlabel="FLOP for each byte of the link", ylim=(-0.6, len(ratios) - 0.1)
    )
    for (name, bound), line in zip(bounds.items(), ("--", "-")):
        right.axvline(bound, ymax=0.93, color=COLOURS["compressed"], linestyle=line)
        right.text(bound, len(ratios) - 0.3, name, ha="center", fontsize=8, color=COLOURS["compressed"])
    title = "Most is gained near ρ = 1; hiding the activation lifts chips higher"
    figure.suptitle(title, **HEADING)
    return figure


def gain_by_batch(gains, published):
    """speed-ups by batch, split into overlap and overhead that went away, a panel a model.

    gains      {model: {tokens of a rank: minidsv4.cost.megamoe.Gain}}
    published  {model: {tokens: speed-up}}
    returns    a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 3.0))
    for axes, (model, by_batch) in zip(figure.subplots(1, len(gains), sharey=True), gains.items()):
        places = range(len(by_batch))
        overlap = np.array([gain.overlap for gain in by_batch.values()])
        total = np.array([gain.speedup for gain in by_batch.values()])
        axes.bar(places, overlap - 1, 0.6, 1, color=COLOURS["compressed"], label="overlap")
        axes.bar(places, total - overlap, 0.6, overlap, color=COLOURS["masked"], label="less overhead")
        axes.plot(places, list(published[model].values()), "D", color=COLOURS["key"], markersize=5, label="published")
        axes.set(xticks=places, xticklabels=[f"{n:,}" for n in by_batch], xlabel="tokens of a rank", ylim=(1, 2.1))
        axes.set_title(model, fontweight="normal")
    figure.axes[0].set_ylabel("speed-up over serial")
    figure.axes[-1].legend(loc="upper right")
    title = "One token gains by fewer launches, many by overlap"
    figure.suptitle(title, **HEADING)
    return figure
