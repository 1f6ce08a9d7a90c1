"""What notebooks show is the same at every run, and their checks and exercises say what is wrong."""

import base64
import re

import nbformat
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from nbclient import NotebookClient

from minidsv4.course import checks, plots, questions, show, sliders
from minidsv4.course.live import STATIC


def curve(power=2, low=0.0):
    """A picture of three points and a map of 2 x 3 numbers."""
    figure = Figure(figsize=(4, 2))
    axes = figure.add_subplot()
    axes.plot([0, 1, 2], [low, 1, 2**power], label="growth")
    axes.pcolormesh(np.arange(6.0).reshape(2, 3))
    return show.Picture(figure, alt=f"A curve that rises with power {power}.")


def test_a_picture_says_in_words_what_is_drawn():
    wanted = [
        "A curve that rises with power 3.",
        "line 'growth': 3 points, from 0 to 8",
        "map: 2 x 3 values, from 0 to 5",
    ]
    assert repr(curve(3)).splitlines() == wanted


def test_the_last_bits_of_a_number_do_not_reach_the_words():
    assert repr(curve(2, low=1e-17)) == repr(curve(2, low=-3e-17)) == repr(curve(2))
    assert repr(curve(2, low=0.1)) != repr(curve(2))


def test_a_picture_has_the_same_bytes_twice_and_carries_its_alternative_text_and_size():
    (first, metadata), (second, _) = curve()._repr_png_(), curve()._repr_png_()
    assert first == second and first.startswith(b"\x89PNG")
    assert metadata == {"alt": "A curve that rises with power 2.", "width": 400, "height": 200}
    assert int.from_bytes(first[16:20]) == 4 * plots.DPI


def test_a_picture_closes_its_figure_so_that_it_is_not_drawn_twice():
    figure, _ = pyplot.subplots()
    show.Picture(figure, alt="An empty pair of axes.")
    assert not pyplot.fignum_exists(figure.number)


@pytest.mark.parametrize("alt", ["", "a plot", None])
def test_a_picture_without_a_sentence_for_those_who_cannot_see_it_is_refused(alt):
    with pytest.raises(ValueError, match="alt=.* should say in a sentence"):
        show.Picture(Figure(), alt=alt)


@pytest.mark.parametrize(("kind", "scale"), [("bar", "yscale"), ("barh", "xscale")])
def test_bars_on_a_log_axis_are_refused_and_on_the_other_axis_are_not(kind, scale):
    figure = Figure()
    axes = figure.subplots()
    getattr(axes, kind)([1, 2], [10, 100])
    show.Picture(figure, alt="Two bars from zero.")
    axes.set(**{scale: "log"})
    with pytest.raises(ValueError, match="bars on a log axis"):
        show.Picture(figure, alt="Two bars from nowhere.")
    axes.set(xscale="log" if scale == "yscale" else "linear", yscale="log" if scale == "xscale" else "linear")
    show.Picture(figure, alt="Two bars whose places are on a log axis.")


def test_a_listing_is_the_source_headed_by_its_file_and_a_methods_class():
    """Kind: which of two; before, a listing had two `forward`s and did not say whose."""
    listing = show.source(show.Listing.__repr__)
    assert repr(listing) == "# minidsv4/course/show.py\n# in class Listing\ndef __repr__(self):\n    return self.text"
    assert listing._repr_markdown_() == f"```python\n{listing}\n```"


def test_several_sources_stand_in_one_listing_and_each_file_is_named_once():
    listing = show.source(show.Listing.__repr__, show.map_of_model, plots.use_style)
    lines = str(listing).splitlines()
    heads = [line for line in lines if line.startswith(("# ", "def "))]
    assert heads == [
        "# minidsv4/course/show.py",
        "# in class Listing",
        "def __repr__(self):",
        "def map_of_model(lit=None):",
        "# minidsv4/course/plots/style.py",
        "def use_style():",
    ]


@pytest.fixture
def shown(monkeypatch):
    """What is displayed while show believes that a reader sits in front of it."""
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    monkeypatch.setattr(sliders, "is_live", lambda: True)
    monkeypatch.setattr(questions, "is_live", lambda: True)
    monkeypatch.setattr(questions, "_answered", {})
    return shown


def png_and_alt(widget):
    """The PNG bytes and the alternative text of an image in an HTML widget."""
    alt, data = re.fullmatch(r'<img width="400" alt="(.*)" src="data:image/png;base64,(.*)">', widget.value).groups()
    return base64.b64decode(data), alt


def test_explore_gives_the_picture_of_the_start_values_in_a_checked_run():
    assert repr(show.explore(curve, power=[3, 4], low=(0, 1))) == repr(curve(3))
    assert repr(show.explore(curve, start={"power": 4}, power=[3, 4], low=(0, 1))) == repr(curve(4))


