"""Pictures of notebooks 01, 04 and lineage: rotated answers, masks, reach, and what forms of attention cost."""

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from minidsv4.course.plots.style import COLOURS, HEADING, INK, SEQUENTIAL


def moved_text(raw, back):
    """Notebook 01: one channel pair of an answer while the text moves, before and after it is turned back.

    raw, back  (places, 2) numpy arrays
    returns    a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 3.0))
    plane, curves = figure.subplots(1, 2, width_ratios=(1, 1.35))
    plane.plot(*raw.T, ".", linestyle="", color=COLOURS["key"])
    plane.plot(*back.T, "s", linestyle="", color=COLOURS["query"], markersize=9)
    edge = 1.3 * abs(raw).max()
    plane.set(aspect="equal", xlim=(-edge, edge), ylim=(-edge, edge), xlabel="first channel", ylabel="second channel")
    for channel, style in ((0, "-"), (1, "--")):
        curves.plot(raw[:, channel], color=COLOURS["key"], linestyle=style)
        curves.plot(back[:, channel], color=COLOURS["query"], linestyle=style)
    for x, colour, words in ((0.02, "key", "as summed"), (0.42, "query", "turned back")):
        curves.text(x, 0.99, words, color=COLOURS[colour], transform=curves.transAxes, va="top", fontweight="bold")
    labels = {"xlabel": "places the text was moved by", "ylabel": "first (solid), second (dashed)"}
    curves.set(ylim=(-edge, 1.25 * edge), **labels)
    title = "Move the text: an answer goes round, turned back it stands still"
    figure.suptitle(title, **HEADING)
    return figure


# Cells of a mask. The dark red beside the green is told apart by its lightness too.
MASK = {"masked: not there yet": "#D9D9D9", "past, but not read": "#A6192E", "attended": COLOURS["compressed"]}


def masks(layers):
    """Notebook 04: what each query attends to in recorded layers: tokens one by one above, entries below.

    layers   LayerRecords of one sequence, the first of a window-only layer; attended is a weight above 0 in any head
    returns  a matplotlib Figure, a column a layer; each entry lies over the tokens of its window
    """
    figure = Figure(figsize=(6.0, 4.4))
    grid = figure.subplots(2, len(layers), sharex=True, sharey=True)
    for layer, (tokens, entries) in zip(layers, grid.T, strict=True):
        near_TS, far_TC = (share_BTHS[0].sum(1).detach().numpy() > 0 for share_BTHS in layer.weights())
        n_tokens = len(near_TS)
        n_entries = far_TC.shape[1]
        _draw_mask(tokens, near_TS, 1 + np.arange(n_tokens))
        tokens.set_title(layer.kind.name if n_entries else "window only", fontweight="normal")
        tokens.set_xlabel("tokens s, one by one")
        if n_entries:
            ratio = layer.block.attn.compressor.ratio
            _draw_mask(entries, far_TC, layer.visible_T.numpy(), ratio)
            tokens.vlines(ratio * np.arange(1, n_entries), 0, n_tokens, color=INK, linestyle="--", linewidth=0.8)
            entries.set_xlabel(f"{n_entries} entries of {ratio} tokens")
    grid[0, 0].set(ylabel="query t", ylim=(n_tokens, 0))
    grid[0, 0].tick_params(labelbottom=True)
    grid[1, 1].set_ylabel("query t")
    grid[1, 1].tick_params(labelleft=True)
    grid[1, 0].set_axis_off()
    keys = [Patch(color=colour, label=words) for words, colour in reversed(MASK.items())]
    keys.append(Line2D([], [], color=INK, linestyle="--", linewidth=0.8, label="end of an entry's tokens"))
    grid[1, 0].legend(handles=keys, loc="center", bbox_to_anchor=(0.4, 0.5))
    title = "Each layer reads its newest tokens one by one, older ones as entries"
    figure.suptitle(title, **HEADING)
    return figure


def _draw_mask(axes, seen_TC, visible_T, ratio=1):
    """One mask in cells `ratio` tokens wide, a dashed line between entries."""
    n_tokens, n_entries = seen_TC.shape
    state_TC = (np.arange(n_entries) < visible_T[:, None]).astype(int) + seen_TC
    edges = ratio * np.arange(n_entries + 1)
    rows = np.arange(n_tokens + 1)
    colours = ListedColormap(list(MASK.values()))
    axes.pcolormesh(edges, rows, state_TC, cmap=colours, vmin=0, vmax=2, edgecolor="white", linewidth=0.15)
    if ratio > 1:
        axes.vlines(edges[1:-1], 0, n_tokens, color=INK, linestyle="--", linewidth=0.8)


def reach(maps, title):
    """Notebook 04: how strongly output t depends on token s, and where it does not at all.

    maps     title of a panel = sizes of gradients [T, S], numpy; exactly 0 where nothing is reached
    returns  a matplotlib Figure: reached on a logarithmic scale, past but out of reach red, future grey
    """
    figure = Figure(figsize=(6.0, 2.4))
    row = figure.subplots(1, len(maps), sharey=True)
    colours = ListedColormap(list(MASK.values())[:2])
    for axes, (words, size_TS) in zip(row, maps.items(), strict=True):
        past_TS = np.tri(len(size_TS))
        axes.pcolormesh(past_TS, cmap=colours, vmin=0, vmax=1, edgecolor="white", linewidth=0.15)
        strength_TS = np.ma.log10(np.ma.masked_equal(size_TS / size_TS.max(), 0))
        image = axes.pcolormesh(strength_TS, cmap=SEQUENTIAL, vmin=-2, vmax=0)
        axes.set_title(words, fontweight="normal")
        axes.set(xlabel="token s", aspect="equal")
    row[0].set(ylabel="output t", ylim=(len(size_TS), 0))
    figure.colorbar(image, ax=row, shrink=0.8, ticks=(-2, -1, 0), label="gradient, log10", extend="min")
    figure.suptitle(title, **HEADING)
    return figure


# Forms of attention by what they changed: name of the change = (forms, colour, marker).
LINEAGE = {
    "every token is read": (("MHA", "GQA8", "MQA"), "key", "o"),
    "one latent, every token is read": (("MLA",), "sink", "s"),
    "every token is scored, few are read": (("DSA",), "query", "^"),
    "entries instead of tokens": (("CSA", "HCA"), "compressed", "D"),
}


def lineage(points, title):
    """Notebook lineage: what forms of attention keep, and how much a query works.

    points   name of a form = (bytes a token and layer, 10^9 FLOPs a query and layer)
    returns  a matplotlib Figure, both axes logarithmic
    """
    figure = Figure(figsize=(6.0, 3.0))
    axes = figure.subplots()
    for words, (names, colour, marker) in LINEAGE.items():
        places = np.array([points[name] for name in names])
        axes.loglog(*places.T, marker, linestyle="", color=COLOURS[colour], markersize=7, label=words)
        for name, place in zip(names, places):
            axes.annotate(name, place, xytext=(0, 7), textcoords="offset points", ha="center")
    axes.set(xlim=(3, 2e5), ylim=(5e-4, 1500))
    axes.set(xlabel="bytes kept a token and layer (BF16)", ylabel="billion FLOPs a query and layer")
    axes.minorticks_off()
    axes.legend(loc="lower right", fontsize=8, ncols=2)
    figure.suptitle(title, **HEADING)
    return figure
