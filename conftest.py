"""Every test runs on one thread, and a notebook's stored pictures must look like the drawn ones.

nbval compares text only: a wrong picture, another picture and no picture pass. The comparison is added here, for
pictures that the same release of matplotlib drew; another release shapes its letters otherwise.

Each notebook has a kernel of its own, a fork of one process that has imported what they all need: tests/forks.py.
"""

import os

# Before torch is imported. Two OpenMP threads that wait for each other on a busy machine are far slower than one.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ.setdefault("PYTHONHASHSEED", "0")  # read by the kernels, which are started from here
os.environ["MINIDSV4_STATIC"] = "1"  # no widgets in a checked notebook: minidsv4/course/live.py

import base64  # noqa: E402
import gc  # noqa: E402
import io  # noqa: E402
import signal  # noqa: E402

import forks  # noqa: E402
import matplotlib  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from nbval.plugin import IPyNbCell  # noqa: E402
from PIL import Image  # noqa: E402

# Of 255. Another CPU moves a line's edge by less than 1. Where a run magnifies rounding it moves a point: one of twenty
# losses in notebook 10 is 4.85 or 4.82 nats, which makes 1.2. Another line makes more.
LARGEST_RMS = 1.5


def pngs(outputs):
    """The PNG pictures among a cell's outputs, in order, as bytes."""
    return [
        base64.b64decode(output["data"]["image/png"]) for output in outputs if "image/png" in output.get("data", {})
    ]


def picture_difference(stored, drawn):
    """What tells two PNGs apart, in a sentence; None where they agree or another matplotlib drew one of them."""
    stored, drawn = Image.open(io.BytesIO(stored)), Image.open(io.BytesIO(drawn))
    if stored.info.get("Software") != drawn.info.get("Software"):
        return None
    if stored.size != drawn.size:
        return f"the stored picture has {stored.size} pixels, the drawn one {drawn.size}"
    first, second = (np.asarray(image.convert("RGB"), dtype=float) for image in (stored, drawn))
    rms = float(np.sqrt(np.mean((first - second) ** 2)))
    return f"the stored and the drawn picture differ by {rms:.2f} of 255" if rms > LARGEST_RMS else None


def compare_pictures(stored, drawn):
    """Differences between two lists of PNGs, a sentence each; empty where all agree."""
    if len(stored) != len(drawn):
        return [f"{len(stored)} pictures are stored and {len(drawn)} are drawn"]
    return [difference for pair in zip(stored, drawn, strict=True) if (difference := picture_difference(*pair))]


def compare_outputs_and_pictures(cell, test, ref, skip_compare=None, compare_text=IPyNbCell.compare_outputs):
    """nbval's comparison of a cell's outputs, and then that of its pictures."""
    if not compare_text(cell, test, ref, skip_compare):
        return False
    cell.comparison_traceback = compare_pictures(pngs(ref), pngs(test))
    return not cell.comparison_traceback


IPyNbCell.compare_outputs = compare_outputs_and_pictures
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell, where a test of Ctrl-C waits
    signal.signal(signal.SIGINT, signal.default_int_handler)
forks.fork_kernels()


@pytest.fixture(autouse=True)
def _matplotlib_as_it_was():
    """A test that sets the course's style leaves no later test with it: a title would stand elsewhere."""
    with matplotlib.rc_context():
        yield


def pytest_collection_finish():
    """What was imported is no garbage: to look through all of it takes the collector half a second, many times over."""
    gc.freeze()


def pytest_collection_modifyitems(items):
    """nbval gives up on a cell's messages after 5 s, which a busy machine can need."""
    for item in items:
        if isinstance(item, IPyNbCell):
            item.output_timeout = 60
