"""Pictures of notebooks 09 and 10: Muon's singular values and races, a recipe, a run's log, planted recall."""

import itertools

import numpy as np
from matplotlib.figure import Figure

from minidsv4.course.plots.style import COLOURS, GREY, HEADING, INK, PALE_INK, PAPER


def newton_schulz(axes, values):
    """Singular values through the steps of eq. (28), one line a start, log scale.

    values  numpy array (steps + 1, starts); the last two steps are the exact ones
    """
    steps = np.arange(len(values))
    last = len(values) - 1
    axes.axhspan(0.68, 1.13, color=COLOURS["compressed"], alpha=0.2, linewidth=0)
    axes.axvline(last - 2, color=COLOURS["masked"], linestyle="--", linewidth=1)
    axes.plot(steps, values, color=COLOURS["query"], linestyle="-", marker="o", markersize=3)
    axes.annotate("fast", (last - 2, 1.2e-3), (-4, 0), textcoords="offset points", ha="right")
    axes.annotate("exact", (last - 2, 1.2e-3), (4, 0), textcoords="offset points")
    axes.set(yscale="log", xlabel="step", ylabel="singular value", xticks=steps[::2], ylim=(8e-4, 2))
    axes.set_title("Eight fast steps, two exact ones", fontweight="normal")


def race(axes, curves, every):
    """Held-out loss of Muon and AdamW, a thin line a seed, log scale, and the level at which AdamW ends.

    curves  {"Muon" or "AdamW": numpy array (seeds, points)}
    every   steps from one point to the next
    """
    looks = {"AdamW": ("masked", "--"), "Muon": ("compressed", "-")}
    for kind, (colour, line) in looks.items():
        steps = every * np.arange(curves[kind].shape[1])
        for number, losses in enumerate(curves[kind]):
            label = kind if number == 0 else None
            axes.plot(steps, losses, color=COLOURS[colour], linestyle=line, linewidth=1.3, label=label)
    end = curves["AdamW"][:, -1].mean()
    axes.axhline(end, color=COLOURS["key"], linestyle=":", linewidth=1)
    axes.annotate("where AdamW ends", (0, end), (4, -3), textcoords="offset points", color=COLOURS["key"], va="top")
    ticks = (0.5, 1, 2, 3, 4, 6)
    axes.set(xlabel="step", ylabel="nats a token", yscale="log", xlim=(0, steps[-1]))
    axes.set_yticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.legend(loc="upper right")


STAGE_COLOURS = {"dense": "masked", "warm-up": "sink", "sparse": "compressed"}

_ABOVE = {"textcoords": "offset points", "fontsize": 8, "color": PALE_INK}


def _draw_stages(axes, kinds):
    """Shade the steps of each stage of training; kinds names the attention of every step."""
    start = 0
    for kind, steps in itertools.groupby(kinds):
        stop = start + len(list(steps))
        axes.axvspan(start, stop, color=COLOURS[STAGE_COLOURS[kind]], alpha=0.15, linewidth=0)
        axes.annotate(kind, ((start + stop) / 2, 1), (0, 2), xycoords=("data", "axes fraction"), ha="center", **_ABOVE)
        start = stop


def schedule(kinds, rates, mtp_weights, lengths):
    """A recipe over its steps: kind of attention, learning rate, weight of the MTP loss, tokens in a row."""
    figure = Figure(figsize=(6.0, 4.0))
    panels = figure.subplots(3, 1, sharex=True)
    curves = (("learning rate", rates, "query"), ("MTP weight", mtp_weights, "key"), ("tokens a row", lengths, "sink"))
    for axes, (name, values, colour) in zip(panels, curves):
        axes.plot(np.arange(1, len(values) + 1), values, color=COLOURS[colour], linestyle="-")
        axes.set(ylabel=name, ylim=(0, 1.15 * max(values)))
        _draw_stages(axes, kinds if axes is panels[0] else [])
        if axes is not panels[0]:
            for start in _changes(kinds):
                axes.axvline(start, color=GREY, linewidth=0.8)
    panels[-1].set(xlabel="training step", xlim=(0, len(kinds)))
    figure.suptitle("Dense and short first, then the indexer alone, then sparse and long", **HEADING)
    return figure


def _changes(kinds):
    """The steps after which the kind of attention is another one."""
    return [step for step in range(1, len(kinds)) if kinds[step] != kinds[step - 1]]


