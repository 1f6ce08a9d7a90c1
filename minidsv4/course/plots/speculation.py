"""Pictures of notebook 08: the shift of the MTP block, and speculative decoding pass by pass."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from minidsv4.course.plots.shapes import Box, shapes
from minidsv4.course.plots.style import COLOURS, GREY, HEADING, INK, PALE_INK


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


def mtp_shapes():
    """Notebook 08: the tensors of the MTP block, from the model's streams and the next token to logits."""
    boxes = {
        "streams": Box("streams of i", "model's last block", "B T N D", 0, 0, "query"),
        "next": Box("token i + 1", "embedded", "B T D", 0, 1, "key"),
        "h": Box("stream part", "h_proj norm", "B T N D", 1, 0, "query"),
        "e": Box("token part", "e_proj norm", "B T 1 D", 1, 1, "key"),
        "sum": Box("mixed", "sum, by stream", "B T N D", 2, 0),
        "block": Box("block", "window, experts", "B T N D", 2, 1, "compressed"),
        "hidden": Box("hidden", "own collapse", "B T D", 3, 1, "compressed"),
        "logits": Box("logits i + 2", "the model's head", "B T V", 3, 0),
    }
    arrows = [("streams", "h"), ("next", "e"), ("h", "sum"), ("e", "sum"), ("sum", "block"), ("block", "hidden")]
    arrows += [("hidden", "logits")]
    title = "It reads streams and the next token, and predicts the one after"
    return shapes(boxes, arrows, title, size=(6.0, 2.1), box=(1.25, 0.62))


def losses_by_place(main, mtp):
    """Notebook 08: mean loss of the targets at each place of a document, by the model and by its MTP block.

    main  nats at places 1, 2, ...
    mtp   nats at places 2, 3, ...: the block has no earlier target
    """
    figure = Figure(figsize=(6.0, 2.8))
    axes = figure.subplots()
    places = np.arange(1, len(main) + 1)
    axes.plot(places, main, "-o", color=COLOURS["query"], markersize=3, label="model")
    axes.plot(places[1:], mtp, "--s", color=COLOURS["compressed"], markersize=3, label="MTP block")
    axes.annotate(
        "a target of the model alone", (1.2, main[0]), (4, main[0]), va="center", arrowprops={"arrowstyle": "->"}
    )
    axes.set(xlabel="place of the target in its document", ylabel="nats a token", ylim=(0, 1.1 * main[0]))
    axes.set_title("On the same targets both losses are nearly equal")
    axes.legend()
    return figure


LETTER = 0.067  # inches: the width of a letter of 8 points, DejaVu Sans Mono


def drafted_text(passes, depth):
    """Notebook 08: what each pass wrote, a row a pass: drafts kept, the model's own token, drafts rejected.

    passes  (words kept, own word, words rejected) of each pass
    """
    height = 0.75 + 0.25 * len(passes)
    figure = Figure(figsize=(6.0, height), layout="none")
    axes = figure.add_axes((0, 0, 1, 1 - 0.3 / height), xlim=(0, 6), ylim=(height - 0.3, 0))
    axes.set_axis_off()
    looks = {"kept": ("compressed", "-"), "the model's own": ("query", "-"), "rejected": ("key", "--")}
    left = 0.62
    for name in looks:
        left = _draw_word(axes, left, 0.15, name, *looks[name], name == "rejected") + 0.1
    for row, (kept, own, rejected) in enumerate(passes):
        left, top = 0.62, 0.5 + 0.25 * row
        axes.text(0.1, top, f"pass {row + 1}", va="center", fontsize=8, color=PALE_INK)
        parts = (
            [(word, "kept") for word in kept] + [(own, "the model's own")] + [(word, "rejected") for word in rejected]
        )
        for word, name in parts:
            left = _draw_word(axes, left, top, word, *looks[name], name == "rejected")
    n_tokens = sum(len(kept) + 1 for kept, _, _ in passes)
    drafts = "1 draft" if depth == 1 else f"{depth} drafts"
    title = f"{drafts} a pass: {len(passes)} passes wrote {n_tokens} tokens"
    figure.suptitle(title, y=1 - 0.06 / height, va="top", **HEADING)
    return figure


def _draw_word(axes, left, top, word, colour, line, struck):
    """A word in a box, crossed out where it is struck; returns where the next may begin."""
    width = LETTER * len(word) + 0.12
    look = {"edgecolor": COLOURS[colour], "facecolor": "white", "linestyle": line, "linewidth": 1.3}
    axes.add_patch(Rectangle((left, top - 0.1), width, 0.2, **look))
    middle = left + width / 2
    axes.text(middle, top, word, ha="center", va="center", fontsize=8, family="DejaVu Sans Mono", color=INK)
    if struck:
        axes.plot((left, left + width), (top, top), "-", color=COLOURS[colour], linewidth=0.7)
    return left + width + 0.06


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
