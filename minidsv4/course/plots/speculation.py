"""Pictures of notebook 08: the shift of the MTP block, and speculative decoding pass by pass."""

import numpy as np
from matplotlib.figure import Figure

from minidsv4.course.plots.style import COLOURS, GREY, HEADING, PALE_INK


def mtp_shift(words):
    """Notebook 08: which tokens the model and its MTP block read at one place, and which they predict.

    words    six tokens as text; the place is that of the third
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.4))
    axes = figure.subplots()
    axes.set(xlim=(-0.6, len(words) - 0.4), ylim=(-1.5, 1.3))
    axes.set_axis_off()
    place = 2
    names = {0: "i", 1: "i + 1", 2: "i + 2"}
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
    figure.suptitle(title, **HEADING)
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
