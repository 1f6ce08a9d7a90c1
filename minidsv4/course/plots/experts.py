"""Pictures of notebook 07: scores, experts by kind of token, loads that a rule or a table balances, the clamp."""

import numpy as np
from matplotlib.figure import Figure

from minidsv4.course.plots.shapes import Box, shapes
from minidsv4.course.plots.style import COLOURS, HEADING, INK


def expert_layer_shapes():
    """Notebook 07: the tensors of an expert layer and how one is made from another."""
    boxes = {
        "x": Box("token", "normed", "B T D", 0, 1),
        "score": Box("scores", "sqrt softplus", "B T E", 1, 0, "query"),
        "picked": Box("picked", "top A, or table", "B T A", 2, 0, "key"),
        "weight": Box("weights", "over their sum", "B T A", 3, 0, "query"),
        "inner": Box("A experts", "w13, SwiGLU", "B T A F", 2, 1, "compressed"),
        "routed": Box("weighted sum", "w2", "B T D", 3, 1, "compressed"),
        "shared": Box("shared expert", "w1, w3, w2", "B T D", 2, 2, "sink"),
        "out": Box("output", "sum", "B T D", 3, 2),
    }
    arrows = [("x", "score"), ("score", "picked"), ("picked", "weight"), ("picked", "inner"), ("x", "inner")]
    arrows += [("inner", "routed"), ("weight", "routed"), ("x", "shared"), ("shared", "out"), ("routed", "out")]
    return shapes(boxes, arrows, "A token visits A of E experts, and the shared one")


SCORES = {
    "sigmoid": ("masked", "--", lambda z: 1 / (1 + np.exp(-z))),
    "exp": ("key", "-.", np.exp),
    "sqrt(softplus)": ("query", "-", lambda z: np.sqrt(np.logaddexp(0, z))),
}


def score_functions():
    """Three functions that make a score of a router's logit, and how much a step of 1 in the logit raises each."""
    z = np.linspace(-6, 8, 281)
    figure = Figure(figsize=(6.0, 3.0))
    left, right = figure.subplots(1, 2)
    for name, (colour, line, score) in SCORES.items():
        left.plot(z, score(z), line, color=COLOURS[colour], label=name)
        right.plot(z, score(z + 1) / score(z), line, color=COLOURS[colour], label=name)
    left.set(xlabel="logit", ylabel="score", ylim=(0, 4))
    right.set(xlabel="logit", ylabel="growth by one more logit", ylim=(0.9, 3))
    right.legend(loc="center right")
    figure.suptitle("Sigmoid is flat above, exp shouts; the root of softplus does neither", **HEADING)
    return figure


def experts_by_kind(share_KE, kinds, layer):
    """How many of a kind's different tokens visit each expert of a layer.

    share_KE  shares from 0 to 1, a row a kind
    """
    figure = Figure(figsize=(6.0, 2.4))
    axes = figure.subplots()
    n_experts = share_KE.shape[1]
    image = axes.pcolormesh(share_KE, vmin=0, vmax=1, edgecolor="white")
    for row, col in np.argwhere(share_KE > 0.4):
        dark = INK if share_KE[row, col] > 0.6 else "white"
        axes.text(col + 0.5, row + 0.5, f"{share_KE[row, col]:.2f}", ha="center", va="center", color=dark, fontsize=8)
    figure.colorbar(image, label="share of tokens")
    axes.set_yticks(np.arange(len(kinds)) + 0.5, kinds)
    axes.set_xticks(np.arange(n_experts) + 0.5, range(n_experts))
    axes.set(xlabel="expert", ylim=(len(kinds), 0))
    row, col = np.unravel_index(share_KE.argmax(), share_KE.shape)
    axes.set_title(f"Layer {layer}: {share_KE[row, col]:.0%} of the different {kinds[row]}s visit expert {col}")
    return figure


