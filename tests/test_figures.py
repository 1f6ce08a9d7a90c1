"""The figures that are kept equal the figures that are drawn, and the map of the model can be read."""

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import FancyBboxPatch, Patch

from minidsv4.course import figures, plots
from minidsv4.course.plots import model_map


@pytest.mark.slow
@pytest.mark.parametrize("name", figures.FIGURES)
def test_a_kept_figure_equals_the_drawn_one(name):
    stored = (figures.FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    assert figures.difference(stored, figures.draw(name)) is None


def test_every_kept_figure_has_a_function_that_draws_it():
    assert {path.stem for path in figures.FOLDER.glob("*.svg")} == set(figures.FIGURES)


def test_drawing_twice_gives_the_same_text():
    name = next(iter(figures.FIGURES))
    assert figures.draw(name) == figures.draw(name)


def test_a_hundredth_of_a_point_is_let_through_and_three_hundredths_are_not():
    assert figures.difference("<path d='M 1.00 -2e-05'/>", "<path d='M 1.01 -3e-05'/>") is None
    assert "0.03" in figures.difference("<path d='M 1.00 2'/>", "<path d='M 1.03 2'/>")
    assert figures.difference("<path d='M 1 2'/>", "<path d='L 1 2'/>") == "the text differs"
    assert figures.difference("<path d='M 1 2 3'/>", "<path d='M 1 2'/>") == "the text differs"


def test_check_fails_on_a_missing_and_on_a_changed_file_and_passes_on_a_drawn_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(figures, "FOLDER", tmp_path)
    only = {"00_map_of_the_model": figures.FIGURES["00_map_of_the_model"]}  # one figure: the others take long to draw
    monkeypatch.setattr(figures, "FIGURES", only)
    assert figures.main(["--check"]) == 1
    assert figures.main([]) == 0
    assert figures.main(["--check"]) == 0
    path = tmp_path / "00_map_of_the_model.svg"
    path.write_text(path.read_text().replace("M ", "M 1", 1))
    assert figures.main(["--check"]) == 1
    assert "the file is missing" in capsys.readouterr().out


@pytest.fixture(scope="module")
def maps():
    """The map of the model with no part lit and with each of them lit, in the course's style."""
    with matplotlib.rc_context():
        plots.use_style()
        return {lit: plots.map_of_model(lit) for lit in (None, *plots.PARTS)}


def patches_of(figure, kind):
    """The patches of this class in a map, in the order of drawing."""
    return [patch for patch in figure.axes[0].patches if isinstance(patch, kind)]


@pytest.mark.parametrize("part", plots.PARTS)
def test_each_part_of_the_map_can_be_lit(part, maps):
    lit, plain = (patches_of(maps[name], Patch) for name in (part, None))
    changed = sum(one.get_facecolor() != other.get_facecolor() for one, other in zip(lit, plain, strict=True))
    boxes = model_map.MODEL_BOXES + model_map.BLOCK_BOXES + model_map.ATTENTION_BOXES + model_map.CACHE_BOXES
    assert changed == sum(box[0] == part for box in boxes) > 0


def test_lighting_a_part_that_the_map_does_not_have_is_refused_by_name():
    with pytest.raises(ValueError, match="lit='router' .* should be None or one of embedding"):
        plots.map_of_model("router")


@pytest.mark.parametrize("lit", [None, *plots.PARTS])
def test_the_words_of_a_box_stay_inside_it_and_all_words_inside_the_picture(lit, maps):
    figure = maps[lit]
    renderer = FigureCanvasAgg(figure).get_renderer()
    axes = figure.axes[0]
    words = [text for text in axes.texts if text.get_text()]
    boxes = [box.get_window_extent(renderer) for box in patches_of(figure, FancyBboxPatch)]
    frame = figure.bbox
    for text in words:
        extent = text.get_window_extent(renderer)
        assert frame.x0 < extent.x0 and extent.x1 < frame.x1 and frame.y0 < extent.y0, text.get_text()
        x, y = axes.transData.transform(text.get_position())
        for box in boxes:
            if box.contains(x, y):
                assert box.x0 < extent.x0 and extent.x1 < box.x1, text.get_text()


def records(mains):
    """A run's log with these losses, half of it dense; everything else is a multiple of them."""
    kinds = ["dense"] * (len(mains) // 2) + ["sparse"] * (len(mains) - len(mains) // 2)
    parts = {"main": 1, "mtp": 2, "indexer": 3, "max_violation": 4, "rate": 5}
    return [
        {"step": step, "attention": kind} | {name: factor * main for name, factor in parts.items()}
        for step, (kind, main) in enumerate(zip(kinds, mains), start=1)
    ]


def drawn(figure):
    """What the curves of each panel show, in the order of drawing."""
    return [[line.get_ydata().tolist() for line in axes.get_lines()] for axes in figure.axes]


def test_a_log_is_drawn_as_measured_and_a_mean_runs_on_across_the_stages():
    mains = [4.0, 2.0, 0.0, 6.0]
    losses, indexer, max_violation, rate = drawn(plots.training_log(records(mains), "as measured"))
    assert losses == [mains, [8.0, 4.0, 0.0, 12.0]]
    assert (indexer, max_violation, rate) == (
        [[12.0, 6.0, 0.0, 18.0]],
        [[16.0, 8.0, 0.0, 24.0]],
        [[20.0, 10.0, 0.0, 30.0]],
    )
    losses, indexer, max_violation, rate = drawn(plots.training_log(records(mains), "mean of 2 steps", mean_over=2))
    assert losses[:2] == [mains, [4.0, 3.0, 1.0, 3.0]] and max_violation[1] == [16.0, 12.0, 4.0, 12.0]
    assert (indexer, rate) == ([[12.0, 6.0, 0.0, 18.0]], [[20.0, 10.0, 0.0, 30.0]])
