"""Pictures of notebooks 02, 03 and 05: tokens pooled into entries, picks by rounded keys, the bytes of a cache."""

import numpy as np
from matplotlib.figure import Figure

from minidsv4.course.plots.shapes import Box, shapes
from minidsv4.course.plots.style import COLOURS, HEADING, INK

# Colours of what a cache keeps: the three kinds of compressed entries in three greens.
KINDS = {"window": COLOURS["key"], "CSA entries": COLOURS["compressed"], "indexer keys": "#7FCEB5"}
KINDS |= {"HCA entries": "#005C43", "tail state": COLOURS["masked"]}


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


def wave_and_entries(wave_T, entry_C, title):
    """Notebook 02: a wave of tokens, and the steps that its entries make.

    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.6))
    axes = figure.subplots()
    n_tokens = len(wave_T)
    edges = np.linspace(0, n_tokens, len(entry_C) + 1) - 0.5
    axes.plot(wave_T, "o:", color=COLOURS["key"], markersize=4, linewidth=0.8, label=f"{n_tokens} tokens")
    words = f"{len(entry_C)} entries"
    axes.stairs(entry_C, edges, baseline=None, color=COLOURS["compressed"], linewidth=2.2, label=words)
    axes.set(xlabel="token", ylabel="value in one channel", ylim=(-1.7, 2.2), title=title)
    axes.legend(loc="upper center", ncols=2)
    return figure


def pooled_tokens(panels, ratio, title):
    """Notebook 02: what share of each entry its tokens have.

    panels   words over a panel = shares [C, S], numpy; S is M slots, or 2 M where the window before is pooled as well
    ratio    M
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.8))
    row = figure.subplots(1, len(panels), sharey=True)
    for axes, (words, share_CS) in zip(row, panels.items(), strict=True):
        n_entries = len(share_CS)
        before = share_CS.shape[1] - ratio
        table = np.full((n_entries, before + n_entries * ratio), np.nan)  # not pooled: nothing is drawn
        for entry in range(n_entries):
            table[entry, entry * ratio : entry * ratio + share_CS.shape[1]] = share_CS[entry]
        drawn = axes.pcolormesh(table[:, before:], vmin=0, vmax=1)
        axes.vlines(range(ratio, n_entries * ratio, ratio), 0, n_entries, color=INK, linestyle="--", linewidth=0.6)
        axes.set(xlabel="token (dashed: a window ends)", ylim=(n_entries, 0), facecolor="#E4E4E4")
        axes.set(yticks=np.arange(n_entries) + 0.5, yticklabels=range(n_entries))
        axes.set_title(words, fontweight="normal")
    row[0].set_ylabel("entry")
    figure.colorbar(drawn, ax=row, label="share of the entry")
    figure.suptitle(title, **HEADING)
    return figure


def listening(share_NS, channels, texts, title):
    """Notebook 02: the shares that the tokens of one entry have in a few channels.

    share_NS  numpy, a row a channel
    channels  a name for each row; texts: those of the tokens
    returns   a matplotlib Figure
    """
    words = [text.replace("\n", "↵").replace(" ", "·") for text in texts]
    figure = Figure(figsize=(6.0, 2.6))
    axes = figure.subplots()
    drawn = axes.pcolormesh(share_NS, vmin=0, edgecolor="white", linewidth=0.3)
    axes.set_xticks(np.arange(len(words)) + 0.5, words, rotation=90, fontsize=8, family="DejaVu Sans Mono")
    axes.set_yticks(np.arange(len(channels)) + 0.5, channels)
    axes.set(ylim=(len(channels), 0), ylabel="channel: its kind", xlabel="token", title=title)
    figure.colorbar(drawn, ax=axes, label="share of the entry", pad=0.01)
    return figure


def entry_places(place_C, ratio):
    """Notebook 02: which tokens entries pool, where they stand, and from which token on they may be read.

    place_C  measured places of entries 1, 2, ... in tokens
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.8))
    axes = figure.subplots()
    entry = np.arange(1, len(place_C) + 1)
    band = {"color": COLOURS["key"], "linewidth": 5, "alpha": 0.45, "linestyle": "-"}
    axes.hlines(entry, ratio * (entry - 1), ratio * (entry + 1) - 1, label="pools these tokens", **band)
    look = {"linestyle": "", "color": COLOURS["compressed"], "markersize": 8}
    axes.plot(place_C, entry, "s", label="stands here (measured)", **look)
    axes.plot(ratio * (entry + 1) - 1, entry, "k|", linestyle="", markersize=16, label="readable from this token on")
    axes.set(xlabel="token", ylabel="entry", yticks=entry, title="An entry stands where its own window begins")
    axes.legend(loc="lower right")
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


def cache_shapes():
    """Notebook 05: what one CSA layer keeps of its tokens, and what becomes what.

    returns  a matplotlib Figure
    """
    boxes = {
        "x": Box("x", "a new token", "1 D", 0, 1),
        "window": Box("window", "the newest W", "W K", 1, 0, "key"),
        "open": Box("open", "values, gates", "<M 4K", 1, 1, "masked"),
        "raw keys": Box("open", "values, gates", "<M 4Z", 1, 2, "masked"),
        "previous": Box("previous", "of the last M", "M 2K", 2, 0, "masked"),
        "entries": Box("entries", "one for M tokens", "C K", 3, 1, "compressed"),
        "keys": Box("keys", "of the indexer", "C Z", 3, 2, "compressed"),
    }
    arrows = [("x", "window"), ("x", "open"), ("x", "raw keys"), ("open", "previous"), ("previous", "entries")]
    arrows += [("open", "entries"), ("raw keys", "keys")]
    title = "A CSA layer: entries and keys grow, all the rest stays short"
    return shapes(boxes, arrows, title, size=(6.0, 2.8), box=(1.28, 0.62))


def cache_growth(reports):
    """Notebook 05: the bytes of a cache, kind by kind, after each token.

    reports  what Cache.report() said after 1, 2, ... tokens
    returns  a matplotlib Figure of stacked steps
    """
    figure = Figure(figsize=(6.0, 3.0))
    axes = figure.subplots()
    below = np.zeros(len(reports))
    edges = np.arange(len(reports) + 1) + 0.5
    for kind, colour in KINDS.items():
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