def bias_rule(without, with_rule, bias_TE, speed):
    """MaxVio step by step without and with the bias rule, and the biases that the rule moved.

    without, with_rule  MaxVio of each step
    bias_TE             biases after each step, one column an expert
    speed               how far a bias moves in a step
    """
    figure = Figure(figsize=(6.0, 3.0))
    left, right = figure.subplots(1, 2)
    left.plot(without, color=COLOURS["masked"], linestyle="--", label="no rule")
    left.plot(with_rule, color=COLOURS["compressed"], linestyle="-", label=f"bias rule, {speed:g} a step")
    left.set(xlabel="step", ylabel="MaxVio", ylim=(0, 4))
    left.set_title("The fullest expert's overload", fontweight="normal")
    left.legend(loc="upper right")
    right.plot(bias_TE, color=COLOURS["query"], linestyle="-", linewidth=1)
    right.set(xlabel="step", ylabel="bias, in units of the score")
    right.set_title(f"The {bias_TE.shape[1]} biases that did it", fontweight="normal")
    late = float(np.mean(with_rule[-20:]))
    title = f"Each bias follows its expert's load: MaxVio ends at {late:.1f}"
    figure.suptitle(title, **HEADING)
    return figure


def toy_balance(overload):
    """MaxVio of a hash layer and a learned one over training, with and without the rule, a line a seed.

    overload  {speed: array (seeds, points, 2 layers)}; a point pools ten steps
    """
    figure = Figure(figsize=(6.0, 3.0))
    panels = figure.subplots(1, 2, sharey=True)
    looks = {False: ("masked", "--", "no rule", 3), True: ("compressed", "-", "bias rule", 2)}
    for speed, runs in overload.items():
        colour, line, name, order = looks[speed > 0]
        steps = 5 + 10 * np.arange(runs.shape[1])
        for seed, run in enumerate(runs):
            for layer, axes in enumerate(panels):
                label = None if seed else name
                axes.plot(steps, run[:, layer], line, color=COLOURS[colour], label=label, zorder=order, linewidth=1.2)
    for axes, title in zip(panels, ("hash layer: both alike", "learned layer")):
        axes.set(xlabel="step", ylim=(0, 1.7))
        axes.set_title(title, fontweight="normal")
    panels[0].set_ylabel("MaxVio, ten steps pooled")
    panels[1].legend(loc="upper left", ncols=2)
    figure.suptitle(f"The rule balances what has a bias ({len(runs)} seeds)", **HEADING)
    return figure


def table_loads(loads):
    """Loads of a hash layer's experts, fullest first, for two tables.

    loads  {number of experts: (loads of a random table, loads of one made by frequency)}
    """
    figure = Figure(figsize=(6.0, 3.0))
    panels = figure.subplots(1, 2)
    looks = (("masked", "--", "at random"), ("compressed", "-", "by frequency"))
    for axes, (n_experts, pair) in zip(panels, loads.items()):
        for load, (colour, line, label) in zip(pair, looks):
            relative = np.sort(load / load.mean())[::-1]
            axes.plot(np.arange(1, n_experts + 1), relative, line, color=COLOURS[colour], label=label)
        axes.set(xlabel="experts, fullest first", ylim=(0, None))
        axes.set_title(f"{n_experts} experts", fontweight="normal")
    panels[0].set_ylabel("load over mean load")
    panels[1].annotate("one token's four experts", (4.2, 1.96), (18, 2.4), arrowprops={"arrowstyle": "->"})
    panels[0].legend()
    figure.suptitle("A table can even out Zipf, but cannot split one token", **HEADING)
    return figure


def clamped_product(scale, free, bound, limit):
    """SwiGLU of equal gate and up, free and clamped."""
    figure = Figure(figsize=(6.0, 2.8))
    axes = figure.subplots()
    axes.plot(scale, free, "--", color=COLOURS["masked"], label="free")
    axes.plot(scale, bound, "-", color=COLOURS["query"], label=f"clamped at {limit:g}")
    axes.set(xlabel="gate and up, both the same", ylabel="silu(gate) times up", ylim=(-100, 1700))
    axes.set_title(f"The clamp stops an outlier at {limit**2:,.0f}")
    axes.legend()
    return figure
