"""What a notebook shows: pictures, source listings, questions, checks and exercises, the same on every machine.

Everything returned here has a text form that nbval compares word by word, so it states facts and rounded numbers only.
"""

import inspect
import io
import math
import textwrap

import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import BarContainer

from minidsv4 import paper
from minidsv4.course import plots

# what notebooks show, from the files beside this one
from minidsv4.course.checks import breaks as breaks
from minidsv4.course.checks import check as check
from minidsv4.course.checks import exercise as exercise
from minidsv4.course.checks import exercise_of as exercise_of
from minidsv4.course.questions import predict as predict
from minidsv4.course.record import record as record
from minidsv4.course.sliders import explore as explore
from minidsv4.course.tables import Table as Table


def setup(seed=0):
    """Make a notebook repeatable: float64, one thread, a seed, short numbers, the shared style of pictures.

    seed  start of torch's random numbers; a cell that draws sets its own again
    """
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    torch.set_printoptions(precision=3, sci_mode=False, linewidth=100)
    np.set_printoptions(precision=3, suppress=True, linewidth=100)
    plots.use_style()


class Picture:
    """A finished figure: a PNG with alternative text, and in plain text the same words with the drawn numbers' ranges.

    figure  matplotlib Figure; pyplot's window is closed, so that Jupyter does not draw it a second time
    alt     what a reader who cannot see it should know, in a sentence
    raises  ValueError for an empty alt, and for bars whose lengths run along a log axis
    """

    def __init__(self, figure, alt):
        if not isinstance(alt, str) or len(alt.split()) < 3:
            raise ValueError(f"alt={alt!r} should say in a sentence what the picture shows")
        if any(_has_bars_on_log(axes) for axes in figure.axes):
            raise ValueError("figure has bars on a log axis, where lengths mean nothing; draw dots")
        self.alt, self.figure = alt, figure
        pyplot.close(figure)

    def png(self):
        """The picture as PNG bytes, the same on every call."""
        FigureCanvasAgg(self.figure)
        stream = io.BytesIO()
        self.figure.savefig(stream, format="png", dpi=plots.DPI)
        return stream.getvalue()

    def _repr_png_(self):
        width, height = (round(100 * inches) for inches in self.figure.get_size_inches())
        return self.png(), {"alt": self.alt, "width": width, "height": height}

    def __repr__(self):
        facts = [fact for axes in self.figure.axes if axes.axison for fact in _facts(axes)]
        return "\n".join([self.alt, *facts])


def _has_bars_on_log(axes):
    """True where the length of a bar is measured on a log scale."""
    scales = {"horizontal": axes.get_xscale(), "vertical": axes.get_yscale()}
    return any(scales[bars.orientation] == "log" for bars in axes.containers if isinstance(bars, BarContainer))


def _facts(axes):
    """One line for each curve and each map of numbers in the axes."""
    for line in axes.get_lines():
        name = "" if line.get_label().startswith("_") else f" '{line.get_label()}'"
        yield f"line{name}: {len(line.get_xdata())} points, {_span(line.get_ydata())}"
    for image in [*axes.collections, *axes.images]:
        if image.get_array() is not None:
            shape = " x ".join(str(size) for size in np.shape(image.get_array()))
            yield f"map: {shape} values, {_span(image.get_array())}"


def _span(values):
    """'from 0.1 to 2.3', to three digits of the larger end, so that the last bits of a sum do not show."""
    values = np.ma.masked_invalid(np.asarray(values, dtype=float)).compressed()
    if not values.size:
        return "no value"
    largest = max(abs(values.min()), abs(values.max()))
    digits = 2 - math.floor(math.log10(largest)) if largest else 0
    low, high = (f"{round(float(end), digits):z.6g}" for end in (values.min(), values.max()))
    return f"from {low} to {high}"


def map_of_model(lit=None):
    """The map of the whole model with one part lit, as a Picture; lit is None or one of plots.PARTS."""
    here = f"Lit: {lit}." if lit else "No part is lit."
    words = (
        "Map of DeepSeek-V4. Token ids, embedding, four residual streams, blocks, collapse, norm, logits; an MTP block "
        "branches off the streams. Inside a block, attention and then experts read a collapse of the streams and are "
        "mixed back. Attention reads queries, window entries, compressed entries that an indexer picks, and a sink, "
        "above the cache that keeps them. "
    )
    return Picture(plots.map_of_model(lit), alt=words + here)


class Listing:
    """Source text, shown as Python."""

    def __init__(self, text):
        self.text = text

    def _repr_markdown_(self):
        return f"```python\n{self.text}\n```"

    def __repr__(self):
        return self.text


def source(*things):
    """The source of functions, methods or classes of the package, as it stands there.

    returns  Listing, each file's name above what comes from it, and above a method its class
    """
    files = {}
    for thing in map(inspect.unwrap, things):
        name = f"# {thing.__module__.replace('.', '/')}.py"
        text = textwrap.dedent(inspect.getsource(thing)).rstrip()
        owner = thing.__qualname__.rpartition(".")[0]
        if owner:
            text = f"# in class {owner}\n{text}"
        files.setdefault(name, []).append(text)
    return Listing("\n\n\n".join(f"{name}\n" + "\n\n\n".join(texts) for name, texts in files.items()))


def equations():
    """The report's numbered equations: the loop in `paper.py` that defines each, its PyTorch form, and where it stands.

    returns  Table
    """
    rows = [
        (f"({number})", f"`{loop.__name__}`", f"`{operation}`", file)
        for number, (loop, operation, file) in paper.EQUATIONS.items()
    ]
    return Table(("equation", "loop in `paper.py`", "PyTorch form", "file"), rows)
