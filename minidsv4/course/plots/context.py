"""Pictures of notebook 14: one sequence cut over ranks, and what the ranks send each other."""

import itertools

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from minidsv4.course.plots.shapes import Box, shapes
from minidsv4.course.plots.style import COLOURS, COMPRESSED, GREY, INK, KEY


def two_stage_shapes():
    """The two exchanges of a CSA layer, as one rank sees them.

    returns  a matplotlib Figure
    """
    boxes = {
        "x": Box("x", "own stretch", "T D", 0, 0),
        "raw": Box("raw series", "values, gates", "T 4K", 1, 0, "query"),
        "halo": Box("halo + own", "stage 1", "S+T 4K", 2, 0, "key"),
        "own": Box("own entries", "pooled", "C K", 3, 0, "compressed"),
        "emitted": Box("padded", "same on all ranks", "s/M+1 K", 3, 1, "compressed"),
        "gathered": Box("of all ranks", "stage 2", "ranks·(s/M+1) K", 2, 1, "key"),
        "listed": Box("entries", "select, pad", "ranks·s/M K", 1, 1, "compressed"),
        "read": Box("attention", "reads by place", "T D", 0, 1),
    }
    path = list(boxes)
    title = "Stage 1 completes the first window, stage 2 puts all entries in one list"
    return shapes(boxes, list(zip(path, path[1:])), title, size=(6.0, 1.95), box=(1.32, 0.62))


def wrong_from_the_border(errors, border, title):
    """The largest error of a logit at each position, those of rank 0 grey.

    errors   numpy array [positions]
    border   first position of rank 1
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.4))
    axes = figure.subplots()
    colours = [COLOURS["masked" if place < border else "compressed"] for place in range(len(errors))]
    axes.bar(range(len(errors)), errors, color=colours)
    axes.axvline(border - 0.5, color=INK, linestyle="--", linewidth=1)
    top = errors.max() or 1.0
    axes.annotate("rank 0", (border - 1, 1.1 * top), ha="right")
    axes.annotate("rank 1", (border, 1.1 * top), ha="left")
    axes.set(xlabel="position", ylabel="largest error of a logit", title=title, ylim=(0, 1.25 * top))
    return figure


def sent_by_ranks(numbers, curves, title):
    """Kilobytes that all ranks together send for a token, by the number of ranks.

    numbers  of ranks, ascending
    curves   {name: bytes for a token}, three of them
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.8))
    axes = figure.subplots()
    for (name, curve), colour, line in zip(curves.items(), ("masked", "key", "compressed"), ("--", "-.", "-")):
        kilobytes = np.array(curve) / 1e3
        axes.plot(numbers, kilobytes, line, color=COLOURS[colour], marker="o", markersize=3, label=name)
    axes.set(xscale="log", yscale="log", xlabel="ranks", ylabel="kB sent for a token", title=title)
    axes.set_xticks(numbers, numbers)
    axes.minorticks_off()
    axes.legend()
    return figure


def cut_row(edges, entries, fetched):
    """What each rank but the first fetches from before its first token, strip by strip.

    edges    positions where ranks begin, and the end of the row
    entries  [(name, tokens per entry)]: a strip of boxes each, named after the rank that makes the entry
    fetched  {name: [(rank, tokens of the window before, tokens next to the border)]}, in the order of the strips
    """
    figure = Figure(figsize=(6.0, 3.8))
    axes = figure.subplots()
    tall = 0.7  # of a box; strips are 1 apart
    labels = ["tokens"]
    strip = 1
    _draw_boxes(axes, list(itertools.pairwise(edges)), range(len(edges) - 1), 0, tall)
    for name, rows in fetched.items():
        if name in entries:
            stops = range(entries[name], edges[-1] + 1, entries[name])
            owners = [sum(stop > edge for edge in edges[1:-1]) for stop in stops]
            _draw_boxes(axes, [(stop - entries[name], stop) for stop in stops], owners, strip, tall)
            labels.append(f"{name}: entries")
            strip += 1
        for rank, n_before, n_next in rows:
            start = edges[rank]
            colour = KEY if name not in entries else COMPRESSED
            for left, width, look in (
                (start, edges[rank + 1] - start, {"color": GREY, "alpha": 0.3}),
                (start - n_next, n_next, {"color": colour}),
                (start - n_next - n_before, n_before, {"facecolor": "white", "edgecolor": colour, "hatch": "////"}),
            ):
                axes.barh(strip, width, tall, left=left, linewidth=0.8, **look)
            labels.append(f"{name}: rank {rank}")
            strip += 1
    axes.vlines(edges[1:-1], -0.6, strip - 0.4, color=INK, linestyle="--", linewidth=1.0)
    axes.set(yticks=range(strip), yticklabels=labels, ylim=(strip - 0.4, -0.6), xlim=(0, edges[-1]), xlabel="position")
    axes.set(xticks=range(0, edges[-1] + 1, 4), title="A rank lacks what lies just before its first token")
    looks = [{"color": GREY, "alpha": 0.3}, {"color": KEY}, {"color": COMPRESSED}]
    words = ("its own tokens", "window entries", "raw, window that goes on", "raw, window before it")
    looks.append({"facecolor": "white", "edgecolor": COMPRESSED, "hatch": "////"})
    keys = [Patch(label=word, **look) for word, look in zip(words, looks)]
    figure.legend(handles=keys, loc="outside lower center", ncols=4, fontsize=8, handlelength=1.2, columnspacing=0.9)
    return figure


def _draw_boxes(axes, spans, owners, strip, tall):
    """A box for each stretch of the row, with the rank it belongs to."""
    for (left, right), owner in zip(spans, owners):
        axes.barh(strip, right - left, tall, left=left, color="white", edgecolor=INK, linewidth=0.8)
        words = axes.text(right - 0.2, strip, f"rank {owner}", ha="right", va="center", fontsize=7.5, zorder=5)
        words.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
