"""The style that every picture shares, and the map of the whole model.

Five colours have a fixed meaning everywhere: query blue, key orange, compressed green, sink purple, masked grey. They
are taken from Okabe and Ito's set for colour-blind readers and stand out from white by a contrast of 3:1 or more.
A map's title states where the reader is; `amber` is the lamp that lights that part.
"""

import itertools

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Patch, Polygon, Rectangle

COLOURS = {
    "query": "#0072B2",
    "key": "#D55E00",
    "compressed": "#009E73",
    "sink": "#B8609A",  # Okabe and Ito's purple, a little darker: theirs reaches 3.0:1 only just
    "masked": "#8C8C8C",
}
AMBER, AMBER_EDGE = "#FFD877", "#B36B00"
INK, PALE_INK, PAPER = "#222222", "#6E6E6E", "#F4F4F2"
SEQUENTIAL, DIVERGING = "cividis", "RdBu_r"
DPI = 160  # pixels an inch in a stored picture; it is shown at 100 an inch, so it stays sharp on fine screens

STYLE = {
    "axes.prop_cycle": matplotlib.cycler(color=list(COLOURS.values()), linestyle=["-", "--", "-.", ":", "-"]),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "figure.figsize": (6.0, 3.0),
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same letters
    "font.size": 9,
    "image.cmap": SEQUENTIAL,
    "legend.frameon": False,
    "savefig.bbox": None,
    "savefig.dpi": DPI,
    "svg.fonttype": "path",
    "svg.hashsalt": "minidsv4",
}


def use_style():
    """Make the shared style matplotlib's default for this process; the backend stays as it is."""
    matplotlib.rcdefaults()
    matplotlib.rcParams.update(STYLE)


# The map: three rows, each the close-up of a box in the row above. One unit is a tenth of an inch, (0, 0) bottom left.
# A box is (part, words, left, bottom, width, height, colour of its edge).
WIDTH, HEIGHT = 90, 60
PARTS = ("embedding", "streams", "attention", "compressor", "indexer", "cache", "experts", "mtp", "head")
QUERY, KEY, COMPRESSED, SINK = (COLOURS[name] for name in ("query", "key", "compressed", "sink"))
GREY = "#9A9A9A"

