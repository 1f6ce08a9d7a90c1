"""Picture of notebook 06: signals, gradients and gains through the depth of a stack."""

import numpy as np
from matplotlib.figure import Figure

from minidsv4.course.plots.style import COLOURS, HEADING


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
