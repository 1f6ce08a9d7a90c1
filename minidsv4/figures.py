"""The figures of figures/, drawn from the package: files for documents that cannot run a cell.

    python -m minidsv4.figures          draw them all
    python -m minidsv4.figures --check  say which file differs from what is drawn now

Letters are drawn as paths and no date is kept, so the same matplotlib writes the same text; another machine's last
digit may differ, which is why numbers are compared to 0.02 pt.
"""

import argparse
import io
import re
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from minidsv4 import plots
from minidsv4.config import Config
from minidsv4.cost import V32, flops, memory

HEADING = {"fontsize": 10, "fontweight": "bold", "x": 0.01, "ha": "left"}  # of a figure with several panels


def flops_and_cache():
    """The report's figure 1: FLOPs of one token and cache of one sequence against length, for V3.2, Pro and Flash."""
    n_tokens = 4000 * np.arange(1, 251)
    colours = {
        "V3.2": plots.COLOURS["masked"],
        "V4-Pro": plots.COLOURS["query"],
        "V4-Flash": plots.COLOURS["compressed"],
    }
    panels = {
        "Work for one more token": ("FP8-equivalent TFLOP", flops.decode, flops.weighted, 1e12),
        "Memory of one sequence": ("cache, GB", memory.cache, lambda held: sum(held.values()), 1e9),
    }
    figure = Figure(figsize=(6.0, 3.0))
    for axes, (title, (unit, amounts, total, scale)) in zip(figure.subplots(1, 2), panels.items()):
        curves = [total(amounts(model, n_tokens)) / scale for model in (V32(), Config.pro(), Config.flash())]
        for (name, colour), curve, style, lift in zip(colours.items(), curves, ("--", "-", "-."), (0, 5, -5)):
            axes.plot(n_tokens / 1000, curve, color=colour, linestyle=style, label=name)
            words = name if name == "V3.2" else f"{name}: 1/{curves[0][-1] / curve[-1]:.1f}"
            axes.annotate(words, (1000, curve[-1]), (4, lift), textcoords="offset points", color=colour, va="center")
        axes.set(xlabel="tokens in context, thousands", ylabel=unit, xlim=(0, 1000), ylim=(0, None))
        axes.set_title(title, fontweight="normal")
    figure.suptitle("At a million tokens V4 needs 1/4 to 1/14 of what V3.2 needs", **HEADING)
    return figure


FOLDER = Path(__file__).resolve().parents[1] / "figures"
FIGURES = {"00_map_of_the_model": plots.map_of_model, "12_the_bill": flops_and_cache}
TOLERANCE = 0.02  # points: a fiftieth of a line's width
NUMBER = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")


def draw(name):
    """The figure called name as the text of an SVG file."""
    plots.use_style()
    stream = io.StringIO()
    FIGURES[name]().savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def difference(stored, drawn):
    """What tells two SVG texts apart, in a sentence; None where the text agrees and the numbers do to 0.02 pt."""
    if NUMBER.sub("#", stored) != NUMBER.sub("#", drawn):
        return "the text differs"
    pairs = zip(NUMBER.findall(stored), NUMBER.findall(drawn), strict=True)
    largest = max((abs(float(first) - float(second)) for first, second in pairs), default=0.0)
    return f"a number differs by {largest:.3g} pt" if largest > TOLERANCE else None


def main(words=None):
    """Draw every figure, or compare them with the files; the exit status is 1 where one differs."""
    parser = argparse.ArgumentParser(prog="python -m minidsv4.figures", description="Draw the figures.")
    parser.add_argument("--check", action="store_true", help="write nothing, say what differs")
    check = parser.parse_args(words).check
    status = 0
    FOLDER.mkdir(exist_ok=True)
    for name in FIGURES:
        path = FOLDER / f"{name}.svg"
        drawn = draw(name)
        if not check:
            path.write_text(drawn, encoding="utf-8")
            continue
        found = difference(path.read_text(encoding="utf-8"), drawn) if path.exists() else "the file is missing"
        print(f"{name}: {found or 'as drawn'}")
        status = status or int(found is not None)
    return status


if __name__ == "__main__":
    sys.exit(main())
