"""Drawings of a mechanism: each tensor a box with its name, what made it and its shape; arrows between them."""

from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from minidsv4.course.plots.style import COLOURS, HEADING, INK

LINE = 0.155  # inches from one line of words to the next


class Box(NamedTuple):
    """A tensor: its name, what made it, its shape, its place in a grid that begins at the top left, its colour."""

    name: str
    made: str
    shape: str
    column: float
    row: float
    colour: str = "masked"


def shapes(boxes, arrows, title, size=(6.0, 3.0), box=(1.2, 0.62)):
    """Boxes on a grid as large as their columns and rows ask for, joined by arrows.

    boxes    key = Box; colours are names in COLOURS
    arrows   pairs of keys, from and to: up or down in a column, else between the sides that face each other
    title    what one sees, in a sentence
    size     of the figure, inches; box: of each box
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=size, layout="none")
    height = size[1] - 0.3
    axes = figure.add_axes((0, 0, 1, height / size[1]), xlim=(0, size[0]), ylim=(height, 0))
    axes.set_axis_off()
    pitch = [
        (length - one - 0.2) / max(1, *(getattr(place, side) for place in boxes.values()))
        for length, one, side in ((size[0], box[0], "column"), (height, box[1], "row"))
    ]
    corners = {key: (0.1 + pitch[0] * one.column, 0.1 + pitch[1] * one.row) for key, one in boxes.items()}
    for start, end in arrows:
        _draw_arrow(axes, corners[start], corners[end], box)
    for key, one in boxes.items():
        _draw_box(axes, one, *corners[key], *box)
    figure.suptitle(title, y=1 - 0.06 / size[1], va="top", **HEADING)
    return figure


def _draw_box(axes, one, left, top, width, height):
    """A frame in the box's colour, and its words in up to three lines."""
    look = {"boxstyle": "round,pad=0,rounding_size=0.06", "edgecolor": COLOURS[one.colour], "linewidth": 1.6}
    axes.add_patch(FancyBboxPatch((left, top), width, height, facecolor="white", zorder=3, **look))
    lines = [(one.name, "bold"), (one.made, "normal"), (one.shape, "normal")]
    lines = [line for line in lines if line[0]]
    for number, (words, weight) in enumerate(lines):
        y = top + height / 2 + LINE * (number - (len(lines) - 1) / 2)
        family = "DejaVu Sans Mono" if words == one.shape else "DejaVu Sans"
        look = {"ha": "center", "va": "center", "fontsize": 8, "fontweight": weight, "family": family}
        axes.text(left + width / 2, y, words, color=INK, zorder=4, **look)


def _draw_arrow(axes, start, end, box):
    """From the edge of one box to the edge of another."""
    width, height = box
    if start[0] == end[0]:
        down = end[1] > start[1]
        tail = (start[0] + width / 2, start[1] + height * down)
        head = (end[0] + width / 2, end[1] + height * (not down))
    else:
        ahead = end[0] > start[0]
        tail = (start[0] + width * ahead, start[1] + height / 2)
        head = (end[0] + width * (not ahead), end[1] + height / 2)
    look = {"arrowstyle": "-|>", "color": INK, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 9, "linewidth": 1}
    axes.annotate("", xy=head, xytext=tail, arrowprops=look, zorder=2)
