"""The picture of a token's picks colours each token by what it is to that token, and its words stay in the figure."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from minidsv4.course import plots
from minidsv4.course.plots.selection import STATES

TEXTS = ["a", " =", " 1", "\n", "b", " =", " 2", "\n", "c", "\n", "print", "(a", ")\n"]


def colours(figure):
    """The colour behind each word that is drawn."""
    axes = figure.axes[0]
    behind = [to_hex(patch.get_facecolor()) for patch in axes.patches]
    return {text.get_text(): colour for text, colour in zip(axes.texts, behind, strict=True) if text.get_text().strip()}


def test_a_token_is_coloured_by_what_it_is_to_the_query():
    figure = plots.picked_text(TEXTS, query=11, window=3, picked={0}, ratio=4, title="title")
    found = colours(figure)
    expected = {"a": "picked", " 1": "picked", "b": "not read", "c": "not read", "print": "window", "(a": "query"}
    expected[")"] = "future"
    assert {word: found[word] for word in expected} == {
        word: to_hex(STATES[state][1]) for word, state in expected.items()
    }


def test_the_words_stay_in_their_column_and_in_the_figure():
    plots.use_style()
    figure = plots.picked_text(["x" * 30, "\n"] * 9, query=4, window=2, picked=set(), ratio=4, title="title")
    renderer = FigureCanvasAgg(figure).get_renderer()
    for text in [*figure.axes[0].texts, *figure.texts, *figure.legends[0].get_texts()]:
        extent = text.get_window_extent(renderer)
        assert figure.bbox.x0 <= extent.x0 and extent.x1 <= figure.bbox.x1
    left, right = ([text for text in figure.axes[0].texts if text.get_text().strip()][place] for place in (0, -1))
    assert left.get_window_extent(renderer).x1 < right.get_window_extent(renderer).x0
