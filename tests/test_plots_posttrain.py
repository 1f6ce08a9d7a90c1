"""Pictures of notebook 18 draw the numbers that they are given."""

import numpy as np

from minidsv4.course import plots
from minidsv4.course.plots.posttrain import running_mean

MODES = ("none", "high", "max")


def test_a_running_mean_takes_the_last_ones_up_to_each_and_fewer_at_the_start():
    assert running_mean([1, 3, 5, 9], 2).tolist() == [1, 2, 4, 7]


def test_learning_curves_have_a_column_a_task_and_a_line_a_mode():
    record = {f"{part}, {mode}": number for part in ("right", "thought") for number, mode in enumerate(MODES)}
    figure = plots.learning_curves({"sum": [record] * 3, "run": [record] * 3}, "a title", 2)
    assert len(figure.axes) == 4 and all(len(axes.get_lines()) == 3 for axes in figure.axes)
    for axes in figure.axes:
        assert [line.get_ydata().tolist() for line in axes.get_lines()] == [[0] * 3, [1] * 3, [2] * 3]


def test_learning_curves_have_no_line_for_a_mode_that_was_not_trained():
    record = {"right, high": 0.5, "thought, high": 8.0}
    figure = plots.learning_curves({"sum": [record] * 3}, "a title", 2)
    assert [[line.get_label() for line in axes.get_lines()] for axes in figure.axes] == [["high"], ["high"]]


def test_scores_are_bars_with_two_standard_deviations():
    found = {"sum": {"base": (0.3, 0.05), "mean": (0.6, 0.1)}, "run": {"base": (0.2, 0.0), "mean": (0.5, 0.0)}}
    (axes,) = plots.scores(found, {"base": "the base", "mean": "the mean"}, "a title").axes
    assert [bar.get_width() for bar in axes.patches] == [0.3, 0.6, 0.2, 0.5]
    ends = np.concatenate([part.get_segments()[0][:, 0] for part in axes.collections])
    assert np.allclose(ends[:2], [0.2, 0.4])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["the base", "the mean"]


def test_thinking_is_a_line_a_model_and_a_mark_for_the_mode_that_does_not_think():
    found = {"sum": {"base": [0.1, 0.2, 0.4]}, "run": {"base": [0.0, 0.0, 0.3]}}
    axes, other = plots.thinking(found, {"sum": {"base": 0.15}, "run": {"base": 0.05}}, "a title").axes
    line, mark = axes.get_lines()
    assert line.get_xdata().tolist() == [0, 1, 2] and line.get_ydata().tolist() == [0.1, 0.2, 0.4]
    assert (list(mark.get_xdata()), list(mark.get_ydata())) == ([0], [0.15])
    assert [list(one.get_ydata()) for one in other.get_lines()] == [[0.0, 0.0, 0.3], [0.05]]
    assert [one.get_title() for one in (axes, other)] == ["sum", "run"]


def test_noise_marks_both_parts_of_both_estimates_a_mark_a_seed():
    seed = {"full": {"signal": 1.0, "noise": 0.5}, "sampled": {"signal": 1.1, "noise": 9.0}}
    (axes,) = plots.noise([seed, seed], "a title").axes
    assert [list(line.get_xdata()) for line in axes.get_lines()] == [[1.0] * 2, [1.1] * 2, [0.5] * 2, [9.0] * 2]
    assert axes.get_xscale() == "log"


def test_the_drawings_of_both_ways_name_what_they_compute():
    for figure, word in ((plots.grpo_shapes(), "advantages"), (plots.distillation_shapes(), "KL(p || q)")):
        assert any(word in text.get_text() for axes in figure.axes for text in axes.texts)
