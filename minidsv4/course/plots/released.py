"""Pictures of notebook 20: the numbers of a released file."""

import numpy as np
from matplotlib.figure import Figure

from minidsv4.course.plots.cost import HATCHES
from minidsv4.course.plots.shapes import Box, shapes
from minidsv4.course.plots.style import COLOURS


def shares_of_fp4(values, shares, title):
    """How often each of the numbers of FP4 occurs, a bar for each file.

    values   the numbers, ascending
    shares   {name: (colour, percent of each number)}, two of them
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.6))
    axes = figure.subplots()
    for part, ((name, (colour, percent)), hatch) in enumerate(zip(shares.items(), HATCHES)):
        look = {"color": COLOURS[colour], "hatch": hatch, "edgecolor": "white"}
        axes.bar([place + 0.4 * part - 0.2 for place in range(len(values))], percent, 0.38, label=name, **look)
    axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    axes.set(xlabel="number before its scale", ylabel="share, %", title=title)
    axes.legend(loc="upper left", fontsize=8)
    return figure


def wrong_by_token(errors, visits, expert, title):
    """The largest error of a logit at each position, those apart where a token visits the broken expert.

    errors   numpy array [positions]
    visits   boolean numpy array [positions]
    expert   its number
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.6))
    axes = figure.subplots()
    places = np.arange(len(errors))
    for those, label, marker, colour in (
        (visits, f"visits expert {expert}", "D", "key"),
        (~visits, "does not", "o", "masked"),
    ):
        axes.plot(places[those], errors[those], marker, color=COLOURS[colour], label=label, markersize=4)
    axes.set(xlabel="position", ylabel="largest error of a logit", title=title)
    axes.set_yscale("symlog", linthresh=1e-7)
    axes.legend(loc="lower right", fontsize=8)
    return figure


def stacked_expert_shapes():
    """The three matrices of an expert in the released file, and the two that transformers makes of them."""
    boxes = {
        "w1": Box("experts.5.w1", "gate", "F D", 0, 0, "query"),
        "w3": Box("experts.5.w3", "up", "F D", 0, 1, "key"),
        "w2": Box("experts.5.w2", "down", "D F", 0, 2, "compressed"),
        "gate_up": Box("gate_up_proj[5]", "gate above up", "2F D", 2, 0.5, "sink"),
        "down": Box("down_proj[5]", "as it was", "D F", 2, 2, "compressed"),
    }
    arrows = [("w1", "gate_up"), ("w3", "gate_up"), ("w2", "down")]
    title = "Of three matrices of an expert, gate and way up become one"
    return shapes(boxes, arrows, title, size=(6.0, 2.4), box=(1.5, 0.58))
