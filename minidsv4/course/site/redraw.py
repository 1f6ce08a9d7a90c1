"""Run notebooks once more, so that every picture that a slider can show is drawn; what is drawn is kept.

A run is kept until its cells, a file of the package that it imported, the shipped model or a drawing package changes,
so a site that is built a second time runs nothing.
"""

import functools
import hashlib
import importlib.metadata
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from minidsv4.course.frames import FRAMES, PACKAGE, USES, file_line
from minidsv4.course.notebooks import run
from minidsv4.course.site.pages import moving_part, read_frames
from minidsv4.files import new_folder

SECONDS_PER_CELL = 1800  # a cell may draw some hundred pictures
DRAWN_BY = ("matplotlib", "numpy", "pillow", "torch")


def redraw(notebooks, cache, jobs, say=print):
    """The frames of all notebooks, from a run now or from an earlier one.

    notebooks  path = NotebookNode
    cache      folder in which runs are kept
    jobs       how many notebooks run at a time
    say        called with a sentence before each run
    returns    path = count of a cell = its frames; their pictures lie in folder_of(notebook, cache)
    raises     nbclient's CellExecutionError; ValueError where the pictures are not the stored ones
    """
    moving = {path: part for path, notebook in notebooks.items() if (part := moving_part(notebook))}
    missing = {path: part for path, part in moving.items() if not _is_current(folder_of(part, cache))}

    def draw(path):
        say(f"{path.stem}: drawing what its sliders can show")
        shutil.rmtree(folder_of(missing[path], cache), ignore_errors=True)
        with new_folder(folder_of(missing[path], cache)) as unfinished:
            run(moving_part(missing[path]), path, {FRAMES: str(unfinished)}, timeout=SECONDS_PER_CELL)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(draw, missing))
    return {path: read_frames(folder_of(part, cache), part) for path, part in moving.items()}


def folder_of(part, cache):
    """The folder that keeps the run of a notebook's moving part, named by its cells, the model and what draws."""
    digest = hashlib.sha256(_model_and_versions().encode())
    for cell in part.cells:
        digest.update(f"{cell.cell_type}\0{cell.source}\0".encode())
    return Path(cache) / digest.hexdigest()[:24]


def _is_current(folder):
    """True for a kept run that imported the package's files as they are now."""
    uses = folder / USES
    if not uses.exists():
        return False
    lines = uses.read_text(encoding="utf-8").splitlines()
    return all(line == file_line(line.partition(" ")[2]) for line in lines)


@functools.cache
def _model_and_versions():
    """The shipped files, by their bytes, and the versions of what draws, in one text."""
    files = sorted(path for path in (PACKAGE / "assets").rglob("*") if path.is_file())
    lines = [file_line(path.relative_to(PACKAGE)) for path in files]
    return "\n".join(lines + [f"{name} {importlib.metadata.version(name)}" for name in DRAWN_BY])
