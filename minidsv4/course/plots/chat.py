"""Pictures of notebook 17: conversations as strips of tokens, prompts by mode, tokens reused by turn, a stream."""

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from minidsv4.course.plots.style import COLOURS, GREY, HEADING, INK

KINDS = {  # what a token of a conversation belongs to, and its colour
    "marker": INK,
    "instructions": "#CFCFCF",
    "user": COLOURS["query"],
    "reasoning": COLOURS["sink"],
    "answer": COLOURS["compressed"],
    "call": COLOURS["key"],
}


def conversation_strips(rows, title):
    """Conversations as strips: a token is a cell, in the colour of what it belongs to.

    rows     {label: kinds of its tokens, of `KINDS`}
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 1.3 + 0.4 * len(rows)))
    axes = figure.subplots()
    names = list(KINDS)
    cells = np.full((len(rows), max(len(kinds) for kinds in rows.values())), np.nan)
    for row, kinds in zip(cells, rows.values()):
        row[: len(kinds)] = [names.index(kind) for kind in kinds]
    colours = ListedColormap(list(KINDS.values()))
    axes.pcolormesh(np.ma.masked_invalid(cells), cmap=colours, vmin=-0.5, vmax=len(names) - 0.5)
    axes.hlines(range(1, len(rows)), 0, cells.shape[1], color="white", linewidth=4)
    axes.set_yticks(np.arange(len(rows)) + 0.5, list(rows))
    axes.invert_yaxis()
    axes.set(xlabel="token", title=title)
    used = [name for name in names if any(name in kinds for kinds in rows.values())]
    handles = [Patch(color=KINDS[name], label=name) for name in used]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.45, -0.84 / len(rows)), ncols=6, fontsize=7)
    return figure


def added_by_mode(profiles, title):
    """Tokens of the text that a mode adds, by its name.

    profiles  {profile: {mode: tokens}}, modes from the least thinking to the most
    returns   a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.6))
    axes = figure.subplots()
    modes = list(dict.fromkeys(mode for added in profiles.values() for mode in added))
    modes.sort(key=["none", "low", "high", "max"].index)
    for (profile, added), colour, line in zip(profiles.items(), (COLOURS["query"], COLOURS["key"]), ("-o", "--s")):
        places = [modes.index(mode) for mode in added]
        axes.plot(places, list(added.values()), line, color=colour, label=profile)
    axes.set_xticks(range(len(modes)), modes)
    axes.set(xlabel="mode, as a request names it", ylabel="tokens added after BOS", title=title)
    axes.legend(loc="upper left", title="profile")
    return figure


def reused_by_turn(ways, title):
    """Prompts by turn, as tokens that the cache had and tokens that are computed.

    ways     {label: [(tokens reused, tokens of the prompt), ...], one pair a turn}
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 3.0))
    panels = figure.subplots(1, len(ways), sharey=True, squeeze=False)[0]
    for axes, (label, turns) in zip(panels, ways.items()):
        places = np.arange(1, len(turns) + 1)
        reused = np.array([pair[0] for pair in turns])
        whole = np.array([pair[1] for pair in turns])
        axes.bar(places, reused, color=COLOURS["compressed"], label="reused")
        axes.bar(
            places, whole - reused, bottom=reused, color=COLOURS["key"], hatch="///", edgecolor="white", label="new"
        )
        axes.set_title(label, fontweight="normal", fontsize=9)
        axes.set(xlabel="turn", xticks=places)
    panels[0].set_ylabel("tokens of the prompt")
    panels[0].legend(loc="upper left", fontsize=8)
    figure.suptitle(title, **HEADING)
    return figure


def passed_on(passed, spans, title):
    """Characters that a stream's reader has passed on, by those that it was fed.

    passed   characters passed on after 1, 2, ... were fed
    spans    {marker: (first, last) of its characters in the text}
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.8))
    axes = figure.subplots()
    fed = np.arange(1, len(passed) + 1)
    for label, (first, last) in spans.items():
        axes.axvspan(first, last + 1, color="#E8E8E8", linewidth=0)
        axes.annotate(label, ((first + last + 1) / 2, 0.5), rotation=90, ha="center", va="bottom", fontsize=7)
    axes.plot(fed, fed, ":", color=GREY, label="fed")
    axes.step(fed, passed, "-", where="post", color=COLOURS["compressed"], label="passed on")
    axes.set(xlabel="characters fed, one at a time (grey: a marker)", ylabel="characters", title=title)
    axes.legend(loc="upper left", fontsize=8)
    return figure
