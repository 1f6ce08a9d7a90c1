"""Pictures of notebook 15 draw the numbers that they are given."""

import numpy as np

from minidsv4.course import plots
from minidsv4.course.plots import needles


def test_each_length_is_a_row_of_needles_from_the_top():
    figure = plots.found_by_depth({1024: [1, 1, 1], 4096: [1, 0, 0.5]}, "a title")
    axes, bar = figure.axes
    assert axes.collections[0].get_array().reshape(2, 3).tolist() == [[1, 1, 1], [1, 0, 0.5]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1,024", "4,096"] and axes.yaxis_inverted()
    assert bar.get_ylabel() == "found"


def test_scores_show_the_picks_and_the_entries_of_the_fact():
    (axes,) = plots.scores_of_entries(np.array([1.0, 5.0, 2.0, 4.0]), [1, 3], [1, 2], "a title").axes
    every, picked, own = axes.get_lines()
    assert every.get_ydata().tolist() == [1, 5, 2, 4]
    assert (list(picked.get_xdata()), list(picked.get_ydata())) == ([1, 3], [5, 4])
    assert (list(own.get_xdata()), list(own.get_ydata())) == ([1, 2], [5, 2])


def test_a_choice_is_a_line_of_long_runs_and_a_mark_of_the_one_a_moment_ago():
    stored = {"CSA": {1024: 1.0, 1 << 20: 0.9}, "random": {1024: 0.1}}
    (axes,) = plots.found_by_choice(stored, {"random": (4096, 0.05)}, 1 / 32, "a title").axes
    csa, at_random, live, guess = axes.get_lines()
    assert (list(csa.get_xdata()), list(csa.get_ydata())) == ([1024, 1 << 20], [1.0, 0.9])
    assert list(at_random.get_ydata()) == [0.1]
    assert np.allclose(live.get_xdata(), 4096 * needles.STEP**-1.5) and list(live.get_ydata()) == [0.05]
    assert live.get_color() == at_random.get_color() and list(guess.get_ydata()) == [1 / 32, 1 / 32]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1K", "1M"]


def test_equal_shares_of_two_choices_are_points_side_by_side_that_stand_nearest_their_own_length():
    """Kind: a line that another one covers. HCA lay under the window, whose shares are the same at every length."""
    same = {1024: 0.1, 4096: 0.1, 16384: 0.1}
    (axes,) = plots.found_by_choice({name: same for name in needles.LOOKS}, {}, 1 / 32, "a title").axes
    places = np.array([line.get_xdata() for line in axes.get_lines()[:-1]])
    apart = np.abs(np.log(places[:, None] / places[None])) + np.eye(len(places))[..., None]
    assert apart.min() > np.log(1.07)
    assert np.array_equal(np.abs(np.log(places[..., None] / np.array([*same]))).argmin(-1), [[0, 1, 2]] * len(places))


def test_costs_are_lines_of_megabytes_and_milliseconds():
    kept, spent = {"V4": [1e6, 2e6], "all heads": [4e6, 8e6]}, {"one more": [1e-3, 3e-3], "reading": [1e-5, 2e-5]}
    left, right = plots.cost_by_length([1024, 4096], kept, spent, "a title").axes
    assert [line.get_ydata().tolist() for line in left.get_lines()] == [[1, 2], [4, 8]]
    assert np.allclose([line.get_ydata() for line in right.get_lines()], [[1, 3], [0.01, 0.02]])
    assert [line.get_label() for line in left.get_lines()] == ["V4", "all heads"]
