"""All pictures that a slider can show, drawn ahead for pages that have no kernel behind them.

The site's builder runs a notebook with the variable FRAMES set to a folder. Each `show.explore` then leaves there one
file NN.json (NN counts the calls from 00) and its pictures, and shows what it always shows in a checked run. The file
USES has the names and hashes of the package's files that the run has imported by then.
"""

import hashlib
import io
import itertools
import json
import math
import os
import random
import sys
from pathlib import Path

import numpy as np
import torch
from IPython import get_ipython
from PIL.Image import open as read_image

FRAMES = "MINIDSV4_FRAMES"  # set by the site's builder: the folder to write to
USES = "uses.txt"
PACKAGE = Path(__file__).resolve().parents[1]
_calls = itertools.count()  # a kernel runs one notebook
MOST_FRAMES = 256  # pictures of one show.explore
MOST_BYTES = 6_000_000  # bytes of their files


def frames_folder():
    """The folder that asks for frames, as a Path; None in an ordinary run."""
    named = os.environ.get(FRAMES, "")
    return Path(named) if named and get_ipython() is not None else None


def used_files():
    """One line for each file of the package that this process has imported: its SHA-256 and its name."""
    files = {Path(module.__file__) for module in list(sys.modules.values()) if getattr(module, "__file__", None)}
    return sorted(file_line(file.relative_to(PACKAGE)) for file in files if file.is_relative_to(PACKAGE))


def file_line(name):
    """The line of USES for a file by its name below the package; a missing file has no hash."""
    path = PACKAGE / name
    content = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "missing"
    return f"{content} {Path(name).as_posix()}"


def thinned(ranges, start, most=MOST_FRAMES):
    """The ranges with so few values that at most so many pictures are drawn.

    ranges   name = list of values
    start    name = the value that stays, as both ends do
    most     largest product of the lengths; more where ends and starts alone are more
    returns  name = list of values; the longest list, first of numbers, loses every second value until all fit
    """
    ranges = dict(ranges)
    while math.prod(map(len, ranges.values())) > most:
        fewer = {name: _every_second(values, start[name]) for name, values in ranges.items()}
        shrinks = [name for name in ranges if len(fewer[name]) < len(ranges[name])]
        if not shrinks:
            break
        longest = max(shrinks, key=lambda name: (not isinstance(start[name], str), len(ranges[name])))
        ranges[longest] = fewer[longest]
    return ranges


def _every_second(values, start):
    """Every second value, the last one and the start."""
    kept = {*range(0, len(values), 2), len(values) - 1, values.index(start)}
    return [values[place] for place in sorted(kept)]


def write_frames(folder, draw, ranges, start, labels):
    """Draw every combination of values and write what a page needs to switch between them.

    folder   where to: NN.json and SHA.webp, the same picture once
    draw     function from one value of each range to a Picture
    ranges   name = list of values
    start    name = the value of the static picture
    labels   function from a name and a value to the text that stands beside the slider
    raises   ValueError where the pictures have more than MOST_BYTES
    """
    few = thinned(ranges, start)
    drawn = [_frame(folder, draw, dict(zip(few, values))) for values in itertools.product(*few.values())]
    files = {frame["file"] for frame in drawn}
    size = sum((folder / file).stat().st_size for file in files)
    if size > MOST_BYTES:
        raise ValueError(
            f"the pictures of {', '.join(ranges)} have {size:,} bytes, it should be {MOST_BYTES:,} or less"
        )
    controls = [
        {
            "name": name.replace("_", " "),
            "labels": [labels(name, value) for value in values],
            "start": values.index(start[name]),
            "of": len(ranges[name]),
            "kind": "menu" if isinstance(values[0], str) else "slider",
        }
        for name, values in few.items()
    ]
    said = json.dumps({"controls": controls, "frames": drawn}, indent=1)
    (folder / USES).write_text("\n".join(used_files()), encoding="utf-8")
    (folder / f"{next(_calls):02d}.json").write_text(said, encoding="utf-8")


def _frame(folder, draw, values):
    """Draw one picture, keep its pixels under their hash; returns its file, words and size on the page."""
    picture = _as_if_alone(draw, values)
    data, facts = picture._repr_png_()
    stream = io.BytesIO()
    read_image(io.BytesIO(data)).convert("RGB").save(stream, format="webp", lossless=True, method=2)
    file = f"{hashlib.sha256(stream.getvalue()).hexdigest()[:16]}.webp"
    (folder / file).write_bytes(stream.getvalue())
    return {"file": file, "alt": facts["alt"], "width": facts["width"], "height": facts["height"]}


def _as_if_alone(draw, values):
    """What draw returns, with every generator of random numbers left as it was."""
    of_python = random.getstate()
    of_numpy = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        picture = draw(**values)
    random.setstate(of_python)
    np.random.set_state(of_numpy)
    return picture
