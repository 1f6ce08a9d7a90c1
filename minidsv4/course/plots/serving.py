"""Pictures of notebook 16: stored prefixes, the cone that is computed again, texts side by side, killed texts."""

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from minidsv4.course.plots.style import COLOURS, INK

WRONG = "#A6192E"
RIGHT = COLOURS["compressed"]


def storage_against_work(points, title):
    """Tokens that a hit computes again, by the gigabytes that are stored.

    points   {name of a strategy: (gigabytes, tokens)}, from little stored to much
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.8))
    axes = figure.subplots()
    stored = np.array([point[0] for point in points.values()])
    again = np.array([point[1] for point in points.values()])
    axes.plot(stored, again, ":o", color=COLOURS["compressed"])
    for name, x, y in zip(points, stored, again):
        axes.annotate(name, (x, y), (5, 5), textcoords="offset points", color=INK)
    axes.set(xscale="log", yscale="log", xlabel="GB stored of one prefix", ylabel="tokens computed again", title=title)
    axes.set_xlim(0.9 * stored.min(), 1.7 * stored.max())
    axes.set_ylim(0.7 * again.min(), 2.2 * again.max())
    ticks = [0.5, 1, 2, 4]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    return figure


def cone(right, kept, overwritten, title):
    """Which streams are right when the last tokens run again without a window, and the error by their number.

    right        booleans [layers + 1, tokens]: the inputs, then the streams after each layer
    kept         largest error of the last logits by number of tokens, from 1, over stored entries; 1e-12 at least
    overwritten  the same where entries that are pooled anew take the place of stored ones
    returns      a matplotlib Figure
    """
    n_rows, n_tokens = right.shape
    figure = Figure(figsize=(6.0, 2.9))
    left, other = figure.subplots(1, 2, width_ratios=(1.15, 1))
    edges = np.arange(-n_tokens, 1) - 0.5
    left.pcolormesh(edges, np.arange(n_rows + 1) - 0.5, right.astype(float), cmap=ListedColormap([WRONG, RIGHT]))
    left.set_yticks(range(n_rows), ["input", *(f"layer {layer}" for layer in range(n_rows - 1))])
    left.set(xlabel="token, counted from the end of the prefix")
    left.set_title("streams: right (green), wrong (red)", fontweight="normal")
    counts = np.arange(1, len(kept) + 1)
    floor = 1e-12  # below it the processor decides
    other.semilogy(counts, np.maximum(kept, floor), "-", color=RIGHT, label="stored entries kept")
    other.semilogy(counts, np.maximum(overwritten, floor), "--", color=WRONG, label="overwritten")
    other.axvline(n_tokens, color=INK, linestyle=":", linewidth=1)
    other.set(xlabel="tokens computed again", ylabel="error of the last logits", ylim=(floor / 4, 30))
    other.legend(loc="lower left", fontsize=8)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure


def texts_by_step(states, title):
    """What each text does at each step.

    states   {name of a text: numbers, one a step: 0 not there, 1 waits, 2 is read, 3 is written}
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.3))
    axes = figure.subplots()
    colours = ListedColormap(["white", "#D9D9D9", COLOURS["query"], COLOURS["compressed"]])
    rows = np.array(list(states.values()))
    axes.pcolormesh(np.arange(rows.shape[1] + 1) + 0.5, np.arange(len(rows) + 1), rows, cmap=colours, vmin=0, vmax=3)
    axes.hlines(range(1, len(rows)), 0.5, rows.shape[1] + 0.5, color="white", linewidth=2)
    axes.set_yticks(np.arange(len(rows)) + 0.5, states)
    axes.invert_yaxis()
    axes.set(xlabel="step (grey: waits, blue: is read, green: is written)", title=title)
    return figure


def found_needles(entries, found, border, title):
    """For each query its best entry, and whether a server finds it.

    entries  the entry that scores best for each query of the last chunk
    found    whether the server reads it
    border   the first entry of the last chunk
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.6))
    axes = figure.subplots()
    queries = np.arange(len(entries))
    axes.plot(queries[found], entries[found], "o", color=RIGHT, label="found")
    axes.plot(queries[~found], entries[~found], "x", color=WRONG, label="missed")
    axes.axhline(border - 0.5, color=INK, linestyle="--", linewidth=1)
    beside = {"transform": axes.get_yaxis_transform(), "va": "center", "linespacing": 1.8}
    axes.text(1.01, border - 0.5, "last chunk\nearlier", **beside)
    axes.set(xlabel="query of the last chunk", ylabel="its best entry", title=title)
    axes.legend(loc="upper left", ncols=2, fontsize=8)
    axes.set_ylim(-1, 1.35 * max(entries.max(), border))
    return figure


def lengths_of_texts(written, finished, expected, title):
    """Lengths of texts: as written, and as finished by a service that begins killed ones again.

    written   tokens of each text
    finished  the same of the texts that were finished
    expected  (lengths, probabilities) of the finished ones in closed form
    returns   a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.7))
    axes = figure.subplots()
    for lengths, label, line in ((written, "as the model writes", "-"), (finished, "begun again after kills", "--")):
        values, counts = np.unique(lengths, return_counts=True)
        colour = RIGHT if line == "-" else WRONG
        axes.step(values, np.cumsum(counts) / len(lengths), line, where="post", color=colour, label=label)
    values, shares = expected
    axes.step(values, np.cumsum(shares), ":", where="post", color=INK, label="closed form of the latter")
    axes.set(xlabel="length, tokens", ylabel="share of texts up to it", ylim=(0, 1.02), title=title)
    axes.legend(loc="lower right", fontsize=8)
    return figure