def test_explore_shows_one_picture_live_and_it_follows_its_controls_with_its_alternative_text(shown):
    result = show.explore(curve, units={"power": "steps"}, start={"power": 3}, power=[2, 3, 4], low=(0, 1))
    assert result is None and len(shown) == 2
    power, low, image = shown[1].children[1].children
    assert png_and_alt(image) == (curve(3, 0).png(), curve(3, 0).alt)
    power.value, low.value = 4, 1
    assert png_and_alt(image) == (curve(4, 1).png(), curve(4, 1).alt)
    assert [label for label, _ in power.options] == ["2 steps", "3 steps", "4 steps"]


@pytest.mark.parametrize(
    ("unit", "said"),
    [("tokens", ["1 token", "2 tokens"]), ("tokens/s", ["1 tokens/s", "2 tokens/s"]), ("", ["1", "2"])],
)
def test_a_slider_counts_one_in_the_singular(unit, said, shown):
    show.explore(lambda **_: curve(), units={"n": unit}, n=[1, 2])
    assert [label for label, _ in shown[1].children[1].children[0].options] == said


def test_what_a_saved_notebook_shows_without_its_kernel_is_hidden_by_the_widget_that_it_stands_for(shown):
    """Kind: a saved copy whose pictures and questions are an error message."""
    show.explore(curve, power=[3, 4])
    show.predict("What does it do?", **CHOICES)
    explored, sliders_widget, _, asked, question_widget = shown
    picture = base64.b64encode(curve(3).png()).decode()
    assert f'alt="{curve(3).alt}" src="data:image/png;base64,{picture}"' in explored.data
    assert "- it grows\n" in asked.data and "<summary>Answer</summary>" in asked.data
    for stored, widget in ((explored, sliders_widget), (asked, question_widget)):
        name = re.match(r'<div class="(minidsv4-stored-\w+)">\n\n', stored.data)[1]
        assert widget.children[0].value == f"<style>.{name} {{ display: none; }}</style>"
        assert "Run All Cells" in stored.data and stored.data.endswith("\n\n</div>")
    assert explored.data.split('"')[1] != asked.data.split('"')[1]


def test_explore_offers_numbers_on_a_slider_and_words_in_a_menu(shown):
    show.explore(lambda **_: curve(), n_tokens=range(1, 4), device=["B200", "A3"], shared=[True, False])
    controls = [(type(control).__name__, control.description) for control in shown[1].children[1].children[:-1]]
    assert controls == [("SelectionSlider", "n tokens"), ("Dropdown", "device"), ("Dropdown", "shared")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"power": []}, r"power=\[\] should hold at least one value"),
        ({"power": [3, 2]}, r"power=\[3, 2\] should ascend"),
        ({"power": [2, 2]}, r"power=\[2, 2\] should ascend"),
        ({"power": [2, "many"]}, "mixes numbers with words"),
        ({"power": [2, 3], "start": {"power": 4}}, r"start has power=4, it should be one of \[2, 3\]"),
        ({"power": [2, 3], "start": {"low": 4}}, "start names low, the ranges are power"),
        ({"power": [2, 3], "units": {"low": "nats"}}, "units names low, the ranges are power"),
    ],
)
def test_explore_refuses_ranges_that_no_control_can_show(arguments, message):
    with pytest.raises(ValueError, match=message):
        show.explore(curve, **arguments)


CHOICES = {"choices": ("it grows", "it `shrinks`"), "right": "it grows", "why": "It only adds."}
NUMBER = {"number": 1200.0, "within": 0.5, "unit": "tokens", "why": "Counted."}


def test_a_question_is_complete_with_its_answer_folded_in_a_checked_run(monkeypatch, capsys):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    show.predict("What does it do?", **CHOICES)
    show.predict("How many?", **NUMBER)
    folded = "<details><summary>Answer</summary>\n\n{}\n\n</details>"
    assert [question._repr_markdown_() for question in shown] == [
        "**Predict:** What does it do?\n\n- it grows\n- it `shrinks`\n\n"
        + folded.format("**it grows.** It only adds."),
        "**Predict:** How many?\n\n" + folded.format("**1,200 tokens.** Counted."),
    ]
    assert repr(shown[0]).splitlines()[1:] == ["- it grows", "- it `shrinks`", "Answer: **it grows.** It only adds."]


def parts(widget):
    """The form's controls, the curtain that hides what follows, and the verdict, of a question's widget."""
    form, curtain, verdict = widget.children[1].children
    return form.children, curtain, verdict


