"""Pictures of notebook 19: what a trap does to a loss, to single tokens, to what a query reaches, and who sees it."""

import numpy as np
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure

from minidsv4.course.plots.style import COLOURS, HEADING, INK, PALE_INK, SEQUENTIAL


def losses_of_traps(losses, right, title):
    """The loss of a model with each trap, read at once and in chunks, beside that of the right model.

    losses   {name: (nats a token at once, nats a token in chunks)}
    right    nats a token of the right model
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 0.9 + 0.22 * len(losses)))
    axes = figure.subplots()
    places = np.arange(len(losses))
    once, chunks = np.array(list(losses.values())).T
    axes.hlines(places, np.minimum(once, chunks), np.maximum(once, chunks), color=PALE_INK, linewidth=1)
    axes.plot(chunks, places, "D", color=COLOURS["key"], markersize=6, label="read in chunks")
    axes.plot(once, places, "o", color=COLOURS["query"], markersize=4, label="read at once")
    axes.axvline(right, color=INK, linestyle=":", linewidth=1)
    axes.set_yticks(places, [name.replace("_", " ") for name in losses])
    axes.set(xlabel="nats a token; dotted: the right model", ylim=(len(losses) - 0.5, -0.5))
    figure.suptitle(title, **HEADING)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    return figure


def reached(maps, title):
    """Which token's logits feel a change of which token, a panel a model.

    maps     {name: booleans [tokens that are predicted from, tokens that are changed]}
    returns  a matplotlib Figure; green is felt, red is felt and lies in the future
    """
    figure = Figure(figsize=(6.4, 2.7))
    (panels,) = figure.subplots(1, len(maps), sharey=True, squeeze=False)
    for axes, (name, felt) in zip(panels, maps.items()):
        n = len(felt)
        future = np.triu(np.ones_like(felt), 1)
        kind = felt.astype(int) + (felt & future)
        colours = ListedColormap(["#F4F4F2", COLOURS["compressed"], "#A6192E"])
        axes.pcolormesh(kind, cmap=colours, vmin=0, vmax=2)
        axes.plot([0, n], [0, n], color=INK, linewidth=0.8)
        axes.set(xlim=(0, n), ylim=(n, 0), aspect="equal", xlabel="token that is changed")
        axes.set_title(name, fontweight="normal", fontsize=8)
    figure.axes[0].set_ylabel("token whose logits move")
    figure.suptitle(title, **HEADING)
    return figure


def fingerprints(errors, cuts, title):
    """The error of each token's logits, a row a trap: read at once on the left, in chunks on the right.

    errors   {name: (largest errors [tokens] at once, the same in chunks)}
    cuts     places where a chunk begins
    returns  a matplotlib Figure; white is right up to rounding
    """
    figure = Figure(figsize=(7.0, 1.3 + 0.24 * len(errors)))
    panels = figure.subplots(1, 2, sharey=True)
    for part, (axes, name) in enumerate(zip(panels, ("read at once", "read in chunks"))):
        rows = np.array([pair[part] for pair in errors.values()])
        shown = np.ma.masked_less(rows, 1e-9)
        mesh = axes.pcolormesh(shown, cmap=SEQUENTIAL, norm=LogNorm(1e-3, 1e1))
        axes.set(xlabel="token", ylim=(len(errors), 0))
        axes.set_title(name, fontweight="normal", fontsize=8)
        axes.hlines(range(1, len(errors)), 0, rows.shape[1], color="white", linewidth=2)
    panels[1].vlines(cuts, 0, len(errors), color=INK, linewidth=0.8, linestyle="--")
    panels[0].set_yticks(np.arange(len(errors)) + 0.5, [name.replace("_", " ") for name in errors])
    figure.colorbar(mesh, ax=panels, label="error of a logit")
    figure.suptitle(title, **HEADING)
    return figure


def sightings(seen, rooms, title):
    """Which check sees which trap, as a map: a column a trap, a row a check.

    seen     {check: booleans [traps]}
    rooms    {room: how many traps}, in the order of the columns
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(9.0, 5.6))
    axes = figure.subplots()
    rows = np.array(list(seen.values()))
    axes.pcolormesh(rows.astype(int), cmap=ListedColormap(["#F4F4F2", COLOURS["query"]]), vmin=0, vmax=1)
    axes.set_yticks(np.arange(len(seen)) + 0.5, [check.replace("_", " ") for check in seen], fontsize=7)
    edges = np.cumsum([0, *rooms.values()])
    axes.hlines(range(len(seen)), 0, rows.shape[1], color="white", linewidth=0.8)
    axes.vlines(edges, 0, len(seen), color=INK, linewidth=0.8)
    middles = (edges[1:] + edges[:-1]) / 2
    axes.set_xticks(middles, list(rooms), fontsize=8, rotation=40, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    axes.set(ylim=(len(seen), 0))
    figure.suptitle(title, **HEADING)
    return figure
