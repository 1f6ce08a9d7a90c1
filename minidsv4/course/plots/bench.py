"""Pictures of `python -m minidsv4 bench`: ratios to transformers, and what a length costs."""

import itertools

import numpy as np
from matplotlib.figure import Figure

from minidsv4.course.plots.style import COLOURS, COMPRESSED, HEADING, INK, KEY, QUERY, SINK

BENCH_COLOURS = {
    "prefill": COLOURS["query"],
    "decode": COLOURS["key"],
    "train": COLOURS["compressed"],
    "memory": COLOURS["sink"],
    "cache": COLOURS["masked"],
}


def bench_ratios(rows):
    """How many times less the package takes than transformers: a bar a row of the bench, a panel a size.

    rows     minidsv4.bench.phases.Row; those without a value of transformers are left out
    returns  a matplotlib Figure; the thin line is the range of the rounds
    """
    compared = {}
    for row in rows:
        if row.ratio() is not None:
            compared.setdefault(row.size, []).append(row)
    longest = max(map(len, compared.values()))
    ratios = [row.ratio() for found in compared.values() for row in found]
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
    figure.suptitle(title, **HEADING)
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
            values = [scale * getattr(point, name) for point in own]
            n_tokens = [point.n_tokens / 1000 for point in own]
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
    figure.suptitle(title, **HEADING)
    return figure


def _by_size(points):
    """(size, its points, a line style) of each size."""
    for size, style in zip(dict.fromkeys(point.size for point in points), itertools.cycle(("-", "--", ":"))):
        yield size, [point for point in points if point.size == size], style
