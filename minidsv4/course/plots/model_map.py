"""The map of the whole model in three rows, with one part highlighted in amber.

Each row is the close-up of a box in the row above. One unit is a tenth of an inch, (0, 0) is bottom left.
"""

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon, Rectangle

from minidsv4.course.plots.style import AMBER, AMBER_EDGE, COMPRESSED, GREY, INK, KEY, PALE_INK, PAPER, QUERY, SINK

WIDTH = 90
HEIGHT = 60
PARTS = ("embedding", "streams", "attention", "compressor", "indexer", "cache", "experts", "mtp", "head")

# A box is (part, words, left, bottom, width, height, colour of its edge).
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
