"""Pictures of notebook 06: sites, carries, Sinkhorn's steps, and what a stack of layers does to a signal."""

import numpy as np
from matplotlib.figure import Figure

from minidsv4.course.plots.style import COLOURS, HEADING, INK


def carry_of_a_site(carry, name):
    """A carry matrix as a heat map, with its numbers; name says of which site."""
    figure = Figure(figsize=(4.4, 3.0))
    axes = figure.subplots()
    image = axes.pcolormesh(carry, vmin=0, vmax=1, edgecolor="white")
    n = len(carry)
    for i, j in np.ndindex(carry.shape):
        dark = INK if carry[i, j] > 0.6 else "white"
        axes.text(j + 0.5, i + 0.5, f"{carry[i, j]:.2f}", ha="center", va="center", color=dark)
    figure.colorbar(image, label="share of the old stream")
    ticks = np.arange(n) + 0.5
    axes.set(xlabel="new stream j", ylabel="old stream i", ylim=(n, 0), xticks=ticks, yticks=ticks)
    axes.set(xticklabels=range(1, n + 1), yticklabels=range(1, n + 1))
    axes.set_title(f"{name}: keeps {carry.diagonal().mean():.0%} of a stream")
    return figure


def alike_by_depth(cosine, kept):
    """How alike the streams of a trained model are by layer, and what its sites keep of a stream.

    cosine  {seed of a text: mean cosine after each layer}
    kept    {seed of a text: mean share kept at each site, two a layer}
    """
    figure = Figure(figsize=(6.0, 2.8))
    left, right = figure.subplots(1, 2)
    for seed in cosine:
        layers = np.arange(len(cosine[seed]))
        left.plot(layers, cosine[seed], "-o", color=COLOURS["query"], markersize=3, linewidth=1)
        sites = kept[seed].reshape(-1, 2).T
        label = ("attention site", "experts' site") if seed == max(cosine) else (None, None)
        right.plot(layers, sites[0], "-s", color=COLOURS["key"], markersize=3, linewidth=1, label=label[0])
        right.plot(layers, sites[1], "--o", color=COLOURS["compressed"], markersize=3, linewidth=1, label=label[1])
    left.set(xlabel="layer", ylabel="mean cosine", ylim=(0, 1))
    left.set_title("Likeness of two streams", fontweight="normal")
    right.set(xlabel="layer", ylabel="share kept", ylim=(0, 1))
    right.set_title("What a site keeps of a stream", fontweight="normal")
    right.legend(loc="lower center")
    figure.suptitle(f"Shipped model: streams much alike, kept apart in the middle ({len(cosine)} texts)", **HEADING)
    return figure


def sinkhorn_paths(paths):
    """Where Sinkhorn leads 2 x 2 matrices, told by the shares that both streams keep.

    paths  numpy array (starts, half rounds, 2)
    """
    figure = Figure(figsize=(4.2, 3.0))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=COLOURS["compressed"], linestyle="-", linewidth=4, alpha=0.5)
    for path in paths:
        axes.plot(*path.T, color=COLOURS["key"], linestyle="-", marker="o", markersize=3)
        axes.plot(*path[0], color=COLOURS["key"], marker="s", markersize=7)
    for words, place in (("swap", (0.03, -0.03)), ("identity", (0.78, 1.0)), ("doubly stochastic", (0.3, 0.2))):
        axes.annotate(words, place, color=COLOURS["compressed"])
    axes.set(xlabel="share that stream 1 keeps", ylabel="share that stream 2 keeps")
    axes.set(xlim=(-0.05, 1.05), ylim=(-0.07, 1.1), title="Sinkhorn walks to the line")
    return figure


def pulse(right, wrong):
    """A pulse that visits streams site by site, with the carry as released and transposed: two heat maps."""
    figure = Figure(figsize=(6.0, 2.4))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, path, name in zip(panels, (right, wrong), ("as released", "transposed")):
        image = axes.pcolormesh(path.T, vmin=0, vmax=1, edgecolor="white")
        axes.set(xlabel="sites passed", xticks=np.arange(6) + 0.5, xticklabels=range(6), ylim=(4, 0))
        axes.set_title(name, fontweight="normal")
    panels[0].set(ylabel="stream", yticks=np.arange(4) + 0.5, yticklabels="1234")
    figure.colorbar(image, ax=panels, label="pulse")
    figure.suptitle("Transposed, the pulse runs backwards", **HEADING)
    return figure


def streams_through_depth(flows):
    """What 64 layers do, three panels on log scales: signal, gradient and the mix's gain, a thin line a seed.

    flows  {kind: [minidsv4.experiments.streams.Flow of each seed]}
    """
    styles = {"HC": ("key", "-"), "mHC": ("compressed", "-"), "residual": ("masked", "--")}
    panels = {
        "Signal": ("RMS of the streams", lambda flow: flow.signal),
        "Gradient": ("RMS over that at the end", lambda flow: flow.gradient / flow.gradient[-1]),
        "Gain of the mixes": ("largest factor", lambda flow: flow.forward),
    }
    figure = Figure(figsize=(6.0, 3.0))
    for axes, (title, (unit, values)) in zip(figure.subplots(1, 3), panels.items()):
        for kind, (colour, line) in styles.items():
            for number, flow in enumerate(flows[kind]):
                depth = np.arange(len(flow.signal)) / 2
                label = kind if number == 0 else None
                style = {"linewidth": 1.0 if kind == "HC" else 1.4, "linestyle": line, "label": label}
                axes.plot(depth, values(flow).numpy(), color=COLOURS[colour], **style)
        axes.set(yscale="log", xlabel="layer", ylabel=unit, xticks=(0, 32, 64))
        axes.set_title(title, fontweight="normal")
    figure.axes[1].legend(loc="upper right")
    wild, tame = (max(flow.forward.max().item() for flow in flows[kind]) for kind in ("HC", "mHC"))
    title = f"64 layers, {len(flows['HC'])} seeds: HC's mixes gain up to {wild:,.0f}, mHC's {tame:.2f}"
    figure.suptitle(title, **HEADING)
    return figure
