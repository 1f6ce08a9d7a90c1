"""Pictures of notebook 16 draw the numbers that they are given."""

import numpy as np

from minidsv4.course import plots


def test_strategies_are_dots_at_their_bytes_and_tokens_from_little_to_much():
    figure = plots.storage_against_work({"zero": (0.5, 5000), "every 9": (1.0, 300), "full": (4.0, 4)}, "a title")
    (axes,) = figure.axes
    (line,) = axes.get_lines()
    assert line.get_xdata().tolist() == [0.5, 1.0, 4.0] and line.get_ydata().tolist() == [5000, 300, 4]
    assert [text.get_text() for text in axes.texts] == ["zero", "every 9", "full"]
    assert axes.get_xscale() == axes.get_yscale() == "log"


def test_the_cone_shows_each_row_of_streams_and_both_errors():
    right = np.array([[True, True, True], [False, True, True], [False, False, True]])
    figure = plots.cone(right, [1.0, 1e-3, 0.0, 0.0], [1.0, 1.0, 1.0, 0.5], "a title")
    stairs, errors = figure.axes
    assert stairs.collections[0].get_array().reshape(3, 3).tolist() == right.astype(float).tolist()
    assert [label.get_text() for label in stairs.get_yticklabels()] == ["input", "layer 0", "layer 1"]
    kept, overwritten, border = errors.get_lines()
    assert kept.get_ydata().tolist() == [1.0, 1e-3, 1e-12, 1e-12]  # what is less is rounding
    assert overwritten.get_ydata().tolist() == [1.0, 1.0, 1.0, 0.5] and border.get_xdata() == [3, 3]


def test_texts_are_rows_from_the_top_and_steps_are_columns():
    (axes,) = plots.texts_by_step({"A": [2, 3, 0], "B": [1, 2, 3]}, "a title").axes
    assert axes.collections[0].get_array().reshape(2, 3).tolist() == [[2, 3, 0], [1, 2, 3]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["A", "B"] and axes.yaxis_inverted()


def test_needles_are_dots_where_found_and_crosses_where_missed():
    (axes,) = plots.found_needles(np.array([1, 5, 9]), np.array([False, True, True]), 4, "a title").axes
    found, missed, border = axes.get_lines()
    assert (found.get_xdata().tolist(), found.get_ydata().tolist()) == ([1, 2], [5, 9])
    assert (missed.get_xdata().tolist(), missed.get_ydata().tolist()) == ([0], [1])
    assert list(border.get_ydata()) == [3.5, 3.5]


def test_lengths_are_shares_of_texts_up_to_each():
    (axes,) = plots.lengths_of_texts([1, 1, 3, 4], [1, 3], ([1, 3, 4], [0.5, 0.25, 0.25]), "a title").axes
    written, finished, expected = axes.get_lines()
    assert (written.get_xdata().tolist(), written.get_ydata().tolist()) == ([1, 3, 4], [0.5, 0.75, 1.0])
    assert finished.get_ydata().tolist() == [0.5, 1.0] and expected.get_ydata().tolist() == [0.5, 0.75, 1.0]