def training_log(steps, title):
    """A run's log: losses, the indexers' loss, MaxVio and learning rate over all its steps, stages shaded.

    steps  records as `train.log.read_log` gives them, the header left out
    """
    figure = Figure(figsize=(6.0, 4.2))
    kinds = [record["attention"] for record in steps]
    number = [record["step"] for record in steps]
    curves = {
        "loss, nats per token": {"next token": "main", "one after (MTP)": "mtp"},
        "indexer, nats per query": {None: "indexer"},
        "MaxVio": {None: "max_violation"},
        "learning rate": {None: "rate"},
    }
    for axes, (label, parts) in zip(figure.subplots(2, 2, sharex=True).flat, curves.items()):
        for (name, part), colour, line in zip(parts.items(), ("query", "key"), ("-", "--")):
            values = [record[part] for record in steps]
            values = values if part == "rate" else _smooth(values, _changes(kinds))
            axes.plot(number, values, color=COLOURS[colour], linestyle=line, label=name, linewidth=1.2)
        axes.set(ylabel=label, xlim=(0, len(steps)))
        _draw_stages(axes, kinds)
        if len(parts) > 1:
            axes.legend()
    for axes in figure.axes[2:]:
        axes.set_xlabel("training step")
    figure.suptitle(title, **HEADING)
    return figure


def _smooth(values, restarts, share=0.9):
    """A running mean that forgets a tenth a step, and begins anew at the restarts."""
    pieces = [values[start:stop] for start, stop in itertools.pairwise([0, *restarts, len(values)])]
    return [
        mean
        for piece in pieces
        for mean in itertools.accumulate(piece, lambda mean, value: share * mean + (1 - share) * value)
    ]


def planted_recall(runs, edges, length):
    """Notebook 10: answers by how far back their fact lies, and what an indexer's picks catch before and after.

    runs     of `minidsv4.experiments.recall.run`, one a seed
    edges    of the bins of distances, tokens
    length   tokens of the texts that were learnt
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 3.2))
    left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
    looks = {
        "taught": ("V4, indexer taught", 0.9, "compressed", "o-"),
        "untaught": ("V4, never taught", 0.65, "compressed", "s:"),
        "window": ("windows only", 0.31, "key", "^--"),
    }
    middles = np.sqrt(np.array(edges[:-1]) * edges[1:])
    for name, (label, height, colour, look) in looks.items():
        share = np.array([run["answers"][name] for run in runs])
        left.plot(middles, share.mean(0), look, color=COLOURS[colour], label=label)
        left.text(edges[-1] * 0.95, height, label, color=COLOURS[colour], ha="right", va="center", fontsize=8)
        left.fill_between(middles, share.min(0), share.max(0), color=COLOURS[colour], alpha=0.2)
    left.axhline(0.25, color=COLOURS["masked"], linewidth=0.8, linestyle="-")
    left.text(1.7, 0.19, "guessing", color=COLOURS["masked"], va="top")
    left.axvspan(length, edges[-1], color=PAPER, zorder=0)
    left.text(length * 1.08, 0.03, "further than\nit learnt", va="bottom", fontsize=8)
    left.set(xscale="log", xticks=edges, xticklabels=edges, xlim=(1.5, edges[-1]), ylim=(0, 1.04))
    left.set(xlabel="tokens from question back to fact", ylabel="share of right answers")
    left.minorticks_off()
    _draw_caught(right, runs, str(edges[-1]))
    title = "A taught indexer finds facts 4 times further back than it learnt"
    figure.suptitle(title, **HEADING)
    return figure


def _draw_caught(axes, runs, length):
    """Bars: what 4 entries catch of the attention on all, with a line from the least to the most of the seeds."""
    bars = (("before", "random"), ("before", "indexer"), ("after", "indexer"), ("after", "oracle"))
    for place, (stage, who) in enumerate(bars):
        share = [run["recall"][f"{stage} the warm-up"][length][who] for run in runs]
        colour = COLOURS["compressed"] if who == "indexer" else COLOURS["masked"]
        axes.bar(place, np.mean(share), color=colour, width=0.7, alpha=0.5 if stage == "before" else 1)
        axes.vlines(place, min(share), max(share), color=INK)
    axes.set(xticks=range(4), ylabel="attention caught", ylim=(0, None))
    axes.set_xticklabels(("blind", "indexer\nbefore", "indexer\nafter", "oracle"), fontsize=7.5)
    axes.set_title("4 of 64 entries,\nbefore and after the warm-up", fontweight="normal", fontsize=9)
