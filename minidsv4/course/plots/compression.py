"""Pictures of notebooks 02, 03 and 05: tokens pooled into entries, picks by rounded keys, the bytes of a cache."""

import numpy as np
from matplotlib.figure import Figure

from minidsv4.course.plots.shapes import Box, shapes
from minidsv4.course.plots.style import COLOURS, HEADING, INK


def compressor_shapes(overlap=True):
    """Notebook 02: the tensors of a compressor, CSA's with overlap or HCA's without.

    returns  a matplotlib Figure
    """
    name, length, series, slots, gathered = ("HCA", "M'", "K", "M'", "one window")
    if overlap:
        name, length, series, slots, gathered = ("CSA", "M", "2K", "2M", "two windows")
    boxes = {
        "x": Box("x", "one vector a token", "T D", 0, 0.5),
        "values": Box("values", "wkv x", f"C {length} {series}", 1, 0, "compressed"),
        "gates": Box("gates", "wgate x", f"C {length} {series}", 1, 1, "query"),
        "slots": Box("values", gathered, f"C {slots} K", 2, 0, "compressed"),
        "shares": Box("shares", f"softmax over {slots}", f"C {slots} K", 2, 1, "query"),
        "pooled": Box("pooled", f"sum over {slots}", "C K", 3, 0, "compressed"),
        "entries": Box("entries", "normed, turned", "C K", 3, 1, "compressed"),
    }
    arrows = [("x", "values"), ("x", "gates"), ("values", "slots"), ("gates", "shares")]
    arrows += [("slots", "pooled"), ("shares", "pooled"), ("pooled", "entries")]
    title = f"{name}: T tokens become C = T / {length} entries, each pooled from {slots} slots"
    return shapes(boxes, arrows, title, size=(6.0, 2.1))


def pooled_tokens(csa, hca):
    """Notebook 02: what share of each entry its tokens have, with overlap (left) and without.

    csa, hca  (entries, slots) numpy arrays; CSA's first half of the slots is the window before
    returns   a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 3.0))
    panels = figure.subplots(1, 2)
    halves = ((csa, csa.shape[1] // 2, "CSA: own window and the one before"), (hca, 0, "HCA: own window only"))
    for axes, (share, overlap, words) in zip(panels, halves):
        n_entries = len(share)
        step = share.shape[1] - overlap
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
    figure.suptitle(title, **HEADING)
    return figure


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


def cache_growth(reports):
    """Notebook 05: the bytes of a cache, kind by kind, after each token.

    reports  what Cache.report() said after 1, 2, ... tokens
    returns  a matplotlib Figure of stacked steps
    """
    colours = {"window": COLOURS["key"], "CSA entries": COLOURS["compressed"], "indexer keys": "#7FCEB5"}
    colours |= {"HCA entries": "#005C43", "tail state": COLOURS["masked"]}  # a lighter and a darker green
    figure = Figure(figsize=(6.0, 3.0))
    axes = figure.subplots()
    below = np.zeros(len(reports))
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


def cache_against_length(n, panels):
    """Notebook 05: the bytes of one sequence's cache against its length, by kind of attention.

    n        numbers of tokens, ascending
    panels   title of a panel = name of an attention = its bytes, as many as n has numbers
    returns  a matplotlib Figure, one panel beside the other, both axes logarithmic
    """
    figure = Figure(figsize=(6.0, 3.0))
    row = figure.subplots(1, len(panels), sharey=True)
    looks = (("key", "-"), ("query", "--"), ("sink", "-."), ("compressed", "-"))
    for axes, (title, curves) in zip(row, panels.items()):
        for (kind, n_bytes), (colour, style) in zip(curves.items(), looks):
            gigabytes = np.asarray(n_bytes) / 1e9
            axes.loglog(n, gigabytes, style, color=COLOURS[colour], label=kind, linewidth=2)
            last = f" {gigabytes[-1]:,.{0 if gigabytes[-1] > 100 else 1}f}"
            axes.annotate(last, (n[-1], gigabytes[-1]), va="center", fontsize=8)
        axes.set_title(title, fontweight="normal")
        axes.set(xlabel="tokens", ylim=(1e-3, 2e4), xlim=(n[0], 8 * n[-1]))
    row[0].set_ylabel("cache of one sequence, GB")
    row[0].legend(loc="upper left")
    figure.suptitle("A million tokens: a fiftieth of GQA8", **HEADING)
    return figure