MODEL_BOXES = [
    ("embedding", "embedding", 6, 45.3, 9.4, 4.4, GREY),
    (None, "block 1\nwindow", 21, 45.3, 6.4, 4.4, GREY),
    (None, "block 2\nwindow", 28.6, 45.3, 6.4, 4.4, GREY),
    (None, "block 3\nCSA", 36.2, 45.3, 6.4, 4.4, GREY),
    (None, "block 4\nHCA", 43.8, 45.3, 6.4, 4.4, GREY),
    (None, "block L\nCSA", 53.4, 45.3, 6.4, 4.4, GREY),
    ("head", "collapse", 64.4, 45.3, 7.6, 4.4, GREY),
    ("head", "norm", 73.7, 45.3, 5, 4.4, GREY),
    ("head", "logits", 80.4, 45.3, 6.6, 4.4, GREY),
    ("mtp", "MTP block", 64.4, 51.9, 9.4, 3.6, GREY),
]
BLOCK_BOXES = [
    ("streams", "collapse", 8.5, 30.6, 7.6, 3.6, GREY),
    (None, "norm", 18, 30.6, 5, 3.6, GREY),
    ("attention", "attention\nwindow, CSA, HCA", 24.9, 30.1, 12.8, 4.6, GREY),
    ("streams", "mix, add", 38.5, 35.8, 7.6, 4.2, GREY),
    ("streams", "collapse", 49.5, 30.6, 7.6, 3.6, GREY),
    (None, "norm", 59, 30.6, 5, 3.6, GREY),
    ("experts", "experts\n1 shared, A of E", 65.9, 30.1, 12.8, 4.6, GREY),
    ("streams", "mix, add", 79.5, 35.8, 7.6, 4.2, GREY),
]
ATTENTION_BOXES = [
    ("attention", "query latent", 10, 20.6, 10.6, 3.4, QUERY),
    ("attention", "queries", 30, 20.6, 8.6, 3.4, QUERY),
    ("attention", "window entries", 10, 12.6, 12.4, 3.6, KEY),
    ("compressor", "compressor: M tokens, 1 entry", 24.6, 12.6, 20.4, 3.6, COMPRESSED),
    ("indexer", "indexer: top-k", 47.2, 12.6, 12, 3.6, COMPRESSED),
    ("attention", "attend", 65.4, 10.8, 8.4, 12.8, GREY),
    ("attention", "grouped\noutput", 77, 15.3, 8.2, 4.6, GREY),
]
CACHE_BOXES = [
    ("cache", "last W entries", 10, 3, 12.4, 3.8, KEY),
    ("cache", "tail state", 24.6, 3, 6.6, 3.8, COMPRESSED),
    ("cache", "CSA", 32.2, 3, 5.8, 3.8, COMPRESSED),
    ("cache", "HCA", 39.2, 3, 5.8, 3.8, COMPRESSED),
    ("cache", "indexer keys", 47.2, 3, 12, 3.8, COMPRESSED),
]
# An arrow is (colour, line style, points from start to head).
ARROWS = [
    (INK, "-", [(3.9, 47.5), (6, 47.5)]),
    (INK, "-", [(72, 47.5), (73.7, 47.5)]),
    (INK, "-", [(78.7, 47.5), (80.4, 47.5)]),
    (INK, "-", [(61.6, 48.9), (61.6, 53.7), (64.4, 53.7)]),
    (INK, "-", [(73.8, 53.7), (77, 53.7)]),
    (INK, "-", [(12.3, 36.4), (12.3, 34.2)]),
    (INK, "-", [(16.1, 32.4), (18, 32.4)]),
    (INK, "-", [(23, 32.4), (24.9, 32.4)]),
    (INK, "-", [(37.7, 32.4), (42.3, 32.4), (42.3, 35.8)]),
    (INK, "-", [(53.3, 36.4), (53.3, 34.2)]),
    (INK, "-", [(57.1, 32.4), (59, 32.4)]),
    (INK, "-", [(64, 32.4), (65.9, 32.4)]),
    (INK, "-", [(78.7, 32.4), (83.3, 32.4), (83.3, 35.8)]),
    (INK, "-", [(5.6, 22.3), (10, 22.3)]),
    (INK, "-", [(7.4, 22.3), (7.4, 17.8), (16.2, 17.8), (16.2, 16.2)]),
    (INK, "-", [(16.2, 17.8), (34.8, 17.8), (34.8, 16.2)]),
    (INK, "-", [(34.8, 17.8), (50.2, 17.8), (50.2, 16.2)]),
    (QUERY, "-", [(20.6, 22.3), (30, 22.3)]),
    (QUERY, "-", [(38.6, 22.3), (65.4, 22.3)]),
    (QUERY, "--", [(24.8, 22.3), (24.8, 19.2), (56.2, 19.2), (56.2, 16.2)]),
    (KEY, "-", [(16.2, 12.6), (16.2, 6.8)]),
    (COMPRESSED, "-", [(27.9, 12.6), (27.9, 6.8)]),
    (COMPRESSED, "-", [(35.1, 12.6), (35.1, 6.8)]),
    (COMPRESSED, "-", [(42.1, 12.6), (42.1, 6.8)]),
    (COMPRESSED, "-", [(50.2, 12.6), (50.2, 6.8)]),
    (COMPRESSED, "--", [(56.2, 6.8), (56.2, 12.6)]),
    (COMPRESSED, "--", [(59.2, 14.4), (65.4, 14.4)]),
    (KEY, "-", [(16.2, 3), (16.2, 1.2), (71.4, 1.2), (71.4, 10.8)]),
    (COMPRESSED, "-", [(42.1, 3), (42.1, 2), (68, 2), (68, 10.8)]),
    (COMPRESSED, "-", [(35.1, 3), (35.1, 2), (68, 2), (68, 10.8)]),
    (SINK, "-", [(69.6, 25.9), (69.6, 23.6)]),
    (INK, "-", [(73.8, 17.6), (77, 17.6)]),
    (INK, "-", [(85.2, 17.6), (87.4, 17.6)]),
]
# Words beside the boxes: (words, x, y, alignment, colour).
WORDS = [
    ("ids", 2.6, 47.5, "center", INK),
    ("4 residual streams", 18.2, 50.6, "center", INK),
    ("...", 51.8, 47.5, "center", INK),
    ("drafts a token", 77.5, 53.7, "left", INK),
    ("One block", 2.8, 37.9, "left", PALE_INK),
    ("Attention", 2.8, 25.2, "left", PALE_INK),
    ("one x", 14.6, 35.2, "center", PALE_INK),
    ("x", 4.6, 22.3, "center", INK),
    ("picks", 62.3, 15.3, "center", COMPRESSED),
    ("sink", 70.4, 25.2, "left", SINK),
    ("Cache", 2.8, 4.9, "left", PALE_INK),
    ("entries", 72.3, 5, "left", PALE_INK),
]


