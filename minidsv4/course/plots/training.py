"""Pictures of notebooks 09 and 10: Muon's singular values and races, a recipe, a run's log, planted recall."""

import itertools

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from minidsv4.course.plots.shapes import Box, shapes
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


def muon_shapes():
    """One step of Muon for one matrix of n rows and m columns, n at most m.

    returns  a matplotlib Figure
    """
    boxes = {
        "gradient": Box("gradient G", "backward", "n m", 0, 0, "key"),
        "momentum": Box("momentum", "0.95 old + G", "n m", 1, 0, "key"),
        "ahead": Box("look ahead", "0.95 new + G", "n m", 2, 0, "key"),
        "x": Box("X", "norm made 1", "n m", 3, 0, "query"),
        "gram": Box("Gram matrix", "X times X^T", "n n", 3, 1, "query"),
        "turned": Box("U V^T", "after 10 steps", "n m", 2, 1, "compressed"),
        "step": Box("step", "0.18 root of m", "n m", 1, 1, "compressed"),
        "weight": Box("weight", "decay, then step", "n m", 0, 1, "masked"),
    }
    names = list(boxes)
    title = "Muon: momentum, ten steps of products, one scale, one step"
    return shapes(boxes, list(zip(names, names[1:])), title, size=(6.0, 2.3), box=(1.24, 0.62))


def spectra(before, after, title):
    """Singular values of some matrices, the largest first, log scale, beside the 1 that all of them should become.

    before, after  {name of a matrix: numpy array}, up to three; before is drawn pale
    returns        a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 3.0))
    axes = figure.subplots()
    looks = (("query", "o-"), ("key", "s--"), ("compressed", "^-."))
    for (name, value), (colour, look) in zip(after.items(), looks):
        places = np.arange(1, len(value) + 1)
        axes.plot(places, before[name], look[1:], linewidth=1, alpha=0.5, color=COLOURS[colour])
        axes.plot(places, value, look, markersize=3, linewidth=1.2, color=COLOURS[colour], label=name)
    axes.axhline(1, color=COLOURS["sink"], linestyle=":", linewidth=1)
    axes.set(yscale="log", xlabel="direction, the loudest first", ylabel="singular value", ylim=(3e-4, 3))
    axes.set_title(title)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


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


SCATTERED = ("main", "mtp", "max_violation")  # what differs from batch to batch


def training_log(steps, title, mean_over=1):
    """A run's log over all its steps, stages shaded: losses, the indexers' loss, MaxVio and learning rate.

    steps      records as `train.log.read_log` gives them, the header left out
    title      what one sees, and how many steps a line is the mean of
    mean_over  steps: losses of text and MaxVio are means of the last ones up to each, across the borders of stages, and
               single steps stand behind in a pale colour; 1 smooths nothing
    returns    a matplotlib Figure
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
            look = {"color": COLOURS[colour], "linestyle": line}
            if mean_over > 1 and part in SCATTERED:
                axes.plot(number, values, **look, linewidth=0.4, alpha=0.35)
                values = last_means(values, mean_over)
            axes.plot(number, values, **look, label=name, linewidth=1.2)
        axes.set(ylabel=label, xlim=(0, len(steps)))
        _draw_stages(axes, kinds)
        if len(parts) > 1:
            axes.legend()
    for axes in figure.axes[2:]:
        axes.set_xlabel("training step")
    figure.suptitle(title, **HEADING)
    return figure


def last_means(values, span):
    """For each value the mean of the last `span` up to it, fewer at the start; a NumPy array."""
    total = np.cumsum([0.0, *values])
    stop = np.arange(1, len(total))
    start = np.maximum(0, stop - span)
    return (total[stop] - total[start]) / (stop - start)


def packed_rows(rows, title):
    """Rows of packed documents, token by token: documents in two colours by turns, padding grey.

    rows     NumPy integers [rows, tokens]: the number of a token's document in its row, -1 for padding
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 1.9))
    axes = figure.subplots()
    colours = ListedColormap([COLOURS["masked"], COLOURS["query"], COLOURS["key"]])
    axes.pcolormesh(np.where(rows < 0, 0, 1 + rows % 2), cmap=colours, vmin=0, vmax=2)
    axes.hlines(np.arange(1, len(rows)), 0, rows.shape[1], color="white", linewidth=3)
    axes.set(xlabel="token of the row", ylabel="row", yticks=np.arange(len(rows)) + 0.5)
    axes.set_yticklabels(range(len(rows)))
    axes.invert_yaxis()
    axes.set_title(title)
    names = {"masked": "padding", "query": "a document", "key": "the next one"}
    handles = [Patch(color=COLOURS[colour], label=name) for colour, name in names.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def loss_shapes():
    """From token ids to the four losses of a training step.

    returns  a matplotlib Figure
    """
    boxes = {
        "ids": Box("ids", "tokens", "B T", 0, 0),
        "streams": Box("streams", "L blocks", "B T N D", 1, 0, "query"),
        "hidden": Box("hidden", "collapse, norm", "B T D", 2, 0, "query"),
        "main": Box("main", "token i + 1", "number", 3, 0, "query"),
        "next": Box("ids, shifted", "token i + 1", "B T-1", 0, 1, "key"),
        "draft": Box("draft", "MTP block", "B T-1 N D", 1, 1, "key"),
        "drafted": Box("hidden", "own collapse", "B T-1 D", 2, 1, "key"),
        "mtp": Box("mtp", "token i + 2", "number", 3, 1, "key"),
        "scores": Box("scores", "each router", "B T E", 2, 2, "compressed"),
        "balance": Box("balance", "even loads", "number", 3, 2, "compressed"),
        "weights": Box("weights", "CSA attention", "B T C", 2, 3, "sink"),
        "indexer": Box("indexer", "scores like them", "number", 3, 3, "sink"),
    }
    lines = [("ids", "streams", "hidden", "main"), ("next", "draft", "drafted", "mtp")]
    lines += [("scores", "balance"), ("weights", "indexer"), ("ids", "next"), ("streams", "draft")]
    arrows = [pair for line in lines for pair in itertools.pairwise(line)]
    title = "One forward pass gives four losses; the total is their weighted sum"
    return shapes(boxes, arrows, title, size=(6.0, 3.4), box=(1.24, 0.6))


def spike_seeds(peaks, ends):
    """Loss after a provoked spike with anticipatory routing off and on, a pair of marks a seed.

    peaks, ends  pairs (off, on), one a seed: the highest loss, and that of the last step
    returns      a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.8))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, pairs, name in zip(panels, (peaks, ends), ("highest loss", "6 steps after the fault")):
        seeds = np.arange(len(pairs))
        off, on = np.array(pairs).T
        axes.plot(seeds - 0.1, off, "o", linestyle="", color=COLOURS["masked"], label="anticipatory routing off")
        axes.plot(seeds + 0.1, on, "s", linestyle="", color=COLOURS["key"], label="anticipatory routing on")
        axes.set(xlabel="seed", xticks=seeds, ylim=(3, None))
        axes.set_title(name, fontweight="normal")
    panels[0].set_ylabel("loss, nats per token")
    panels[1].legend()
    figure.suptitle("Old routing does not tame a rate that is too high (3 seeds)", **HEADING)
    return figure


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
