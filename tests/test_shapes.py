"""The drawings of mechanisms can be read: words stay in their boxes, boxes apart, and arrows run through no box."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from minidsv4.course import plots

DRAWINGS = {
    "window attention": plots.window_attention_shapes,
    "a block": plots.block_shapes,
    "CSA's compressor": plots.compressor_shapes,
    "a layer of experts": plots.expert_layer_shapes,
    "the MTP block": plots.mtp_shapes,
    "HCA's compressor": lambda: plots.compressor_shapes(overlap=False),
    "dispatch and combine": plots.expert_parallel_shapes,
    "two stages of a sequence cut over ranks": plots.two_stage_shapes,
    "an attention layer": plots.attention_shapes,
    "an mHC site": plots.site_shapes,
    "a mixture of experts": plots.moe_shapes,
    "a model": plots.model_shapes,
    "an indexer": plots.indexer_shapes,
    "who sees what": plots.visibility_shapes,
    "what a CSA layer keeps": plots.cache_shapes,
    "the losses of a step": plots.loss_shapes,
    "a step of Muon": plots.muon_shapes,
}
ROUNDING = 1.0  # pixels: the ends of arrows touch their boxes


def faults(figure):
    """What a reader of the drawing would stumble over, a sentence each."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    axes = figure.axes[0]
    boxes = [patch.get_window_extent(renderer) for patch in axes.patches]
    words = [text for text in axes.texts if text.get_text()]
    for text in [*words, *figure.texts]:
        extent = text.get_window_extent(renderer)
        frames = [box for box in boxes if box.contains(*extent.get_points().mean(axis=0))] or [figure.bbox]
        if not all(frame.x0 < extent.x0 and extent.x1 < frame.x1 and frame.y0 < extent.y0 for frame in frames):
            yield f"{text.get_text()!r} is wider than its frame"
    for number, box in enumerate(boxes):
        if any(box.overlaps(other) for other in boxes[number + 1 :]):
            yield "two boxes overlap"
        inner = box.padded(-ROUNDING)
        for arrow in [text for text in axes.texts if not text.get_text()]:
            ends = axes.transData.transform([arrow.xyann, arrow.xy])
            if any(inner.contains(*(ends[0] + part * (ends[1] - ends[0]))) for part in np.linspace(0, 1, 200)):
                yield "an arrow runs through a box"


@pytest.fixture(autouse=True)
def style():
    plots.use_style()


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_of_a_mechanism_can_be_read(name):
    assert list(faults(DRAWINGS[name]())) == []


A, B, C = (plots.Box(name, "made", "T D", column, 0) for column, name in enumerate("abc"))
UNREADABLE = {
    "is wider than its frame": ({"a": A, "b": B._replace(made="a great many words indeed")}, [("a", "b")]),
    "two boxes overlap": ({"a": A, "b": B, "c": C._replace(column=1.5)}, [("a", "b")]),
    "an arrow runs through a box": ({"a": A, "b": B, "c": C}, [("a", "c")]),
}


@pytest.mark.parametrize("fault", UNREADABLE)
def test_what_cannot_be_read_is_noticed(fault):
    boxes, arrows = UNREADABLE[fault]
    found = list(faults(plots.shapes(boxes, arrows, "three", size=(4.4, 1.2))))
    assert len(found) == 1 and fault in found[0], found