def map_of_model(lit=None):
    """The whole model in three rows (model, one block, attention above its cache), with one part lit.

    lit      one of PARTS, or None for the plain map
    returns  a matplotlib Figure, 9 x 6 inches
    raises   ValueError for a part that the map does not have
    """
    if lit not in (None, *PARTS):
        raise ValueError(f"lit={lit!r} is not on the map: it should be None or one of {', '.join(PARTS)}")
    figure = Figure(figsize=(WIDTH / 10, HEIGHT / 10), layout="none")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, HEIGHT), aspect="equal")
    axes.set_axis_off()
    title = f"You are here: {lit}" if lit else "DeepSeek-V4: four streams, and every block reads them twice"
    axes.text(2.8, 57.6, title, fontsize=12, fontweight="bold", va="center", color=INK)
    _draw_panels(axes)
    _draw_streams(axes, lit)
    for box in MODEL_BOXES + BLOCK_BOXES + ATTENTION_BOXES + CACHE_BOXES:
        _draw_box(axes, *box, lit)
    for colour, style, points in ARROWS:
        _draw_arrow(axes, points, colour, style)
    for words, x, y, align, colour in WORDS:
        heavy = "bold" if words in ("One block", "Attention", "Cache") else "normal"
        axes.text(x, y, words, ha=align, va="center", fontsize=8, color=colour, fontweight=heavy)
    return figure


def _draw_panels(axes):
    """The close-ups' frames, each joined to the box that it enlarges."""
    for bottom, top, (left, right, foot) in ((28.6, 41.2, (36.2, 42.6, 45.3)), (0, 26.8, (24.9, 37.7, 30.1))):
        corners = [(left, foot), (right, foot), (88.4, top), (1.6, top)]
        axes.add_patch(Polygon(corners, facecolor="#E9E9E6", edgecolor="none", zorder=0))
        axes.add_patch(Rectangle((1.6, bottom), 86.8, top - bottom, facecolor=PAPER, edgecolor="none", zorder=0))
    axes.add_patch(Rectangle((2.2, 2.5), 57.8, 4.8, facecolor="#E2E2DE", edgecolor="none", zorder=0))


def _draw_streams(axes, lit):
    """The four parallel lines that run through the model and through the block."""
    for left, right, middle in ((15.4, 64.4, 47.5), (10.2, 88.4, 37.9)):
        for n in range(4):
            y = middle + (n - 1.5) * 0.95
            style = {"color": AMBER_EDGE, "linewidth": 2.2} if lit == "streams" else {"color": GREY, "linewidth": 1.2}
            axes.plot((left, right), (y, y), zorder=1, linestyle="-", **style)


def _draw_box(axes, part, words, left, bottom, width, height, colour, lit):
    """One box with its words, amber where its part is lit."""
    on = part is not None and part == lit
    style = {"facecolor": AMBER, "edgecolor": AMBER_EDGE, "linewidth": 2} if on else {"facecolor": "white"}
    style = {"edgecolor": colour, "linewidth": 1.2, "zorder": 3} | style
    axes.add_patch(FancyBboxPatch((left, bottom), width, height, boxstyle="round,pad=0,rounding_size=0.7", **style))
    weight = "bold" if on else "normal"
    centre = left + width / 2, bottom + height / 2
    axes.text(*centre, words, ha="center", va="center", fontsize=8, color=INK, fontweight=weight, zorder=4)


def _draw_arrow(axes, points, colour, style):
    """A line through the points, with a head at the last."""
    xs, ys = zip(*points, strict=True)
    axes.plot(xs, ys, color=colour, linestyle=style, linewidth=1.2, zorder=2)
    # The head's own shaft is a hundredth of the last stretch, so that it covers no dashes.
    start = tuple(head + (tail - head) / 100 for tail, head in zip(points[-2], points[-1], strict=True))
    arrow = {"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 9, "linewidth": 0.8}
    axes.annotate("", xy=points[-1], xytext=start, arrowprops=arrow, zorder=2)


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
    figure.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
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
        n_tokens, n_entries = len(near_TS), far_TC.shape[1]
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
    figure.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
    return figure


def _draw_mask(axes, seen_TC, visible_T, ratio=1):
    """One mask in cells `ratio` tokens wide, a dashed line between entries."""
    n_tokens, n_entries = seen_TC.shape
    state_TC = (np.arange(n_entries) < visible_T[:, None]).astype(int) + seen_TC
    edges, rows = ratio * np.arange(n_entries + 1), np.arange(n_tokens + 1)
    colours = ListedColormap(list(MASK.values()))
    axes.pcolormesh(edges, rows, state_TC, cmap=colours, vmin=0, vmax=2, edgecolor="white", linewidth=0.15)
    if ratio > 1:
        axes.vlines(edges[1:-1], 0, n_tokens, color=INK, linestyle="--", linewidth=0.8)


def cut_row(edges, entries, fetched):
    """Notebook 14: what each rank but the first fetches from before its first token, strip by strip.

    edges    positions where ranks begin, and the end of the row
    entries  [(name, tokens per entry)]: a strip of boxes each, named after the rank that makes the entry
    fetched  {name: [(rank, tokens of the window before, tokens next to the border)]}, in the order of the strips
    """
    figure, tall = Figure(figsize=(6.0, 3.8)), 0.7
    axes, labels, strip = figure.subplots(), ["tokens"], 1
    _draw_boxes(axes, list(itertools.pairwise(edges)), range(len(edges) - 1), 0, tall)
    for name, rows in fetched.items():
        if name in entries:
            stops = range(entries[name], edges[-1] + 1, entries[name])
            owners = [sum(stop > edge for edge in edges[1:-1]) for stop in stops]
            _draw_boxes(axes, [(stop - entries[name], stop) for stop in stops], owners, strip, tall)
            labels.append(f"{name}: entries")
            strip += 1
        for rank, n_before, n_next in rows:
            start, colour = edges[rank], KEY if name not in entries else COMPRESSED
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
    figure.legend(handles=keys, loc="outside lower center", ncols=4, fontsize=7.5, handlelength=1.4, columnspacing=1.0)
    return figure


def _draw_boxes(axes, spans, owners, strip, tall):
    """A box for each stretch of the row, with the rank it belongs to."""
    for (left, right), owner in zip(spans, owners):
        axes.barh(strip, right - left, tall, left=left, color="white", edgecolor=INK, linewidth=0.8)
        words = axes.text((left + right) / 2, strip, f"rank {owner}", ha="center", va="center", fontsize=7)
        words.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.6})


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
    figure.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
    return figure


