"""Pictures of notebook 18: the paths of GRPO and of distillation, learning curves, scores, thinking, noise."""

import itertools

import numpy as np
from matplotlib.figure import Figure

from minidsv4.course.plots.shapes import Box, shapes
from minidsv4.course.plots.style import COLOURS, HEADING, INK

LOOKS = {"none": ("masked", "^", ":"), "high": ("key", "s", "--"), "max": ("query", "o", "-")}  # of modes


def grpo_shapes():
    """From a problem to the loss of GRPO.

    returns  a matplotlib Figure
    """
    boxes = {
        "problem": Box("problem", "G times", "B rows", 0, 0),
        "replies": Box("replies", "policy, as it is", "B T", 1, 0, "query"),
        "rewards": Box("rewards", "a program judges", "B", 2, 0, "compressed"),
        "advantage": Box("advantages", "within a group", "B", 3, 0, "compressed"),
        "old": Box("log p, old", "who wrote it", "T", 1, 1, "query"),
        "new": Box("log p", "policy that learns", "T", 3, 2, "key"),
        "reference": Box("log p, reference", "the base", "T", 1, 2, "masked"),
        "loss": Box("loss", "clip, and KL", "number", 3, 1, "key"),
    }
    arrows = [*itertools.pairwise(("problem", "replies", "rewards", "advantage", "loss"))]
    arrows += [("replies", "old"), ("old", "loss"), ("new", "loss"), ("reference", "loss")]
    return shapes(boxes, arrows, "GRPO: a reply is compared with its neighbours", (6.0, 2.8), (1.26, 0.6))


def distillation_shapes():
    """From what the student writes to the divergence from its teachers.

    returns  a matplotlib Figure
    """
    boxes = {
        "replies": Box("replies", "student writes", "B T", 0, 1),
        "student": Box("log p", "student", "T V", 1, 0, "key"),
        "first": Box("hidden", "teacher 1, kept", "T D", 1, 1, "query"),
        "second": Box("hidden", "teacher 2, kept", "T D", 1, 2, "compressed"),
        "one": Box("log q", "head 1", "T V", 2, 1, "query"),
        "two": Box("log q", "head 2, then", "T V", 2, 2, "compressed"),
        "kl": Box("KL(p || q)", "all V tokens", "number", 3, 0.5, "key"),
    }
    arrows = [("replies", "student"), ("replies", "first"), ("replies", "second"), ("first", "one"), ("second", "two")]
    arrows += [("student", "kl"), ("one", "kl"), ("two", "kl")]
    return shapes(boxes, arrows, "Distillation: each row's own teacher, one head at a time", (6.0, 2.8), (1.26, 0.6))


def learning_curves(logs, title, span):
    """Right answers and characters of thinking over the rounds of GRPO, mode by mode; a column a specialist.

    logs     {task: records as `train.log.read_log` gives them}; a mode that they lack has no line
    span     rounds that a line is the mean of, the last ones up to each
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 3.8))
    panels = figure.subplots(2, len(logs), sharex=True, sharey="row", squeeze=False)
    for (task, records), (upper, lower) in zip(logs.items(), panels.T):
        for mode, (colour, _, line) in LOOKS.items():
            look = {"color": COLOURS[colour], "linestyle": line}
            if f"right, {mode}" not in records[0]:
                continue
            for axes, part in ((upper, "right"), (lower, "thought")):
                values = running_mean([record[f"{part}, {mode}"] for record in records], span)
                axes.plot(np.arange(1, len(values) + 1), values, **look, label=mode)
        upper.set_title(f"rewards for {task}", fontweight="normal")
        lower.set_xlabel("round")
    panels[0, 0].set(ylabel="right answers, share", ylim=(0, 1.03))
    panels[1, 0].set(ylabel="thinking, characters", ylim=(0, None))
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle(title, **HEADING)
    return figure


def running_mean(values, span):
    """For each value the mean of the last `span` up to it, fewer at the start; a NumPy array."""
    return np.array([np.mean(values[max(0, end - span) : end]) for end in range(1, len(values) + 1)])


def scores(found, names, title):
    """Right answers of each model on both tasks; whiskers are two standard deviations of seeds.

    found    {task: {model: (mean, standard deviation)}}
    names    {model: what it is called}
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 3.2))
    axes = figure.subplots()
    for number, ((task, by_model), colour) in enumerate(zip(found.items(), ("query", "compressed"))):
        places = np.arange(len(names)) + 0.38 * number
        mean, deviation = np.array([by_model[name] for name in names]).T
        look = {"color": COLOURS[colour], "hatch": ("", "///")[number], "edgecolor": "white"}
        axes.barh(places, mean, 0.36, xerr=2 * deviation, ecolor=INK, label=task, **look)
    axes.set_yticks(np.arange(len(names)) + 0.19, names.values())
    axes.set(xlabel="right answers, share (whiskers: two standard deviations of 3 seeds)", xlim=(0, 1), title=title)
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def thinking(found, none, title):
    """Right answers where thinking is cut after so many characters, a line a model; a column a task.

    found    {task: {model: shares of right answers after 0, 1, 2, ... characters}}
    none     {task: {model: share in the mode that does not think}}
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 3.0))
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for axes, (task, by_model) in zip(panels, found.items()):
        for (model, right), (colour, line) in zip(by_model.items(), (("masked", ":"), ("key", "-"))):
            axes.plot(range(len(right)), right, line, marker=".", color=COLOURS[colour], label=f"{model}, cut")
            look = {"color": COLOURS[colour], "markerfacecolor": "none", "label": f"{model}, mode none"}
            axes.plot([0], [none[task][model]], LOOKS["none"][1], **look)
        axes.set(xlabel="thinking, characters", xlim=(-0.5, 8.5), ylim=(0, 1.05))
        axes.set_title(task, fontweight="normal")
    panels[0].set_ylabel("right answers, share")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(title, **HEADING)
    return figure


def noise(found, title):
    """Squared length of the mean gradient, and its mean squared error, of both estimates; log scale, a mark a seed.

    found    one a seed: {estimate: {"signal": ..., "noise": ...}}
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.4))
    axes = figure.subplots()
    marks = {"signal": ("o", "query", "mean gradient, squared length"), "noise": ("x", "key", "scatter of a round")}
    for part, (mark, colour, label) in marks.items():
        for row, estimate in enumerate(found[0]):
            values = [one[estimate][part] for one in found]
            axes.plot(values, [row] * len(values), mark, color=COLOURS[colour], label=None if row else label)
    axes.set_yticks(range(len(found[0])), [f"{estimate} KL" for estimate in found[0]])
    axes.set(xscale="log", xlabel="squared norm (log scale)", ylim=(len(found[0]) - 0.5, -0.5), title=title)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    figure.legend(loc="outside lower center", ncols=2)
    return figure
