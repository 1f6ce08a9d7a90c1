"""Pictures of notebook 12 say what is not known, and what they print is what they draw."""

import pytest

from minidsv4 import Config
from minidsv4.cost import V32
from minidsv4.cost.hardware import DEVICES, LAPTOPS
from minidsv4.cost.roofline import decode_step
from minidsv4.course import plots

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
    assert f"{device}, 32K tokens: Flash takes {100 * share:.0f}% of V3.2's {what}" == axes.get_title(loc="left")
