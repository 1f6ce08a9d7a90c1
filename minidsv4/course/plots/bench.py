"""Picture of `python -m minidsv4 bench --curve`: what a length costs."""

import itertools

import numpy as np
from matplotlib.figure import Figure

from minidsv4.course.plots.style import COMPRESSED, HEADING, KEY, QUERY, SINK


def bench_curves(points):
    """What a length costs: time a token of reading and of writing, and memory, all on log scales.

    points   minidsv4.bench.rows.Point of one or more sizes
    returns  a matplotlib Figure of three panels; a line style a size
    """
    figure = Figure(figsize=(7.2, 2.8))
    panels = {
        "Reading, µs a token": [("prefill", 1e6, QUERY)],
        "Writing, ms a token": [("decode", 1e3, KEY)],
        "Beside the weights, MB": [("peak", 1e-6, SINK), ("cache", 1e-6, COMPRESSED)],
    }
    words = {"peak": "work, at most", "cache": "cache"}
    for axes, (title, curves) in zip(figure.subplots(1, 3), panels.items()):
        for (name, scale, colour), (size, own, style) in itertools.product(curves, _by_size(points)):
            values = [scale * getattr(point, name) for point in own]
            n_tokens = [point.n_tokens / 1000 for point in own]
            label = size if len(curves) == 1 else words[name] if style == "-" else None
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
