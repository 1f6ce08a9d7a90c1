"""Pictures of notebook 11: FP4's numbers, errors by bits, what FP8 can hold, outliers, training for rounding."""

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from minidsv4.course.plots.style import COLOURS, HEADING, INK

LOST = "#F0B4B4"


def staircase(x, rounded, title):
    """What numbers become in FP4, beside what they are.

    x, rounded  numpy arrays
    returns     a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 3.0))
    axes = figure.subplots()
    axes.plot(x, x, color=COLOURS["masked"], linestyle="--", linewidth=1, label="the number itself")
    axes.plot(x, rounded, color=COLOURS["query"], linestyle="-", label="its FP4 number")
    axes.set(
        xlabel="number over scale",
        ylabel="in FP4",
        yticks=[y for y in np.unique(rounded) if y == round(y)],
        title=title,
    )
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.legend(loc="upper left")
    return figure


def error_by_bits(even, mxfp4, title):
    """Relative rounding error of a matrix by bits a number, log scale.

    even     {bits: error in percent} of even steps
    mxfp4    (bits, error in percent)
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.8))
    axes = figure.subplots()
    axes.plot(list(even), list(even.values()), "o-", color=COLOURS["query"], label="even steps, BF16 scale")
    axes.plot(*mxfp4, "D", color=COLOURS["key"], markersize=8, linestyle="", label="MXFP4, power of two as scale")
    axes.set(xlabel="bits a number, scale included", ylabel="error, % (log scale)", yscale="log", title=title)
    ticks = (0.5, 1, 2, 5, 10, 20, 50)
    axes.set_yticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.legend(loc="upper right")
    return figure


def survivors(gaps, values, kept, title):
    """Which FP4 numbers of the smaller scale FP8 holds, by how far the scales of a block lie apart.

    gaps     exponents of the ratio of scales, ascending
    values   FP4 numbers
    kept     numpy array (values, gaps) of 1 and 0
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.8))
    axes = figure.subplots()
    colours = ListedColormap([LOST, COLOURS["compressed"]])
    axes.pcolormesh(kept, cmap=colours, vmin=0, vmax=1, edgecolor="white", linewidth=1)
    axes.set_xticks(np.arange(len(gaps)) + 0.5, [f"$2^{{{gap}}}$" for gap in gaps])
    axes.set_yticks(np.arange(len(values)) + 0.5, [f"{value:g}" for value in values])
    axes.set(xlabel="largest scale over smallest scale in a block", ylabel="FP4 number", title=title)
    keys = [Patch(facecolor=COLOURS["compressed"], label="exact in FP8"), Patch(facecolor=LOST, label="changed")]
    figure.legend(handles=keys, loc="outside lower center", ncols=2)
    return figure


def kept_picks(times, found, title):
    """The part of the picks that FP4 keeps by the size of a planted outlier: a thin line a layer, a thick one for all.

    times    how many times larger one channel of the keys is
    found    {way: numpy array (times, layers)}, two ways
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.8))
    axes = figure.subplots()
    looks = zip(("compressed", "key"), ("-", "--"), ("o", "s"))
    for (way, shares), (colour, line, marker) in zip(found.items(), looks):
        look = {"color": COLOURS[colour], "linestyle": line}
        axes.plot(times, 100 * shares, linewidth=0.8, alpha=0.5, **look)
        axes.plot(times, 100 * shares.mean(1), marker=marker, label=way, **look)
    axes.set_xscale("log", base=2)
    axes.set_xticks(times, labels=[f"{value:g}" for value in times])
    axes.set(xlabel="one channel of the keys is so many times larger", ylabel="picks kept, %", title=title)
    axes.legend(loc="lower left")
    return figure


def learning_to_be_rounded(curves, title):
    """Error of a rounded matrix' product while its masters learn, a panel a format.

    curves   {name of the format: errors in percent, one a step from 0}
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.6))
    panels = figure.subplots(1, len(curves))
    for axes, (name, errors) in zip(panels, curves.items()):
        axes.axhline(errors[0], color=COLOURS["key"], linestyle="--", label="rounded afterwards")
        axes.plot(errors, color=COLOURS["compressed"], linestyle="-", label="learns with the rounding")
        axes.set(xlabel="step", ylim=(0, 1.5 * max(errors)))
        axes.set_title(name, fontweight="normal")
        axes.legend(loc="lower left", fontsize=8)
    panels[0].set_ylabel("error of the product, %")
    figure.suptitle(title, **HEADING)
    return figure


def cost_of_rounding(costs, title):
    """What rounding costs after training with it in view and without, a dot a seed.

    costs    {row: {way: list of numbers, one a seed}}, two ways
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.8))
    axes = figure.subplots()
    looks = {"rounded afterwards": ("key", "s", -0.13), "QAT": ("compressed", "o", 0.13)}
    for place, ways in enumerate(costs.values()):
        for way, values in ways.items():
            colour, marker, shift = looks[way]
            label = way if place == 0 else None
            heights = [place + shift] * len(values)
            axes.plot(values, heights, marker, color=COLOURS[colour], alpha=0.8, linestyle="", label=label)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(costs)), costs)
    axes.set(ylim=(len(costs) - 0.5, -0.6), title=title)
    axes.set_xlabel("more bits per byte than the unrounded model after as many steps, %")
    figure.legend(loc="outside lower center", ncols=2)
    return figure
