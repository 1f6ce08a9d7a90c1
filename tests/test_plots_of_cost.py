"""Pictures of notebooks 12 and 13 say what is not known, and what they print is what they draw."""

import numpy as np
import pytest
from matplotlib.text import Text

from minidsv4 import Config
from minidsv4.cost import V32
from minidsv4.cost.hardware import DEVICES, LAPTOPS
from minidsv4.cost.roofline import decode_step
from minidsv4.cost.schedule import ideal_speedup
from minidsv4.course import figures, plots

MODELS = {"V3.2": V32(), "Pro": Config.pro(), "Flash": Config.flash()}


def drawn(device):
    """The axes of the picture of one device, and the steps that it shows."""
    plots.use_style()
    steps = {name: decode_step(model, 32768, DEVICES[device], batch=32) for name, model in MODELS.items()}
    return plots.device_time(steps, 32).axes[0], steps


@pytest.mark.parametrize("device", DEVICES)
def test_a_bar_is_as_long_as_its_time_and_a_device_without_a_rate_has_none_for_multiplying_and_says_so(device):
    axes, steps = drawn(device)
    lengths = [patch.get_width() for patch in axes.patches]
    for (memory, matmul), step in zip(zip(lengths[::2], lengths[1::2]), steps.values()):
        scale = 1e3 * step.n_devices / step.batch
        assert memory == pytest.approx(scale * step.memory_seconds)
        assert matmul == pytest.approx(scale * (step.matmul_seconds or 0.0)) and (matmul == 0) == (device in LAPTOPS)
    words = " ".join(text.get_text() for text in axes.texts)
    assert ("no FLOP rate" in words) == (device in LAPTOPS)
    share = max(lengths[4:]) / max(lengths[:2])
    what = "time for memory" if device in LAPTOPS else "device time"
    assert f"Flash takes {100 * share:.0f}% of V3.2's {what} at 32K tokens" == axes.get_title(loc="left")
    assert axes.get_xlabel() == f"device-milliseconds a token on {device}, batch of 32"


def words_cut_off(figure):
    """Titles and annotations of a figure that reach beyond its left or right edge."""
    figure.draw_without_rendering()
    texts = [child for owner in (figure, *figure.axes) for child in owner.get_children() if isinstance(child, Text)]
    spans = {text.get_text(): text.get_window_extent() for text in texts if text.get_text()}
    return [words for words, span in spans.items() if span.x0 < -1 or span.x1 > figure.bbox.width + 1]


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "batch"), [(2.5, 256), (16, 1)])
@pytest.mark.parametrize("device", DEVICES)
def test_the_words_fit_the_picture_of_every_device_at_the_ends_of_the_sliders(device, bits, batch):
    plots.use_style()
    steps = {name: decode_step(model, 2**20, DEVICES[device], batch, bits) for name, model in MODELS.items()}
    figure = plots.device_time(steps, 1024)
    assert words_cut_off(figure) == []
    figure.axes[0].set_title("A title that is wider than its figure " * 3)
    assert len(words_cut_off(figure)) == 1


@pytest.mark.parametrize("draw", [figures.overlap_by_ratio, lambda: plots.paced_waves(figures.PACED)])
def test_the_words_fit_the_pictures_of_overlap(draw):
    plots.use_style()
    assert words_cut_off(draw()) == []


def test_a_chip_above_perfect_overlap_is_within_what_its_activation_allows():
    plots.use_style()
    axes = figures.overlap_by_ratio().axes[0]
    lines = {line.get_label(): np.array(line.get_data()) for line in axes.get_lines()}
    (rho, bound), (_, reached) = (lines[name] for name in ("bound with activation", "8 waves"))
    assert (reached <= bound + 1e-9).all() and (bound > ideal_speedup(rho)).all()
    assert (reached > ideal_speedup(rho)).any()