def test_a_live_question_hides_what_follows_until_it_is_answered_and_keeps_the_score(shown):
    for name in "abc":
        show.predict(f"What does {name} do?", **CHOICES)
    widgets = shown[2::3]
    for widget, press, said in zip(widgets, (0, 1, 2), ("✓ Right.", "✗ Not so.", "✗ Not so.")):
        controls, curtain, verdict = parts(widget)
        assert [button.description for button in controls] == ["it grows", "it shrinks", "tell me the answer"]
        assert "display: none" in curtain.value and not verdict.outputs
        controls[press].click()
        assert curtain.value == "" and widget.children[1].children[0].layout.display == "none"
        assert verdict.outputs[0]["data"]["text/markdown"].startswith(f"{said} **it grows.** It only adds.")
    assert "1 of 3 so far" in verdict.outputs[0]["data"]["text/markdown"]
    show.predict("What does a do?", **CHOICES)
    _, curtain, verdict = parts(shown[-1])
    assert curtain.value == "" and "1 of 3 so far" in verdict.outputs[0]["data"]["text/markdown"]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("1200", "✓"),
        (" 1,200.5 tokens", "✓"),
        ("1.2e3", "✓"),
        ("1200.6", "✗"),
        ("1,20", None),
        ("many", None),
        ("nan", None),
    ],
)
def test_a_number_is_read_as_people_type_it_and_anything_else_leaves_the_question_open(shown, typed, said):
    show.predict("How many?", **NUMBER)
    controls, curtain, verdict = parts(shown[2])
    field, note, _ = controls[0].children
    field.value = typed
    if said is None:
        assert curtain.value and not verdict.outputs and "type a number" in note.value
    else:
        assert not curtain.value and verdict.outputs[0]["data"]["text/markdown"].startswith(said)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": " "}, "question=' ' should be a text"),
        ({"why": ""}, "why='' should be a text"),
        ({"choices": ("a",)}, "choices=.* should be two or more"),
        ({"choices": "ab"}, "choices='ab' should be two or more"),
        ({"choices": ("it grows", "it grows")}, "choices=.* should be two or more different"),
        ({"choices": ("it grows", "$n$")}, "without formulas"),
        ({"choices": ("it grows", 3)}, "choices=3 should be a text"),
        ({"right": "it stays"}, "right='it stays' should be one of the choices"),
        ({"number": 3.0}, "number=3.0 should be left out"),
        ({"choices": None, "number": 3, "within": 1}, "right='it grows' should be left out"),
        ({"choices": None, "right": None}, "number=None should be a finite number"),
        ({"choices": None, "right": None, "number": float("inf")}, "number=inf should be a finite number"),
        ({"choices": None, "right": None, "number": 3}, "within=None should be the largest"),
        ({"choices": None, "right": None, "number": 3, "within": -1}, "within=-1 should be the largest"),
        ({"choices": None, "right": None, "number": 3, "within": 1, "unit": 8}, "unit=8 should be a text"),
    ],
)
def test_arguments_of_which_no_question_can_be_made_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        show.predict(**({"question": "What does it do?"} | CHOICES | change))


@pytest.mark.slow
@pytest.mark.parametrize("static", ["", "1"])
def test_a_kernel_is_live_unless_a_checked_run_says_otherwise(static, monkeypatch, tmp_path):
    source = f"from minidsv4.course import show\nshow.predict('How many?', **{NUMBER})"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    monkeypatch.setenv(STATIC, static)
    NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    kinds = [kind for output in notebook.cells[0].outputs for kind in output.data]
    assert ("application/vnd.jupyter.widget-view+json" in kinds) == (not static)


def test_a_planned_failure_is_said_and_does_not_stop_the_notebook(capsys):
    show.breaks("two and two are four", 5, 4)
    assert capsys.readouterr().out == "✗ not so, as meant: two and two are four. It is 5, it should be 4\n"
    with pytest.raises(AssertionError, match="it holds all the same: two and two are four"):
        show.breaks("two and two are four", 4.05, 4, within=0.1)


def test_a_check_that_holds_prints_its_sentence_and_tolerance(capsys):
    show.check("two and two are four", 2 + 2, 4)
    show.check("halves add up", torch.tensor([0.5, 0.5 + 1e-12]), np.array([0.5, 0.5]), within=1e-9)
    show.check("it is so", torch.tensor(True))
    assert capsys.readouterr().out == "✓ two and two are four\n✓ halves add up (to 1e-09)\n✓ it is so\n"