def pooled_tokens(csa, hca):
    """Notebook 02: what share of each entry its tokens have, with overlap (left) and without.

    csa, hca  (entries, slots) numpy arrays; CSA's first half of the slots is the window before
    returns   a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 3.0))
    panels = figure.subplots(1, 2)
    halves = ((csa, csa.shape[1] // 2, "CSA: own window and the one before"), (hca, 0, "HCA: own window only"))
    for axes, (share, overlap, words) in zip(panels, halves):
        n_entries, step = len(share), share.shape[1] - overlap
        table = np.full((n_entries, n_entries * step), np.nan)  # not pooled: nothing is drawn
        for entry in range(n_entries):
            first = entry * step - overlap
            table[entry, max(0, first) : first + share.shape[1]] = share[entry, max(0, -first) :]
        drawn = axes.pcolormesh(table, vmin=0, vmax=1)
        axes.vlines(range(step, n_entries * step, step), 0, n_entries, color=INK, linestyle="--", linewidth=0.6)
        axes.set(xlabel="token", ylabel="entry", ylim=(n_entries, 0), facecolor="#E4E4E4")
        axes.set(yticks=[entry + 0.5 for entry in range(n_entries)], yticklabels=range(n_entries))
        axes.set_title(words, fontweight="normal", fontsize=9)
    figure.colorbar(drawn, ax=panels, label="share of the entry")
    title = "With overlap each token feeds two entries; entry 0 has its own four only"
    figure.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
    return figure


def cache_growth(reports):
    """Notebook 05: the bytes of a cache, kind by kind, after each token.

    reports  what Cache.report() said after 1, 2, ... tokens
    returns  a matplotlib Figure of stacked steps
    """
    colours = {"window": COLOURS["key"], "CSA entries": COLOURS["compressed"], "indexer keys": "#7FCEB5"}
    colours |= {"HCA entries": "#005C43", "tail state": COLOURS["masked"]}  # a lighter and a darker green
    figure = Figure(figsize=(6.0, 3.0))
    axes, below = figure.subplots(), np.zeros(len(reports))
    edges = np.arange(len(reports) + 1) + 0.5
    for kind, colour in colours.items():
        above = below + [report[kind] / 1000 for report in reports]
        axes.stairs(above, edges, baseline=below, fill=True, color=colour, label=kind)
        below = above
    axes.stairs(below, edges, baseline=None, color=INK, linewidth=0.8)
    axes.set(xlabel="tokens taken in", xticks=range(4, len(reports) + 1, 4), xlim=(0.5, len(reports) + 0.5))
    axes.set(ylabel="cache, kB", ylim=(0, 1.45 * below.max()))
    axes.legend(loc="upper left", ncols=3, reverse=True)
    axes.set_title("The raw tail saws, the window fills up, only entries keep growing")
    return figure


def streams_through_depth(flows):
    """What 64 layers do, three panels on log scales: signal, gradient and the mix's gain, a thin line a seed.

    flows  {kind: [minidsv4.experiments.streams.Flow of each seed]}
    """
    styles = {"HC": ("key", "-"), "mHC": ("compressed", "-"), "residual": ("masked", "--")}
    panels = {
        "Signal": ("RMS of the streams", lambda flow: flow.signal),
        "Gradient": ("RMS over that at the end", lambda flow: flow.gradient / flow.gradient[-1]),
        "Gain of the mixes": ("largest factor", lambda flow: flow.forward),
    }
    figure = Figure(figsize=(6.0, 3.0))
    for axes, (title, (unit, values)) in zip(figure.subplots(1, 3), panels.items()):
        for kind, (colour, line) in styles.items():
            for number, flow in enumerate(flows[kind]):
                depth = np.arange(len(flow.signal)) / 2
                label = kind if number == 0 else None
                style = {"linewidth": 1.0 if kind == "HC" else 1.4, "linestyle": line, "label": label}
                axes.plot(depth, values(flow).numpy(), color=COLOURS[colour], **style)
        axes.set(yscale="log", xlabel="layer", ylabel=unit, xticks=(0, 32, 64))
        axes.set_title(title, fontweight="normal")
    figure.axes[1].legend(loc="upper right")
    wild, tame = (max(flow.forward.max().item() for flow in flows[kind]) for kind in ("HC", "mHC"))
    title = f"64 layers, {len(flows['HC'])} seeds: HC's mixes gain up to {wild:,.0f}, mHC's {tame:.2f}"
    figure.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
    return figure


def bias_rule(without, with_rule, bias_TE):
    """MaxVio step by step without and with the bias rule, and the biases that the rule moved.

    without, with_rule  MaxVio of each step
    bias_TE             biases after each step, one column an expert
    """
    figure = Figure(figsize=(6.0, 3.0))
    left, right = figure.subplots(1, 2)
    left.plot(without, color=COLOURS["masked"], linestyle="--", label="no rule")
    left.plot(with_rule, color=COLOURS["compressed"], linestyle="-", label="bias rule")
    left.set(xlabel="step", ylabel="MaxVio", ylim=(0, None))
    left.set_title("The fullest expert's overload", fontweight="normal")
    left.legend(loc="center right")
    right.plot(bias_TE, color=COLOURS["query"], linestyle="-", linewidth=1)
    right.set(xlabel="step", ylabel="bias, in units of the score")
    right.set_title(f"The {bias_TE.shape[1]} biases that did it", fontweight="normal")
    title = "Each bias follows its expert's load, until the loads are even"
    figure.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
    return figure


def newton_schulz(axes, values):
    """Singular values through the steps of eq. (28), one line a start, log scale.

    values  numpy array (steps + 1, starts); the last two steps are the exact ones
    """
    steps, last = np.arange(len(values)), len(values) - 1
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


def _draw_stages(axes, kinds):
    """Shade the steps of each stage of training; kinds names the attention of every step."""
    start = 0
    for kind, steps in itertools.groupby(kinds):
        stop = start + len(list(steps))
        axes.axvspan(start, stop, color=COLOURS[STAGE_COLOURS[kind]], alpha=0.15, linewidth=0)
        axes.annotate(kind, ((start + stop) / 2, 1), (0, 2), xycoords=("data", "axes fraction"), ha="center", **_ABOVE)
        start = stop


_ABOVE = dict(textcoords="offset points", fontsize=8, color=PALE_INK)


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
    figure.suptitle("Dense and short first, then the indexer alone, then sparse and long", **_HEADING)
    return figure


_HEADING = {"fontsize": 10, "fontweight": "bold", "x": 0.01, "ha": "left"}


def _changes(kinds):
    """The steps after which the kind of attention is another one."""
    return [step for step in range(1, len(kinds)) if kinds[step] != kinds[step - 1]]


def training_log(steps, title):
    """A run's log: losses, the indexers' loss, MaxVio and learning rate over all its steps, stages shaded.

    steps  records as `pretrain.read_log` gives them, the header left out
    """
    figure = Figure(figsize=(6.0, 4.2))
    kinds, number = [record["attention"] for record in steps], [record["step"] for record in steps]
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
    figure.suptitle(title, **_HEADING)
    return figure


def _smooth(values, restarts, share=0.9):
    """A running mean that forgets a tenth a step, and begins anew at the restarts."""
    pieces = [values[start:stop] for start, stop in itertools.pairwise([0, *restarts, len(values)])]
    return [
        mean
        for piece in pieces
        for mean in itertools.accumulate(piece, lambda mean, value: share * mean + (1 - share) * value)
    ]


def recall_in_4_bits(loud, found):
    """Notebook 03: the part of the right picks found, by loudness of 4 channels, in three ways.

    loud     how many times louder the 4 channels of the keys are, one a row of found
    found    numpy array (loud, seeds, ways): FP4 with both sides turned, FP4 as they are, one side turned
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 3.0))
    axes = figure.add_subplot()
    looks = (
        ("FP4 keys, Hadamard on both sides", "compressed", "o-"),
        ("FP4 keys as they are", "key", "s--"),
        ("Hadamard on one side, no rounding", "masked", "^:"),
    )
    for way, (name, colour, look) in enumerate(looks):
        share = found[:, :, way]
        axes.plot(loud, share.mean(1), look, color=COLOURS[colour], label=name)
        axes.fill_between(loud, share.min(1), share.max(1), color=COLOURS[colour], alpha=0.2)
    axes.set(xscale="log", xticks=loud, xticklabels=loud, ylim=(0, 1.02), ylabel="part of the right picks found")
    axes.set_xlabel("loudness of 4 of 128 channels, times the others")
    axes.set_title("Loud channels cost FP4 keys their picks; turned keys keep more")
    axes.minorticks_off()
    axes.legend(loc="center right", bbox_to_anchor=(1, 0.36))
    return figure


