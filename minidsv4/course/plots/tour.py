"""Pictures of notebook 00: a block's tensors, caches that grow, what a query reads, visits of experts, four streams."""

import numpy as np
from matplotlib.figure import Figure

from minidsv4.course.plots.compression import KINDS
from minidsv4.course.plots.shapes import Box, shapes
from minidsv4.course.plots.style import COLOURS, HEADING, INK


def block_shapes():
    """The tensors of one block: attention and experts, each between a read and a write of the streams.

    returns  a matplotlib Figure
    """
    boxes = {}
    for half, (part, colour, before) in enumerate(
        (("attention", "key", "before the block"), ("experts", "compressed", "after attention"))
    ):
        boxes[half, "old"] = Box("streams", before, "T N D", 0, 2 * half)
        boxes[half, "x"] = Box("x", "collapse: pre", "T D", 1, 2 * half + 1, "query")
        boxes[half, "y"] = Box(part, "of the normed x", "T D", 2, 2 * half + 1, colour)
        boxes[half, "new"] = Box("new streams", "carry, and post y", "T N D", 3, 2 * half)
    pairs = (("old", "x"), ("x", "y"), ("y", "new"), ("old", "new"))
    arrows = [((half, start), (half, end)) for half in (0, 1) for start, end in pairs]
    title = "A block reads one x from N streams, twice, and writes back"
    return shapes(boxes, arrows, title, box=(1.3, 0.52))


def caches(held, others, reports, title):
    """The bytes of caches after each token, on log scales, and V4's by kind.

    held     V4's bytes after 1, 2, ... tokens
    others   name of an attention = its bytes, as many
    reports  V4's bytes by kind, a dict a token
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 3.0))
    left, right = figure.subplots(1, 2)
    n = np.arange(1, len(held) + 1)
    for (name, curve), style in zip(others.items(), ("-", "--", "-."), strict=True):
        left.loglog(n, np.array(curve) / 1000, style, color=COLOURS["masked"])
        left.text(n[-1], curve[-1] / 1000, f" {name}", va="center")
    left.loglog(n, np.array(held) / 1000, color=COLOURS["compressed"], linewidth=2)
    left.text(n[-1], held[-1] / 1000, " V4", va="center", color=COLOURS["compressed"], fontweight="bold")
    left.set(xlabel="tokens", ylabel="cache, kB", xlim=(1, 6 * n[-1]))
    left.set_title("All caches, log scales", fontweight="normal")
    stack = [[report[kind] / 1000 for report in reports] for kind in KINDS]
    right.stackplot(n, stack, colors=KINDS.values(), labels=KINDS)
    right.set(xlabel="tokens", ylabel="V4's cache, kB", ylim=(0, 1.75 * held[-1] / 1000), xlim=(1, n[-1]))
    right.set_title("V4 by kind", fontweight="normal")
    right.legend(loc="upper left", ncols=2, handlelength=1, columnspacing=1, fontsize=8)
    figure.suptitle(title, **HEADING)
    return figure


def what_a_query_reads(near_S, far_C, window, ratio, texts, title):
    """What the last query of a text reads: window tokens upwards, entries downwards over their tokens.

    near_S, far_C  its weights, mean of heads, numpy; far_C is empty in a layer without entries
    texts          those of the tokens
    returns        a matplotlib Figure; an entry that was not read is drawn red
    """
    words = [text.replace("\n", "↵").replace(" ", "·") for text in texts]
    n_tokens = len(words)
    figure = Figure(figsize=(6.0, 3.0))
    axes = figure.subplots()
    axes.axvspan(-0.5, n_tokens - window - 0.5, color="#EFEFEC", zorder=0)
    axes.bar(np.arange(n_tokens - len(near_S), n_tokens), near_S, color=COLOURS["key"], label="tokens of the window")
    middle = ratio * (np.arange(len(far_C)) + 0.5) - 0.5
    look = {"width": ratio - 0.4, "hatch": "..", "edgecolor": "white"}
    axes.bar(middle, -far_C, color=COLOURS["compressed"], label="entries", **look)
    unread = middle[far_C == 0]
    axes.bar(unread, -0.006 + 0 * unread, color="#A6192E", width=ratio - 0.4, label="entries not read")
    axes.axhline(0, color=INK, linewidth=0.6)
    edge = 1.1 * max(near_S.max(), *far_C, 0.02)
    axes.set(xlim=(-0.6, n_tokens - 0.4), ylim=(-edge, 1.6 * edge), ylabel="weight, mean of heads", title=title)
    axes.yaxis.set_major_formatter(lambda weight, _: f"{abs(weight):.2g}")
    shown = range(0, n_tokens, 3)
    axes.set_xticks(shown, [words[place] for place in shown], rotation=90, fontsize=8, family="DejaVu Sans Mono")
    axes.set_xlabel("every third token of the text; grey: out of the window")
    axes.legend(loc="upper left", ncols=3)
    return figure


def visits_of_experts(picked_TA, marked, n_experts, titles):
    """Which experts each token visits in a few layers, one word's tokens in orange.

    picked_TA  a list of arrays [T, A], one a layer; titles: a name for each
    marked     the places of the tokens that are drawn in orange
    returns    a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 3.0))
    rows = figure.subplots(len(titles), 1, sharex=True)
    for axes, picked, words in zip(rows, picked_TA, titles, strict=True):
        place = np.arange(len(picked))[:, None] + 0 * picked
        axes.plot(place, picked, "s", linestyle="", color=COLOURS["masked"], markersize=3)
        axes.plot(place[marked], picked[marked], "D", linestyle="", color=COLOURS["key"], markersize=6)
        axes.set(ylim=(-1, n_experts), yticks=range(0, n_experts, 5), ylabel="expert", xlim=(-1, len(picked)))
        axes.set_title(words, fontweight="normal")
    rows[-1].set_xlabel("token of the text (orange: the same token every time)")
    figure.suptitle("The hash layer sends a token to the same two experts every time", **HEADING)
    return figure