@pytest.mark.parametrize(
    ("got", "want", "within"),
    [
        (5, 4, None),
        (False, True, None),
        (1.1, 1.0, 0.05),
        ([1, 2], [1, 3], None),
        (np.nan, 1.0, 1e-3),
        ([1, 1], 1, 0.1),
    ],
)
def test_a_check_that_does_not_hold_stops_with_both_values(got, want, within):
    with pytest.raises(AssertionError, match="not so: it holds. It .* should"):
        show.check("it holds", got, want, within)


def half(x):
    return x / 2


CASES = [((4,), 2), ((torch.tensor([1.0, 3.0]),), [0.5, 1.5])]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (half, "correct in 2 of 2 cases"),
        (lambda x: ..., "not done yet"),
        (lambda x: x / 4, "(4) is not right yet. It is 1, it should be 2"),
        (
            lambda x: 2 if isinstance(x, int) else x,
            "([1. 3.]) is not right yet. It is [1. 3.], it should be [0.5, 1.5]",
        ),
        (lambda x: None, "(4) is not right yet. It returned None: is a `return` missing?"),
        (lambda x: {2}, "(4) is not right yet. It is of type set, it should be of type int: 2"),
        (lambda x: x.no, "(4) stopped with AttributeError: 'int' object has no attribute 'no'"),
    ],
)
def test_an_exercise_says_how_it_stands_and_never_raises(answer, said, capsys):
    answer.__name__ = "half"
    show.exercise(answer, *CASES)
    assert capsys.readouterr().out.removeprefix("exercise half").removeprefix(": ").removeprefix("half") == said + "\n"


GRID = np.arange(24.0).reshape(4, 3, 2)


@pytest.mark.parametrize(
    ("got", "wanted", "said"),
    [
        (None, (3, 4), "It returned None: is a `return` missing?"),
        (None, {"a": 1}, "It returned None: is a `return` missing?"),
        (None, None, None),
        ({3, 4}, (3, 4), "It is of type set, it should be of type tuple: (3, 4)"),
        ("34", [3, 4], "It is of type str, it should be of type list: [3, 4]"),
        ({3: 4}, [[3], [4, 5]], "It is of type dict, it should be of type list: [[3], [4, 5]]"),
        ([3, 4], {3: 4}, "It is of type list, it should be of type dict: {3: 4}"),
        (range(3, 5), [3, 4], None),
        (3, (3, 4), "It is 3, due is the shape (2,): (3, 4)"),
        (GRID[0], GRID, "It has the shape (3, 2), it should have (4, 3, 2)"),
        (GRID[::-1], torch.tensor(GRID), "Its shape (4, 3, 2) is right. At [0, 0, 0] it is 18, due is 0."),
        (GRID + (GRID == 21), GRID, "Its shape (4, 3, 2) is right. At [3, 1, 1] it is 22, due is 21."),
        ([0] * 20, [0] * 19 + [1], "Its shape (20,) is right. At [19] it is 0, due is 1."),
        ([[0.5, 1], [2, 3]], np.eye(2), "It is [[0.5, 1], [2, 3]], it should be [[1. 0.] [0. 1.]]"),
    ],
)
def test_an_answer_is_told_from_the_due_one_by_type_shape_or_first_wrong_place(got, wanted, said):
    assert checks.wrong(got, wanted, 1e-9) == said


def test_a_wrong_answer_is_told_in_one_line_however_large_its_arguments(capsys):
    show.exercise(half, (((GRID, None), [GRID[0]]), GRID))
    said = capsys.readouterr().out
    assert said == (
        "exercise half: half((array [4, 3, 2], None), [[[0. 1.] [2. 3.] [4. 5.]]]) stopped with TypeError: half() takes"
        " 1 positional argument but 2 were given\n"
    )


def remembered(x):
    return {4: 2}.get(x, 2)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (half, "correct in 1 of 1 cases and for 10 fresh inputs"),
        (remembered, "correct in 1 of 1 cases, but for a fresh input remembered("),
    ],
)
def test_an_answer_made_for_the_shown_cases_fails_for_fresh_inputs(answer, said, capsys):
    show.exercise(answer, ((4,), 2), fresh=lambda generator: ((x := generator.uniform(5, 9),), x / 2))
    assert capsys.readouterr().out.startswith(f"exercise {answer.__name__}: {said}")


def test_setup_makes_float64_the_default_and_the_next_draw_repeatable():
    before = torch.get_default_dtype(), torch.get_num_threads()
    try:
        show.setup(3)
        first = torch.randn(4)
        show.setup(3)
        assert first.dtype == torch.float64 and torch.get_num_threads() == 1
        assert torch.equal(first, torch.randn(4))
    finally:
        torch.set_default_dtype(before[0])
        torch.set_num_threads(before[1])
        torch.set_printoptions(profile="default")
        np.set_printoptions(precision=8, suppress=False, linewidth=75)