def mtp_shift(words):
    """Notebook 08: which tokens the model and its MTP block read at one place, and which they predict.

    words    six tokens as text; the place is that of the third
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.4))
    axes = figure.subplots()
    axes.set(xlim=(-0.6, len(words) - 0.4), ylim=(-1.5, 1.3))
    axes.set_axis_off()
    place, names = 2, {0: "i", 1: "i + 1", 2: "i + 2"}
    for x, word in enumerate(words):
        edge = {place + 1: COLOURS["key"], place + 2: COLOURS["compressed"]}.get(x, GREY)
        box = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": edge, "linewidth": 1.6}
        axes.text(x, 0, word, ha="center", va="center", family="DejaVu Sans Mono", bbox=box)
        axes.text(x, -0.42, names.get(x - place, ""), ha="center", va="center", color=PALE_INK, fontsize=8)
    for name, colour, reach, tail, above in (
        ("model", "key", 1, 0.25, 0.95),
        ("MTP block", "compressed", 2, -0.6, -1.25),
    ):
        bend = {"arrowstyle": "-|>", "connectionstyle": f"arc3,rad={-0.7 if reach == 1 else 0.7}", "linewidth": 1.6}
        ends = {"xytext": (place + reach - 1, tail), "xy": (place + reach, tail)}
        axes.annotate("", **ends, arrowprops=bend | {"color": COLOURS[colour]})
        reads = f"{name}: reads up to {names[reach - 1]}, predicts {names[reach]}"
        axes.text(place + reach - 0.5, above, reads, ha="center", va="center", color=COLOURS[colour])
    axes.set_title("At place i the MTP block looks one token further than the model")
    return figure


def drafting(rounds, gains):
    """Notebook 08: where drafts are kept, round by round, and what that gives a round.

    rounds   Round of each pass of the model, see figures.draft_rounds
    gains    {depth: (share of first drafts kept, tokens a round)} as counted
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 3.2))
    left, right = figure.subplots(1, 2, width_ratios=(1.55, 1))
    _draw_rounds(left, rounds)
    share = np.linspace(0, 1, 101)
    for depth, colour, style in ((4, "query", "-"), (2, "key", "--"), (1, "compressed", "-.")):
        expected = sum(share**place for place in range(depth + 1))
        right.plot(share, expected, style, color=COLOURS[colour], label=f"depth {depth}")
        right.plot(*gains[depth], "o", color=COLOURS[colour], markersize=6)
    right.set(xlabel="share of first drafts kept", ylabel="tokens a round", xlim=(0, 1.03), ylim=(1, 5.1))
    right.set_title("formula; dots: counted", fontweight="normal", fontsize=9)
    right.legend(loc="upper left")
    title = "A pass writes every draft that is right, and one token of the model's own"
    figure.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
    return figure