def streams_apart(apart_LN, carry_NN, title):
    """How far each stream is from the streams' mean after each block, and one carry.

    apart_LN  distances in parts of the mean's size, [blocks + 1, N], numpy
    carry_NN  from stream i (rows) to stream j
    returns   a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.7))
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    looks = (("query", "o-"), ("key", "s--"), ("compressed", "^-."), ("sink", "D:"))
    for stream, (colour, look) in enumerate(looks):
        left.plot(100 * apart_LN[:, stream], look, color=COLOURS[colour], markersize=4, label=f"stream {stream}")
    left.set(xlabel="blocks passed", ylabel="distance from the mean, %", ylim=(0, 110))
    left.legend(ncols=2, loc="upper right")
    right.pcolormesh(carry_NN, vmin=0, vmax=1)
    for i, j in np.ndindex(carry_NN.shape):
        colour = "white" if carry_NN[i, j] < 0.6 else "black"
        right.text(j + 0.5, i + 0.5, f"{carry_NN[i, j]:.2f}", ha="center", va="center", color=colour)
    right.set(xlabel="to stream j", ylabel="from stream i", aspect="equal", xticks=[], yticks=[], ylim=(4, 0))
    right.set_title("the last carry, mean of tokens", fontweight="normal")
    figure.suptitle(title, **HEADING)
    return figure


def reads_at_length(reads, title):
    """How many things one query reads in each kind of layer, as dots on a log scale.

    reads    name = number
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.0))
    axes = figure.subplots()
    colours = ("key", "compressed", "compressed", "masked")
    for y, (count, colour) in enumerate(zip(reads.values(), colours, strict=True)):
        axes.plot(count, y, "o", color=COLOURS[colour], markersize=9)
        axes.annotate(f"{count:,}", (count, y), (9, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(reads)), reads)
    axes.set(xscale="log", xlim=(50, 1e7), ylim=(len(reads) - 0.5, -0.5), title=title)
    axes.set_xlabel("tokens and entries that one query attends to (log scale)")
    return figure
