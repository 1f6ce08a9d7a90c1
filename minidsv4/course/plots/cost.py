"""Pictures of notebook 12: parameters, bytes, time and dollars of the real models."""

from matplotlib.figure import Figure

from minidsv4.course.plots.style import COLOURS

MARKERS = ("o", "s", "D")
HATCHES = ("", "////")


def grouped_bars(series, title, xlabel, words, longest):
    """Horizontal bars from 0, a group a row.

    series   {name: (colour, {row: value})}, at most two; the same rows in each
    words    format of the label at a bar's end
    longest  right end of the axis
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.6))
    axes = figure.subplots()
    for number, ((name, (colour, values)), hatch) in enumerate(zip(series.items(), HATCHES)):
        places = [place + 0.4 * number for place in range(len(values))]
        look = {"color": COLOURS[colour], "hatch": hatch, "edgecolor": "white"}
        drawn = axes.barh(places, list(values.values()), 0.38, label=name, **look)
        axes.bar_label(drawn, [words.format(value) for value in values.values()], padding=3)
    middle = 0.2 * (len(series) - 1)
    axes.set_yticks([place + middle for place in range(len(values))], values)
    axes.set(title=title, xlabel=xlabel, xlim=(min(0, -0.01 * longest), longest))
    axes.invert_yaxis()
    if len(series) > 1:
        axes.legend(loc="lower right")
    return figure


def dots(series, title, xlabel, words, span):
    """Values on a log axis as dots, since a bar's length would mean nothing there.

    series   {name: (colour, {row: value})}; the rows of the first are all rows
    words    format of the label beside a dot
    span     ends of the axis
    returns  a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 2.8))
    axes = figure.subplots()
    _, rows = next(iter(series.values()))
    places = {row: place for place, row in enumerate(rows)}
    for (name, (colour, values)), marker in zip(series.items(), MARKERS):
        heights = [places[row] for row in values]
        axes.plot(list(values.values()), heights, marker, color=COLOURS[colour], label=name, markersize=6)
        for row, value in values.items():
            place = (value, places[row])
            label = axes.annotate(words.format(value), place, (7, 0), textcoords="offset points", va="center")
            label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.8})
    axes.set_yticks(range(len(rows)), rows)
    axes.set(title=title, xlabel=xlabel, xscale="log", xlim=span, ylim=(len(rows) - 0.5, -0.6))
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    if len(series) > 1:
        figure.legend(loc="outside lower center", ncols=len(series))
    return figure


def ratios_by_assumption(ratios, reported):
    """FLOPs of V3.2 over those of V4 under each assumption, beside what the report prints.

    ratios    {assumption: {model: ratio}}
    reported  {model: ratio}, two of them
    returns   a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 3.0))
    axes = figure.subplots()
    places = range(len(ratios))
    for (name, said), colour, marker in zip(reported.items(), ("query", "compressed"), MARKERS):
        found = [by_model[name] for by_model in ratios.values()]
        axes.axvline(said, ymax=0.9, color=COLOURS["masked"], linestyle="--")
        axes.annotate(f"report: {said}", (said, -0.75), ha="center", va="center", fontsize=8)
        axes.plot(found, places, marker, color=COLOURS[colour], label=name)
    axes.set_yticks(places, ratios)
    axes.set(xlabel="FLOPs of V3.2 over FLOPs of V4", xlim=(2, 11.5), ylim=(len(ratios) - 0.5, -1.1))
    axes.set_title("Only the discount for FP4 moves the ratio")
    axes.legend(loc="center", bbox_to_anchor=(0.5, 0.5))
    return figure


def device_time(steps, thousands):
    """How long memory and multiplying keep the devices busy for one token, a pair of bars a model.

    steps      {model: minidsv4.cost.roofline.Step}
    thousands  of tokens that each sequence holds, in 1024s
    returns    a matplotlib Figure
    """
    figure = Figure(figsize=(6.0, 3.0))
    axes = figure.subplots()
    busy = {}
    for place, (model, step) in enumerate(steps.items()):
        scale = 1e3 * step.n_devices / step.batch
        times = [scale * step.memory_seconds, scale * (step.matmul_seconds or 0.0)]
        busy[model] = max(times)
        for part, (colour, hatch) in enumerate(zip(("key", "query"), HATCHES)):
            look = {"color": COLOURS[colour], "hatch": hatch, "edgecolor": "white"}
            label = ("memory", "multiplying")[part] if place == 0 else None
            axes.barh(place + 0.4 * part - 0.2, times[part], 0.38, label=label, **look)
        words = f"on {step.n_devices}; waits for\n{step.bound}"
        axes.annotate(words, (busy[model], place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    device, share = step.device.name, 100 * busy["Flash"] / busy["V3.2"]
    what = "device time" if steps["Flash"].matmul_seconds else "time for memory"
    axes.set_title(f"Flash takes {share:.0f}% of V3.2's {what} at {thousands}K tokens")
    axes.set(yticks=range(len(steps)), yticklabels=steps, ylim=(len(steps) - 0.4, -0.6))
    axes.set(xlabel=f"device-milliseconds a token on {device}, batch of {step.batch}")
    axes.set(xlim=(0, 1.6 * max(busy.values())))
    axes.legend(loc="lower right")
    return figure
