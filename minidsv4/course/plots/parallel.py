"""Pictures of notebooks 13 and 14: schedules of experts over ranks, and a sequence cut over ranks."""

import itertools

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from minidsv4.course.plots.style import COLOURS, COMPRESSED, GREY, HEADING, INK, KEY

# Notebook 13: the look of a stage, its colour and how strong it is.
STAGES = {
    "dispatch": ("key", 1.0),
    "linear1": ("query", 1.0),
    "activation": ("sink", 1.0),
    "linear2": ("query", 0.55),
    "combine": ("compressed", 1.0),
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
    panels = figure.subplots(len(timelines), 1, sharex=True, squeeze=False)[:, 0]
    longest = 0
    for axes, (name, timeline) in zip(panels, timelines.items()):
        for task, start, end in timeline.spans:
            colour, strength = STAGES[task.stage]
            place = list(lanes).index(task.lane)
            long = (end - start) / unit
            axes.barh(place, long, 0.8, start / unit, color=COLOURS[colour], alpha=strength, edgecolor="white", lw=0.2)
        axes.set(yticks=range(len(lanes)), yticklabels=lanes.values(), ylim=(len(lanes) - 0.4, -0.6))
        axes.set_title(name, fontweight="normal", fontsize=9, pad=2)
        axes.text(timeline.time / unit + 0.03, 1, words[name], va="center", fontsize=9)
        axes.tick_params(axis="y", length=0)
        longest = max(longest, timeline.time / unit)
    panels[-1].set(xlim=(0, 1.22 * longest), xlabel="time, both products together being 1")
    looks = [Patch(color=COLOURS[colour], alpha=strength) for colour, strength in STAGES.values()]
    figure.legend(looks, [STAGE_WORDS.get(stage, stage) for stage in STAGES], loc="outside lower center", ncols=5)
    figure.suptitle(title, **HEADING)
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
    figure.suptitle(title, **HEADING)
    return figure


def gain_by_batch(gains, published):
    """Notebook 13: speed-ups by batch, split into overlap and overhead that went away, a panel a model.

    gains      {model: {tokens of a rank: minidsv4.cost.megamoe.Gain}}
    published  {model: {tokens: speed-up}}
    returns    a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 3.0))
    for axes, (model, by_batch) in zip(figure.subplots(1, len(gains), sharey=True), gains.items()):
        places = range(len(by_batch))
        overlap = np.array([gain.overlap for gain in by_batch.values()])
        total = np.array([gain.speedup for gain in by_batch.values()])
        axes.bar(places, overlap - 1, 0.6, 1, color=COLOURS["compressed"], label="overlap")
        axes.bar(places, total - overlap, 0.6, overlap, color=COLOURS["masked"], label="less overhead")
        axes.plot(places, list(published[model].values()), "D", color=COLOURS["key"], markersize=5, label="published")
        axes.set(xticks=places, xticklabels=[f"{n:,}" for n in by_batch], xlabel="tokens of a rank", ylim=(1, 2.1))
        axes.set_title(model, fontweight="normal")
    figure.axes[0].set_ylabel("speed-up over serial")
    figure.axes[-1].legend(loc="upper right")
    title = "One token gains by fewer launches, many by overlap"
    figure.suptitle(title, **HEADING)
    return figure


def cut_row(edges, entries, fetched):
    """Notebook 14: what each rank but the first fetches from before its first token, strip by strip.

    edges    positions where ranks begin, and the end of the row
    entries  [(name, tokens per entry)]: a strip of boxes each, named after the rank that makes the entry
    fetched  {name: [(rank, tokens of the window before, tokens next to the border)]}, in the order of the strips
    """
    figure = Figure(figsize=(6.0, 3.8))
    axes = figure.subplots()
    tall = 0.7  # of a box; strips are 1 apart
    labels = ["tokens"]
    strip = 1
    _draw_boxes(axes, list(itertools.pairwise(edges)), range(len(edges) - 1), 0, tall)
    for name, rows in fetched.items():
        if name in entries:
            stops = range(entries[name], edges[-1] + 1, entries[name])
            owners = [sum(stop > edge for edge in edges[1:-1]) for stop in stops]
            _draw_boxes(axes, [(stop - entries[name], stop) for stop in stops], owners, strip, tall)
            labels.append(f"{name}: entries")
            strip += 1
        for rank, n_before, n_next in rows:
            start = edges[rank]
            colour = KEY if name not in entries else COMPRESSED
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