def _draw_rounds(axes, rounds):
    """A row a pass of the model: what it read again, drafts kept, its own token, drafts rejected."""
    marks = {name: ([], []) for name in ("read again", "draft kept", "the model's own", "draft rejected")}
    for row, one in enumerate(rounds):
        own = one.end + one.kept
        places = range(one.end - one.pending, one.end - 1), range(one.end, own), [own], range(own, one.end + one.depth)
        for (xs, ys), found in zip(marks.values(), places):
            xs += [place - rounds[0].end for place in found]
            ys += [row + 1 + 0.33 * (found is places[3])] * len(found)
    looks = (("masked", ".", 3), ("compressed", "s", 5), ("query", "o", 5), ("key", "x", 4))
    for (name, points), (colour, mark, size) in zip(marks.items(), looks):
        axes.plot(*points, mark, color=COLOURS[colour], markersize=size, label=name, linestyle="")
    axes.set(xlabel="place in the text", ylabel="pass of the model", ylim=(len(rounds) + 4.4, 0))
    axes.set_yticks(range(1, len(rounds) + 1, 2))
    axes.set_title(f"{len(rounds)} passes", fontweight="normal", fontsize=9)
    axes.legend(loc="lower left", ncols=2, columnspacing=0.8, handletextpad=0.2, borderaxespad=0.1)


