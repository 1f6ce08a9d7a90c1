"""What notebooks show is the same at every run, and their checks and exercises say what is wrong."""

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure

from minidsv4.course import plots, show


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


def test_a_listing_is_the_source_headed_by_its_file():
    listing = show.source(show.Listing.__repr__)
    assert repr(listing) == "# minidsv4/course/show.py\ndef __repr__(self):\n    return self.text"
    assert listing._repr_markdown_() == f"```python\n{listing}\n```"


def test_several_sources_stand_in_one_listing_and_each_file_is_named_once():
    listing = show.source(show.Listing.__repr__, show.check, plots.use_style)
    lines = str(listing).splitlines()
    heads = [line for line in lines if line.startswith(("# ", "def "))]
    assert heads == [
        "# minidsv4/course/show.py",
        "def __repr__(self):",
        "def check(sentence, got, want=True, within=None):",
        "# minidsv4/course/plots/style.py",
        "def use_style():",
    ]


def test_explore_draws_the_first_values_and_adds_sliders_only_when_live(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    monkeypatch.delenv("MINIDSV4_LIVE", raising=False)
    assert repr(show.explore(curve, power=[3, 4], low=(0, 1))) == repr(curve(3)) and not shown
    monkeypatch.setenv("MINIDSV4_LIVE", "1")
    assert repr(show.explore(curve, power=[3, 4], low=(0, 1))) == repr(curve(3))
    power, low, image = shown[0].children
    assert image.value == curve(3, 0).png()
    power.value, low.value = 4, 1
    assert image.value == curve(4, 1).png()


def test_explore_refuses_a_range_without_values():
    with pytest.raises(ValueError, match=r"power=\[\] should hold at least one value"):
        show.explore(curve, power=[])


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
        (lambda x: None, "(4) is not right yet. It is None, it should be 2"),
        (lambda x: x.no, "(4) stopped with AttributeError: 'int' object has no attribute 'no'"),
    ],
)
def test_an_exercise_says_how_it_stands_and_never_raises(answer, said, capsys):
    answer.__name__ = "half"
    show.exercise(answer, *CASES)
    assert capsys.readouterr().out.removeprefix("exercise half").removeprefix(": ").removeprefix("half") == said + "\n"


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
