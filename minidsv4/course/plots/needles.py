"""Pictures of notebook 15: how a question is answered, which needles are found, scores of one, and the cost."""

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from minidsv4.course.plots.shapes import Box, shapes
from minidsv4.course.plots.style import COLOURS, HEADING, INK

WRONG = "#A6192E"
FOUND = LinearSegmentedColormap.from_list("found", [(0, WRONG), (0.9, "#F3D9A4"), (1, COLOURS["compressed"])])
LOOKS = {  # colour, line, marker, and how many steps to the right of its length a point stands: equal ones show
    "CSA": ("compressed", "-", "o", 0.0),
    "random": ("masked", "--", "x", -1.5),
    "newest": ("query", "-.", "s", -0.5),
    "HCA": ("sink", ":", "^", 0.5),
    "window": ("key", "--", "v", 1.5),
}
STEP = 1.16  # of the tokens, on a logarithmic axis


def question_shapes():
    """The way from a question to its answer in the CSA layer.

    returns  a matplotlib Figure
    """
    boxes = {
        "fact": Box("MARK key value", "far back", "3 tokens", 0, 0, "key"),
        "question": Box("ASK key", "at the end", "2 tokens", 0, 2, "query"),
        "keys": Box("index keys", "2 hold the fact", "C Z", 1, 0, "compressed"),
        "queries": Box("index queries", "of the question", "U Z", 1, 2, "query"),
        "entries": Box("entries", "2 pool the fact", "C K", 2, 0, "compressed"),
        "scores": Box("scores", "one an entry", "C", 2, 1, "key"),
        "picks": Box("picked entries", "the P best", "P K", 3, 1, "compressed"),
        "answer": Box("value", "the answer", "1 token", 3, 2),
    }
    arrows = [("fact", "keys"), ("question", "queries"), ("keys", "scores"), ("queries", "scores")]
    arrows += [("scores", "picks"), ("entries", "picks"), ("picks", "answer")]
    title = "The question scores all entries, and reads P of them"
    return shapes(boxes, arrows, title, size=(6.0, 2.7), box=(1.2, 0.62))


def found_by_depth(shares, title):
    """Which needles are found, by the length of the text and their depth in it.

    shares   {tokens: the share of seeds in which each needle is found, from the beginning of the text to its end}
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 0.9 + 0.27 * len(shares)))
    axes = figure.subplots()
    rows = np.array(list(shares.values()), dtype=float)
    depths = np.linspace(0, 1, rows.shape[1] + 1)
    mesh = axes.pcolormesh(depths, np.arange(len(rows) + 1), rows, cmap=FOUND, vmin=0, vmax=1)
    axes.vlines(depths[1:-1], 0, len(rows), color="white", linewidth=0.6)
    axes.hlines(range(1, len(rows)), 0, 1, color="white", linewidth=2)
    axes.set_yticks(np.arange(len(rows)) + 0.5, [f"{n_tokens:,}" for n_tokens in shares])
    axes.invert_yaxis()
    axes.set(xlabel="depth of the needle (0: the text begins, 1: it ends)", ylabel="tokens", title=title)
    figure.colorbar(mesh, ax=axes, label="found", ticks=[0, 0.5, 1])
    return figure


def scores_of_entries(score, picked, own, title):
    """The index scores of one question, the picks among them, and the entries that pool the fact.

    score    of each entry
    picked   numbers of the entries that are read
    own      numbers of the entries that pool the fact
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.7))
    axes = figure.subplots()
    entries = np.arange(len(score))
    axes.plot(entries, score, ".", color=COLOURS["masked"], markersize=2, label="not read")
    axes.plot(picked, score[picked], "o", color=COLOURS["compressed"], markersize=5, label="picked")
    look = {"markersize": 12, "markerfacecolor": "none", "markeredgewidth": 1.5}
    axes.plot(own, score[own], "D", color=COLOURS["key"], label="pools the fact", **look)
    axes.set(xlabel="entry", ylabel="index score", title=title)
    axes.set_ylim(top=score.max() + 0.25 * (score.max() - score.min()))
    axes.legend(loc="upper center", ncols=3, fontsize=8)
    return figure


def found_by_choice(stored, live, chance, title):
    """The share of needles that are found, by what is read and by length; the points of a length stand side by side.

    stored   {name of a choice: {tokens: share}} of long runs
    live     {name of a choice: (tokens, share)} of runs a moment ago
    chance   the share that guessing finds
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 3.0))
    axes = figure.subplots()
    for name, shares in stored.items():
        colour, line, marker, steps = LOOKS[name]
        look = {"color": COLOURS[colour], "linestyle": line, "marker": marker, "markersize": 4}
        axes.plot(STEP**steps * np.array(list(shares)), list(shares.values()), label=name, **look)
    for name, (n_tokens, share) in live.items():
        colour, _, marker, steps = LOOKS[name]
        look = {"color": COLOURS[colour], "marker": marker, "markersize": 9, "markerfacecolor": "none"}
        axes.plot([STEP**steps * n_tokens], [share], linestyle="", **look)
    axes.axhline(chance, color=INK, linewidth=0.8)
    axes.annotate("guessing", (0.995, -0.02), xycoords=("axes fraction", "data"), ha="right", va="top", fontsize=8)
    axes.set(xscale="log", ylim=(-0.1, 1.06), xlabel="tokens of the text", ylabel="needles found", title=title)
    axes.set_xticks(*_powers({n_tokens for shares in stored.values() for n_tokens in shares}))
    axes.minorticks_off()
    axes.legend(loc="center right", fontsize=8, title="what is read")
    return figure


def cost_by_length(n_tokens, bytes_of, seconds_of, title):
    """Memory and time of one more token, by length of the text before it.

    n_tokens    lengths
    bytes_of    {name of a cache: bytes at each length}, first the one of V4
    seconds_of  {what is timed: seconds at each length}
    returns     a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.9))
    left, right = figure.subplots(1, 2)
    looks = (("compressed", "-", "o"), ("key", "--", "s"))
    panels = ((left, bytes_of, 1e-6, "MB kept"), (right, seconds_of, 1e3, "ms a token"))
    for axes, curves, unit, label in panels:
        for (name, values), (colour, line, marker) in zip(curves.items(), looks):
            look = {"color": COLOURS[colour], "linestyle": line, "marker": marker, "markersize": 4}
            axes.plot(n_tokens, unit * np.array(values), label=name, **look)
        axes.set(xscale="log", yscale="log", xlabel="tokens of the text", ylabel=label)
        axes.set_xticks(*_powers(n_tokens))
        axes.minorticks_off()
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * (high / low) ** 0.35)
        axes.legend(loc="upper left", fontsize=8)
    figure.suptitle(title, **HEADING)
    return figure


def _powers(n_tokens):
    """Places and names of ticks at lengths of 1,024 tokens and 4 times as many, and so on."""
    places = sorted(n_tokens)
    names = [f"{n // 1024}K" if n < 1 << 20 else f"{n / (1 << 20):g}M" for n in places]
    return places, names