BENCH_COLOURS = dict(zip(("prefill", "decode", "train", "memory", "cache"), COLOURS.values()))


def bench_ratios(rows):
    """How many times less the package takes than transformers: a bar a row of the bench, a panel a size.

    rows     minidsv4.bench.phases.Row; those without a value of transformers are left out
    returns  a matplotlib Figure; the thin line is the range of the rounds
    """
    compared = {}
    for row in rows:
        if row.ratio() is not None:
            compared.setdefault(row.size, []).append(row)
    longest, ratios = max(map(len, compared.values())), [row.ratio() for found in compared.values() for row in found]
    figure = Figure(figsize=(max(6.0, 4.8 * len(compared)), 1.3 + 0.24 * longest))
    for axes, (size, found) in zip(np.ravel(figure.subplots(1, len(compared))), compared.items()):
        for place, row in enumerate(found):
            low, high = row.spread()
            axes.barh(place, row.ratio() - 1, left=1, color=BENCH_COLOURS[row.phase], height=0.7)
            axes.plot((low, high), (place, place), color=INK, linestyle="-", linewidth=0.8)
            axes.text(max(1, high) * 1.06, place, f"{row.ratio():.3g}", va="center")
        names = [f"{row.phase}, {row.n_tokens:,} {row.way}".strip() for row in found]
        axes.set(xscale="log", yticks=range(len(found)), yticklabels=names, ylim=(len(found) - 0.4, -0.6))
        axes.set(
            xlabel="transformers / minidsv4",
            xlim=(None, 2 * max(row.spread()[1] for row in found)),
        )
        axes.xaxis.set_major_formatter("{x:g}")
        axes.axvline(1, color=INK, linestyle="-", linewidth=0.8)
        axes.set_title(f"size {size}", fontweight="normal")
    title = f"transformers takes {min(ratios):.2g} to {max(ratios):.2g} times the time or memory of minidsv4"
    figure.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
    return figure


def bench_curves(points):
    """What a length costs: time a token of reading and of writing, and memory, all on log scales.

    points   minidsv4.bench.curve.Point of one or more sizes
    returns  a matplotlib Figure of three panels; a line style a size
    """
    figure = Figure(figsize=(7.2, 2.8))
    panels = {
        "Reading, µs a token": [("prefill", 1e6, QUERY)],
        "Writing, ms a token": [("decode", 1e3, KEY)],
        "Above the weights, MB": [("peak", 1e-6, SINK), ("cache", 1e-6, COMPRESSED)],
    }
    for axes, (title, curves) in zip(figure.subplots(1, 3), panels.items()):
        for (name, scale, colour), (size, own, style) in itertools.product(curves, _by_size(points)):
            values, n_tokens = [scale * getattr(point, name) for point in own], [point.n_tokens / 1000 for point in own]
            label = size if len(curves) == 1 else name if style == "-" else None
            axes.plot(n_tokens, values, color=colour, marker=".", linestyle=style, label=label)
        axes.set(xscale="log", yscale="log", xlabel="thousand tokens")
        axes.set_title(title, fontweight="normal")
        low, high = np.log10(axes.get_ylim())
        axes.set_ylim(10 ** np.floor(low), 10 ** np.ceil(high + 0.35 * (high - low)))  # room for the legend
        axes.legend(fontsize=8, loc="upper left", handlelength=2.2)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda x, _: f"{x:,.10g}")
    size, own, _ = max(_by_size(points), key=lambda one: len(one[1]))
    names = "n_tokens", "prefill", "decode"
    longer, read, written = (getattr(own[-1], name) / getattr(own[0], name) for name in names)
    cost = f"a token costs {read:.2g} times as much to read, {written:.2g} to write"
    title = f"{longer:,.0f} times the text ({size}): {cost}"
    figure.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
    return figure


def _by_size(points):
    """(size, its points, a line style) of each size."""
    for size, style in zip(dict.fromkeys(point.size for point in points), itertools.cycle(("-", "--", ":"))):
        yield size, [point for point in points if point.size == size], style


# Notebook 13: the look of a stage, its colour and how strong it is.
STAGES = {
    **{"dispatch": ("key", 1.0), "linear1": ("query", 1.0), "activation": ("sink", 1.0)},
    **{"linear2": ("query", 0.55), "combine": ("compressed", 1.0)},
}
STAGE_WORDS = {"linear1": "linear 1", "linear2": "linear 2"}


