"""Drawings of the track *build a V4*: what flows where in a layer, an mHC site, a mixture of experts and a block."""

import numpy as np
from matplotlib.figure import Figure

from minidsv4.course.plots.shapes import Box, shapes
from minidsv4.course.plots.style import COLOURS, INK


def turned_pair():
    """A channel pair as a point of the plane, at five positions: the sense in which `rotate` turns.

    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(3.4, 3.2))
    axes = figure.subplots()
    angle_T = 0.5 * np.arange(5)
    axes.plot(np.cos(np.linspace(0, 2 * np.pi, 200)), np.sin(np.linspace(0, 2 * np.pi, 200)), color="#DDDDDD")
    for t, angle in enumerate(angle_T):
        point = np.cos(angle), np.sin(angle)
        axes.plot([0, point[0]], [0, point[1]], color=COLOURS["query"], linestyle="-", linewidth=1)
        axes.annotate(f"t = {t}", point, (1.3 * point[0], 1.2 * point[1]), ha="center", va="center", color=INK)
    axes.plot(np.cos(angle_T), np.sin(angle_T), "o", linestyle="", color=COLOURS["query"])
    axes.set(
        aspect="equal", xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), xlabel="even channel, 2i", ylabel="odd channel, 2i + 1"
    )
    axes.set_title("(1, 0), turned by 0.5 t")
    return figure


def attention_shapes():
    """An attention layer of any kind: two paths from the tokens to one call of `attend`, and back to their width.

    returns  a matplotlib Figure
    """
    boxes = {
        "x": Box("x", "tokens", "B T D", 0, 1, "masked"),
        "latent": Box("latent", "wq_a, q_norm", "B T Q", 1, 0, "query"),
        "query": Box("query", "wq_b, norm, turn", "B T H K", 2, 0, "query"),
        "entries": Box("entries", "wkv, kv_norm, turn", "B T K", 1, 1, "key"),
        "compressed": Box("compressed", "compressor", "B C K", 1, 2, "compressed"),
        "series": Box("S = T + C", "side by side", "B S K", 2, 1.5, "key"),
        "out": Box("attend", "sinks, who sees", "B T H K", 3, 1, "sink"),
        "y": Box("y", "turn back, groups", "B T D", 4, 1, "masked"),
    }
    arrows = [
        *(("x", "latent"), ("latent", "query"), ("query", "out"), ("x", "entries"), ("x", "compressed")),
        *(("entries", "series"), ("compressed", "series"), ("series", "out"), ("out", "y")),
    ]
    title = "Every layer: queries by a latent, entries for all heads, one attend"
    return shapes(boxes, arrows, title, size=(8.4, 3.0), box=(1.36, 0.62))


def site_shapes():
    """One mHC site around a sub-layer.

    returns  a matplotlib Figure
    """
    boxes = {
        "old": Box("streams", "before", "B T N D", 0, 1, "masked"),
        "mix": Box("mix", "pre, post, carry", "B T (2+N)N", 1, 0, "sink"),
        "read": Box("collapse", "pre", "B T D", 1, 2, "query"),
        "sub": Box("y", "norm, sub-layer", "B T D", 2, 2, "query"),
        "new": Box("write", "post, carry", "B T N D", 3, 1, "compressed"),
    }
    arrows = [
        ("old", "mix"),
        ("old", "read"),
        ("read", "sub"),
        ("sub", "new"),
        ("old", "new"),
        ("mix", "new"),
        ("mix", "read"),
    ]
    title = "A site: N streams are read as one, and written as N"
    return shapes(boxes, arrows, title, size=(6.0, 3.0), box=(1.24, 0.62))


def moe_shapes():
    """A mixture of experts.

    returns  a matplotlib Figure
    """
    boxes = {
        "x": Box("x", "tokens", "B T D", 0, 1, "masked"),
        "score": Box("scores", "affinities", "B T E", 1, 0, "query"),
        "picked": Box("picked, weight", "best A, or a table", "B T A", 2, 0, "query"),
        "routed": Box("routed", "weight times expert", "B T D", 2, 1, "compressed"),
        "shared": Box("shared", "one more expert", "B T D", 2, 2, "key"),
        "y": Box("y", "sum", "B T D", 3, 1, "masked"),
    }
    arrows = [("x", "score"), ("score", "picked"), ("picked", "routed"), ("x", "routed"), ("x", "shared")]
    arrows += [("routed", "y"), ("shared", "y")]
    title = "A mixture: A of E experts by the router, and one that all visit"
    return shapes(boxes, arrows, title, size=(7.4, 3.0), box=(1.46, 0.62))


def model_shapes():
    """From token ids to logits.

    returns  a matplotlib Figure
    """
    boxes = {
        "ids": Box("ids", "tokens", "B T", 0, 0, "masked"),
        "embed": Box("embed", "a row an id", "B T D", 1, 0, "key"),
        "streams": Box("streams", "N copies", "B T N D", 2, 0, "masked"),
        "blocks": Box("L blocks", "two sites each", "B T N D", 3, 0, "compressed"),
        "read": Box("collapse", "hc_head, norm", "B T D", 4, 0, "query"),
        "logits": Box("logits", "head", "B T V", 5, 0, "masked"),
    }
    names = list(boxes)
    return shapes(boxes, list(zip(names, names[1:])), "From ids to logits", size=(8.4, 1.3), box=(1.18, 0.62))
