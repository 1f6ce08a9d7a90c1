"""Pictures of notebooks 01, 04 and lineage: rotated answers, masks, reach, and what forms of attention cost."""

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from minidsv4.course.plots.shapes import Box, shapes
from minidsv4.course.plots.style import COLOURS, HEADING, INK, SEQUENTIAL


def window_attention_shapes():
    """Notebook 01: the tensors of window attention, from x to the output.

    returns  a matplotlib Figure
    """
    boxes = {
        "x": Box("x", "one vector a token", "T D", 0, 0.5),
        "latent": Box("query latent", "wq_a x, normed", "T Q", 1, 0, "query"),
        "queries": Box("queries", "normed, turned", "T H K", 2, 0, "query"),
        "weights": Box("weights", "softmax with sink", "T H S", 3, 0, "sink"),
        "new": Box("new entries", "normed, turned", "T K", 1, 1, "key"),
        "window": Box("window", "the cache's, and new", "S K", 2, 1, "key"),
        "answers": Box("answers", "weighted sums", "T H K", 3, 1, "query"),
        "back": Box("answers", "turned back", "T H K", 3, 2, "query"),
        "groups": Box("groups", "wo_a, each its own", "T G O", 2, 2),
        "output": Box("output", "wo_b", "T D", 1, 2),
    }
    arrows = [("x", "latent"), ("latent", "queries"), ("queries", "weights"), ("x", "new"), ("new", "window")]
    arrows += [("window", "weights"), ("window", "answers"), ("weights", "answers"), ("answers", "back")]
    arrows += [("back", "groups"), ("groups", "output")]
    title = "One entry a token meets H queries: as their key, and as their value"
    return shapes(boxes, arrows, title, box=(1.3, 0.62))


def answers_of_heads(entry_SK, without_HK, with_HK, title):
    """Notebook 01: four entries in a plane, the answers of heads without a sink, and with one.

    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 3.0))
    axes = figure.subplots()
    axes.fill(*entry_SK.T, color="#EEEEEA", zorder=0)
    axes.plot(*entry_SK.T, "o", linestyle="", color=COLOURS["key"], markersize=12, label="entries, for all heads")
    axes.plot(*without_HK.T, "s", linestyle="", color=COLOURS["query"], markersize=9, label="answers, no sink")
    axes.plot(*with_HK.T, "D", linestyle="", color=COLOURS["sink"], markersize=6, label="answers with a sink")
    for h, (start, end) in enumerate(zip(without_HK, with_HK, strict=True)):
        axes.plot(*np.array([start, end]).T, ":", color=COLOURS["sink"], zorder=1)
        outwards = 17 * start / np.linalg.norm(start)
        where = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": 8}
        axes.annotate(f"{h + 1}", start, outwards, **where)
    axes.set(aspect="equal", xlim=(-1.3, 3.6), ylim=(-1.25, 1.25), xlabel="channel 1", ylabel="channel 2", title=title)
    axes.legend(loc="center right")
    return figure


def attention_map(weight_TS, texts, title):
    """Notebook 01: what each token of a text takes from the tokens up to it, in one head.

    weight_TS  numpy; texts: those of the tokens
    returns    a matplotlib Figure
    """
    words = [text.replace("\n", "↵").replace(" ", "·") for text in texts]
    figure = Figure(figsize=(6.0, 4.6))
    axes = figure.subplots()
    drawn = axes.pcolormesh(np.ma.masked_equal(weight_TS, 0), vmin=0)
    look = {"fontsize": 8, "family": "DejaVu Sans Mono"}
    axes.set_xticks(np.arange(len(words)) + 0.5, words, rotation=90, **look)
    axes.set_yticks(np.arange(len(words)) + 0.5, words, **look)
    axes.set(xlabel="token looked at", ylabel="token that looks", ylim=(len(words), 0), facecolor="#DDDDDD")
    axes.set_title(title)
    figure.colorbar(drawn, ax=axes, label="weight")
    return figure


def shares_of_attention(layers, shares, title):
    """Notebook 01: what window, entries and sink take in each layer, in parts of all attention.

    layers   a name for each layer
    shares   "window", "entries" and "sink" = numpy [L]
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.6))
    axes = figure.subplots()
    left = np.zeros(len(layers))
    looks = {"window": ("key", ""), "entries": ("compressed", ".."), "sink": ("sink", "//")}
    for part, (colour, hatch) in looks.items():
        look = {"color": COLOURS[colour], "hatch": hatch, "edgecolor": "white", "label": part}
        axes.barh(layers, shares[part], left=left, **look)
        left = left + shares[part]
    axes.set(xlabel="share of attention, mean of heads and tokens", xlim=(0, 1), title=title)
    axes.invert_yaxis()
    figure.legend(loc="outside right center")
    return figure


def score_by_distance(curves, place, title):
    """Notebook 01: parts of a score against the distance of key and query.

    curves   name = scores [places, places], numpy: of a query at each place with a key at each place
    place    that of the query whose scores are drawn as dots; the lines are of the last place
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.8))
    axes = figure.subplots()
    looks = (("masked", "-", "o"), ("query", "-", "o"), ("key", ":", "s"))
    for (name, score_TS), (colour, style, marker) in zip(curves.items(), looks, strict=True):
        axes.plot(score_TS[-1, ::-1], color=COLOURS[colour], linestyle=style, label=name)
        dots = {"linestyle": "", "markersize": 4, "color": COLOURS[colour]}
        axes.plot(score_TS[place, place::-1], marker, **dots)
    axes.set(ylim=(-1.1, 2.1), yticks=(-1, 0, 1), title=title)
    axes.set(xlabel="distance between query and key, tokens", ylabel="part of the score")
    axes.legend(loc="upper left", ncols=2)
    return figure


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


def visibility_shapes():
    """Notebook 04: how positions and picks become the mask of the attention's scores.

    returns  a matplotlib Figure
    """
    boxes = {
        "positions": Box("positions", "of the queries", "T", 0, 0.5),
        "picks": Box("picks", "CSA only", "T P", 0, 2, "compressed"),
        "tokens": Box("token map", "the last W", "T S", 1, 0, "key"),
        "finished": Box("finished", "below (t+1) / M", "T C", 1, 1, "compressed"),
        "entries": Box("entry map", "finished, picked", "T C", 2, 1.5, "compressed"),
        "map": Box("map", "side by side", "T S+C", 3, 0.75, "query"),
    }
    arrows = [("positions", "tokens"), ("positions", "finished"), ("finished", "entries"), ("picks", "entries")]
    arrows += [("tokens", "map"), ("entries", "map")]
    title = "Positions and picks say which of the S + C scores of a query count"
    return shapes(boxes, arrows, title, size=(6.0, 2.6), box=(1.28, 0.62))


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
            above = -17 if name in ("CSA", "DSA") else 7  # so that no name covers another
            axes.annotate(name, place, xytext=(0, above), textcoords="offset points", ha="center")
    axes.set(xlim=(3, 2e5), ylim=(5e-4, 1500))
    axes.set(xlabel="bytes kept a token and layer (BF16)", ylabel="billion FLOPs a query and layer")
    axes.minorticks_off()
    axes.legend(loc="lower right", fontsize=8, ncols=2)
    figure.suptitle(title, **HEADING)
    return figure