def gantt(timelines, lanes, unit, title, words):
    """Notebook 13: what each lane does when, a panel a schedule.

    timelines  {name: minidsv4.cost.schedule.Timeline}
    lanes      {lane: its name on the left}, the first one on top
    unit       the time that is 1 on the axis
    words      {name: what stands at its end}
    returns    a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 1.1 + 0.85 * len(timelines)))
    panels, longest = figure.subplots(len(timelines), 1, sharex=True, squeeze=False)[:, 0], 0
    for axes, (name, timeline) in zip(panels, timelines.items()):
        for task, start, end in timeline.spans:
            colour, strength = STAGES[task.stage]
            place, long = list(lanes).index(task.lane), (end - start) / unit
            axes.barh(place, long, 0.8, start / unit, color=COLOURS[colour], alpha=strength, edgecolor="white", lw=0.2)
        axes.set(yticks=range(len(lanes)), yticklabels=lanes.values(), ylim=(len(lanes) - 0.4, -0.6))
        axes.set_title(name, fontweight="normal", fontsize=9, pad=2)
        axes.text(timeline.time / unit + 0.03, 1, words[name], va="center", fontsize=9)
        axes.tick_params(axis="y", length=0)
        longest = max(longest, timeline.time / unit)
    panels[-1].set(xlim=(0, 1.22 * longest), xlabel="time, both products together being 1")
    looks = [Patch(color=COLOURS[colour], alpha=strength) for colour, strength in STAGES.values()]
    figure.legend(looks, [STAGE_WORDS.get(stage, stage) for stage in STAGES], loc="outside lower center", ncols=5)
    figure.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
    return figure


def overlap_by_ratio(curves, chips, ratios, bounds):
    """Notebook 13: speed-up against rho, chips as dots; and each chip's FLOPs a byte against what models need.

    curves   {name: (rho, speed-up) numpy arrays}
    chips    {name: (rho, speed-up)} of one model
    ratios   {name: FLOP/s of FP8 over bytes/s of the link}
    bounds   {model: the ratio up to which its transfers can be hidden}
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 3.0))
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    for (name, (rho, gain)), colour, line in zip(curves.items(), ("compressed", "query", "masked"), ("-", "--", ":")):
        left.plot(rho, gain, color=COLOURS[colour], linestyle=line, label=name)
    left.plot(*zip(*chips.values()), "o", color=COLOURS["key"], markersize=5, label="8 waves, activation too")
    for name, (rho, gain) in chips.items():
        place, align = ((-6, -2), "right") if rho < 1 else ((6, -2), "left")
        left.annotate(name, (rho, gain), place, textcoords="offset points", fontsize=8, ha=align)
    left.set(xscale="log", xticks=(0.1, 0.2, 0.5, 1, 2, 4), xticklabels=("0.1", "0.2", "0.5", "1", "2", "4"))
    left.set(xlabel="rho: transfers over products", ylabel="speed-up over serial", xlim=(0.08, 5), ylim=(0.9, 2.65))
    left.minorticks_off()
    left.legend(loc="upper left", fontsize=7.5)
    places = range(len(ratios))
    right.barh(places, list(ratios.values()), color=COLOURS["masked"])
    right.set(
        yticks=places, yticklabels=ratios, xlabel="FLOP for each byte of the link", ylim=(-0.6, len(ratios) - 0.1)
    )
    for (name, bound), line in zip(bounds.items(), ("--", "-")):
        right.axvline(bound, ymax=0.93, color=COLOURS["compressed"], linestyle=line)
        right.text(bound, len(ratios) - 0.3, name, ha="center", fontsize=8, color=COLOURS["compressed"])
    title = "Most is gained at rho = 1, where the chip has 2 F FLOP for each byte"
    figure.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
    return figure


def gain_by_batch(gains, published):
    """Notebook 13: speed-ups by batch, split into overlap and overhead that went away, a panel a model.

    gains      {model: {tokens of a rank: minidsv4.cost.megamoe.Gain}}
    published  {model: {tokens: speed-up}}
    returns    a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 3.0))
    for axes, (model, by_batch) in zip(figure.subplots(1, len(gains), sharey=True), gains.items()):
        places, overlap = range(len(by_batch)), np.array([gain.overlap for gain in by_batch.values()])
        total = np.array([gain.speedup for gain in by_batch.values()])
        axes.bar(places, overlap - 1, 0.6, 1, color=COLOURS["compressed"], label="overlap")
        axes.bar(places, total - overlap, 0.6, overlap, color=COLOURS["masked"], label="less overhead")
        axes.plot(places, list(published[model].values()), "D", color=COLOURS["key"], markersize=5, label="published")
        axes.set(xticks=places, xticklabels=[f"{n:,}" for n in by_batch], xlabel="tokens of a rank", ylim=(1, 2.1))
        axes.set_title(model, fontweight="normal")
    figure.axes[0].set_ylabel("speed-up over serial")
    figure.axes[-1].legend(loc="upper right")
    title = "One token gains by fewer launches, many by overlap"
    figure.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
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
    figure.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
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
