"""What a notebook shows: pictures, source listings, checks and exercises, the same on every machine.

Everything returned here has a text form that nbval compares word by word, so it states facts and rounded numbers only.

An exercise is three cells, which a test finds by the exercise's name (tests/test_notebooks.py):
1. a code cell whose first line is `# exercise: NAME`; it defines the function NAME with the body `return ...`;
2. a code cell with `show.exercise(NAME, (arguments, wanted), ...)`;
3. a markdown cell with `<details><summary>Solution: NAME</summary>`, a ```python listing of NAME, `</details>`.
Stub, solution and check may use what the notebook's first code cell defines, and nothing from the cells between.
"""

import inspect
import io
import math
import os
import textwrap

import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg

from minidsv4 import paper
from minidsv4.course import plots
from minidsv4.course.record import record as record  # a part of what notebooks show


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
    raises  ValueError for an empty alt
    """

    def __init__(self, figure, alt):
        if not isinstance(alt, str) or len(alt.split()) < 3:
            raise ValueError(f"alt={alt!r} should say in a sentence what the picture shows")
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

    returns  Listing, each file's name above what comes from it
    """
    files = {}
    for thing in map(inspect.unwrap, things):
        name = f"# {thing.__module__.replace('.', '/')}.py"
        files.setdefault(name, []).append(textwrap.dedent(inspect.getsource(thing)).rstrip())
    return Listing("\n\n\n".join(f"{name}\n" + "\n\n\n".join(texts) for name, texts in files.items()))


class Table:
    """Rows of text under a heading each, shown as a table."""

    def __init__(self, headings, rows):
        self.rows = [tuple(headings), *map(tuple, rows)]

    def _repr_markdown_(self):
        lines = [f"| {' | '.join(row)} |" for row in self.rows]
        lines.insert(1, "|---" * len(self.rows[0]) + "|")
        return "\n".join(lines)

    def __repr__(self):
        return "\n".join("  ".join(row) for row in self.rows)


def equations():
    """The report's numbered equations: the loop in `paper.py` that defines each, its PyTorch form, and where it stands.

    returns  Table
    """
    rows = [
        (f"({number})", f"`{loop.__name__}`", f"`{operation}`" if file else "not here yet", file)
        for number, (loop, operation, file) in paper.EQUATIONS.items()
    ]
    return Table(("equation", "loop in `paper.py`", "PyTorch form", "file"), rows)


def explore(draw, **ranges):
    """Draw a picture, and where the notebook runs live (`make lab`) sliders above it that draw it anew.

    draw     function from one value of each range to a Picture
    ranges   name of an argument = the values it may take; the first of each makes the static picture
    returns  the static Picture
    """
    for name, values in ranges.items():
        if not len(values):
            raise ValueError(f"{name}={values!r} should hold at least one value")
    ranges = {name: list(values) for name, values in ranges.items()}
    picture = draw(**{name: values[0] for name, values in ranges.items()})
    if os.environ.get("MINIDSV4_LIVE"):
        _show_sliders(draw, ranges, picture)
    return picture


def _show_sliders(draw, ranges, picture):
    """One slider a range, above an image that follows them; they need the extra `lab`."""
    import ipywidgets
    from IPython.display import display

    image = ipywidgets.Image(value=picture.png(), format="png", width=_width(picture))
    sliders = {
        name: ipywidgets.SelectionSlider(options=values, description=name, continuous_update=False)
        for name, values in ranges.items()
    }

    def follow(_change):
        image.value = draw(**{name: slider.value for name, slider in sliders.items()}).png()

    for slider in sliders.values():
        slider.observe(follow, names="value")
    display(ipywidgets.VBox([*sliders.values(), image]))


def _width(picture):
    return picture._repr_png_()[1]["width"]


def check(sentence, got, want=True, within=None):
    """Print the sentence with a tick, or stop with it and the two values.

    sentence  what holds, in words that carry the tolerance's reason where there is one
    got       a truth value, a number, an array or a tensor
    want      what it should be: the same shape
    within    None for equality, or the largest absolute difference allowed
    raises    AssertionError naming the sentence and what was found
    """
    difference = _difference(got, want, within)
    assert difference is None, f"not so: {sentence}. {difference}"
    print(f"✓ {sentence}" + (f" (to {within:.0e})" if within else ""))


def _difference(got, want, within):
    """What tells got from want, in a sentence; None where they agree."""
    got, want = (value.detach().cpu().numpy() if torch.is_tensor(value) else value for value in (got, want))
    try:
        left, right = np.asarray(got), np.asarray(want)
    except ValueError:  # ragged lists are compared as they are
        return None if got == want else f"It is {_short(got)}, it should be {_short(want)}"
    if left.shape != right.shape:
        return f"It has the shape {left.shape}, it should have {right.shape}: {_short(want)}"
    close = np.array_equal(left, right) if within is None else np.allclose(left, right, rtol=0, atol=within)
    return None if close else f"It is {_short(got)}, it should be {_short(want)}"


def _short(value):
    """A value in a line or two: arrays by their first few numbers."""
    value = value.detach().cpu().numpy() if torch.is_tensor(value) else value
    if isinstance(value, np.ndarray):
        return np.array2string(value, precision=3, threshold=12, edgeitems=3)
    return f"{value:z.4g}" if isinstance(value, float) else repr(value)


def exercise(answer, *cases, within=1e-9):
    """Say how an exercise stands: not done yet, wrong for a case, or correct. Never raises, so a notebook runs on.

    answer  the function to write; its stub's body is `return ...`
    cases   pairs (arguments, wanted): a tuple of arguments and what answer(*arguments) should be
    within  largest absolute difference allowed
    """
    name = f"exercise {answer.__name__}"
    for arguments, wanted in cases:
        call = f"{answer.__name__}({', '.join(_short(argument) for argument in arguments)})"
        try:
            got = answer(*arguments)
        except Exception as error:  # whatever a learner's code raises is the message
            return print(f"{name}: {call} stopped with {type(error).__name__}: {error}")
        if got is ...:
            return print(f"{name}: not done yet")
        if difference := _wrong(got, wanted, within):
            return print(f"{name}: {call} is not right yet. {difference}")
    print(f"{name}: correct in {len(cases)} of {len(cases)} cases")


def _wrong(got, wanted, within):
    """_difference for answers of any kind: words and None are compared as they are."""
    try:
        return _difference(got, wanted, within)
    except TypeError:
        return None if got == wanted else f"It is {_short(got)}, it should be {_short(wanted)}"
