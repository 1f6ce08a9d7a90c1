"""Pictures of few bits draw the numbers that they are given, in the colours that they name."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from minidsv4.course import plots

X = np.linspace(-1, 1, 5)
COSTS = {"source, 2.5 bits": {"rounded afterwards": [2.0, 1.5], "QAT": [1.0, 0.5]}}
CURVES = {"4.25 bits": [11.0, 16.0, 9.0], "2.5 bits": [41.0, 30.0, 28.0]}
PICTURES = {
    "staircase": lambda: plots.staircase(X, X.round(), "title"),
    "error_by_bits": lambda: plots.error_by_bits({2.5: 46.0, 3.5: 20.0}, (4.25, 12.0), "title"),
    "survivors": lambda: plots.survivors([14, 15], [0.5, 1.0], np.array([[1, 0], [1, 1]]), "title"),
    "kept_picks": lambda: plots.kept_picks((1, 4), {"with": np.ones((2, 3)), "without": np.zeros((2, 3))}, "title"),
    "learning_to_be_rounded": lambda: plots.learning_to_be_rounded(CURVES, "title"),
    "cost_of_rounding": lambda: plots.cost_of_rounding(COSTS, "title"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_every_word_stays_in_the_figure(name):
    plots.use_style()
    figure = PICTURES[name]()
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    box = figure.get_tightbbox(renderer)
    width, height = figure.get_size_inches()
    assert box.x0 >= -0.01 and box.y0 >= -0.01 and box.x1 <= width + 0.01 and box.y1 <= height + 0.01


def test_what_is_lost_is_red_and_what_is_kept_green():
    figure = PICTURES["survivors"]()
    (drawn,) = figure.axes[0].collections
    found = [to_hex(colour) for colour in drawn.to_rgba(np.array([0, 1]))]
    assert found == [to_hex(patch.get_facecolor()) for patch in reversed(figure.legends[0].get_patches())]
    assert np.asarray(drawn.get_array()).ravel().tolist() == [1, 0, 1, 1]


def test_a_mean_is_drawn_over_its_layers():
    shares = np.array([[0.9, 0.8, 0.7], [0.6, 0.5, 0.1]])
    figure = plots.kept_picks((1, 4), {"with": shares, "without": shares / 2}, "title")
    named = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines if line.get_label()[0] != "_"}
    np.testing.assert_allclose(named["with"], [80, 40])
    np.testing.assert_allclose(named["without"], [40, 20])


def test_a_seed_is_a_dot_of_its_own_in_the_row_of_its_kind():
    axes = PICTURES["cost_of_rounding"]().axes[0]
    dots = {line.get_label(): line.get_xdata() for line in axes.lines if line.get_label()[0] != "_"}
    assert {name: list(values) for name, values in dots.items()} == COSTS["source, 2.5 bits"]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(COSTS)
