"""In the picture of what forms of attention cost no name covers another, at any length that its slider offers."""

from itertools import combinations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from minidsv4.course import plots

KEPT = {"MHA": 65536, "GQA8": 4096, "MQA": 512, "MLA": 1152, "DSA": 1408, "CSA": 320, "HCA": 8}
WORK = {  # tokens = 10^9 FLOPs by form, as the notebook prints them
    4096: (0.268, 0.268, 0.268, 1.14, 0.638, 0.319, 0.0419),
    16384: (1.07, 1.07, 1.07, 4.56, 0.839, 0.369, 0.0671),
    65536: (4.29, 4.29, 4.29, 18.3, 1.64, 0.570, 0.168),
    1048576: (68.7, 68.7, 68.7, 292, 17.8, 4.6, 2.18),
}


@pytest.mark.slow
@pytest.mark.parametrize("n_tokens", WORK)
def test_no_name_covers_another(n_tokens):
    plots.use_style()
    figure = plots.lineage(dict(zip(KEPT, zip(KEPT.values(), WORK[n_tokens]))), f"At {n_tokens:,} tokens")
    figure.draw(renderer := FigureCanvasAgg(figure).get_renderer())
    extents = {text.get_text(): text.get_window_extent(renderer) for text in figure.axes[0].texts}
    assert extents.keys() == KEPT.keys()
    assert [pair for pair in combinations(extents, 2) if extents[pair[0]].overlaps(extents[pair[1]])] == []
