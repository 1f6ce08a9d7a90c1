"""Pictures of notebook 03: the tensors of an indexer, the picks of one token in its text, and what picks catch."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from minidsv4.course.plots.shapes import Box, shapes
from minidsv4.course.plots.style import COLOURS, HEADING, INK

FONT = 9  # points of the code in `picked_text`
CHARACTER = 0.602 * FONT / 72  # inches that a letter of DejaVu Sans Mono takes

# What a token is to the query: (words in the legend, colour behind it, colour of its letters).
STATES = {
    "query": ("the token that reads", COLOURS["query"], "white"),
    "window": ("in its window", "#BFDDF0", INK),
    "picked": ("in a picked entry", "#8FD6BD", INK),
    "not read": ("past, but not read", "#F0B4B4", INK),
    "future": ("not there yet", "white", COLOURS["masked"]),
}


def indexer_shapes():
    """The tensors of the lightning indexer and what makes them.

    returns  a matplotlib Figure
    """
    boxes = {
        "x": Box("x", "one vector a token", "T D", 0, 0.5),
        "latent": Box("latent", "narrow queries", "T Q", 0, 2),
        "keys": Box("keys", "own compressor", "C Z", 1, 0, "compressed"),
        "weights": Box("weights", "one a head", "T U", 1, 1, "query"),
        "queries": Box("queries", "one a head", "T U Z", 1, 2, "query"),
        "scores": Box("scores", "sum over U heads", "T C", 2, 1, "key"),
        "picks": Box("picks", "the best, sorted", "T P", 3, 1, "compressed"),
    }
    arrows = [("x", "keys"), ("x", "weights"), ("latent", "queries")]
    arrows += [("keys", "scores"), ("weights", "scores"), ("queries", "scores"), ("scores", "picks")]
    title = "Every query scores all C entries, and hands on the numbers of P of them"
    return shapes(boxes, arrows, title, size=(6.0, 2.7), box=(1.28, 0.62))


def picked_text(texts, query, window, picked, ratio, title):
    """A text in two columns, each token coloured by what it is to the token that reads.

    texts    of the tokens, line breaks included
    query    index of the token that reads; window: how many tokens it sees one by one
    picked   indices of entries; ratio: tokens of each, its overlap left out
    returns  a matplotlib Figure
    """
    n_lines = "".join(texts).rstrip("\n").count("\n") + 1
    per_column = -(-n_lines // 2)
    size = (6.0, 0.17 * per_column + 0.75)
    figure = Figure(figsize=size, layout="none")
    axes = figure.add_axes((0.01, 0.42 / size[1], 0.98, 0.17 * per_column / size[1]))
    columns = 0.98 * size[0] / CHARACTER
    axes.set(xlim=(0, columns), ylim=(per_column, 0))
    axes.set_axis_off()
    line, place = 0, 0
    for token, text in enumerate(texts):
        state = _state(token, query, window, token // ratio in picked)
        for number, words in enumerate(text.split("\n")):
            if number:
                line, place = line + 1, 0
            left = place + columns / 2 * (line // per_column)
            _draw_words(axes, words, state, left, line % per_column)
            place += len(words)
    keys = [Patch(facecolor=behind, edgecolor=COLOURS["masked"], label=words) for words, behind, _ in STATES.values()]
    figure.legend(handles=keys, loc="lower center", ncols=3, fontsize=8, columnspacing=1.2)
    figure.suptitle(title, y=1 - 0.06 / size[1], va="top", **HEADING)
    return figure


def _state(token, query, window, is_picked):
    """What a token is to the query: a key of STATES."""
    if token >= query:
        return "query" if token == query else "future"
    if token > query - window:
        return "window"
    return "picked" if is_picked else "not read"


def _draw_words(axes, words, state, left, line):
    """Letters on a coloured ground; bold where they are read."""
    _, behind, colour = STATES[state]
    axes.add_patch(Rectangle((left, line), len(words), 0.96, color=behind, linewidth=0))
    weight = "bold" if state in ("query", "picked") else "normal"
    look = {"family": "DejaVu Sans Mono", "fontsize": FONT, "fontweight": weight, "color": colour}
    axes.text(left, line + 0.5, words, va="center", **look)


def caught(shares, title):
    """How much of the attention several choices of as many entries catch.

    shares   name of a place = name of a choice = its share, from 0 to 1; at most four choices
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.6))
    axes = figure.subplots()
    choices = list(next(iter(shares.values())))
    looks = zip(("compressed", "query", "key", "masked"), ("D", "o", "^", "x"), (-0.09, 0.09, -0.09, 0.09))
    for name, (colour, marker, shift) in zip(choices, looks):
        values = [of_choice[name] for of_choice in shares.values()]
        axes.plot(np.arange(len(values)) + shift, values, marker, color=COLOURS[colour], label=name, linestyle="")
    axes.set_xticks(range(len(shares)), shares)
    axes.set(xlim=(-0.6, len(shares) - 0.4), ylim=(0, 1), ylabel="part of the attention\non entries")
    axes.legend(loc="upper center", ncols=4)
    figure.suptitle(title, **HEADING)
    return figure


def ties(heads, zeros, unequal, title):
    """How many scores are exactly 0, and how many queries two kernels then serve differently, by index heads.

    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.8))
    axes = figure.subplots()
    place = np.arange(len(heads))
    looks = {"edgecolor": INK, "linewidth": 0.5}
    first = axes.bar(place - 0.2, zeros, 0.38, color=COLOURS["masked"], label="entries with score exactly 0", **looks)
    words = "queries that two kernels serve differently"
    second = axes.bar(place + 0.2, unequal, 0.38, color=COLOURS["key"], hatch="//", label=words, **looks)
    for bars in (first, second):
        axes.bar_label(bars, fmt="{:.2f}", padding=2, fontsize=8)
    axes.set_xticks(place, heads)
    axes.set(xlabel="index heads U", ylabel="share", ylim=(0, 1.15), title=title)
    axes.legend(loc="upper right")
    return figure
