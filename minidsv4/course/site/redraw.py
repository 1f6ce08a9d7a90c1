"""Run notebooks once more, so that every picture that a slider can show is drawn; what is drawn is kept.

A run is kept until its cells, a file of the package that it imported, the shipped model or a drawing package changes,
so a site that is built a second time runs nothing.
"""

import copy
import functools
import hashlib
import importlib.metadata
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

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
    returns    path = count of a cell = its frames, whose pictures lie in folder_of(notebook, cache); and a sentence for
               each notebook that could not be drawn or draws other pictures than it stores
    """
    moving = {path: part for path, notebook in notebooks.items() if (part := moving_part(notebook))}
    found = {}
    faults = []
    with ThreadPoolExecutor(jobs) as pool:
        for path, drawn in zip(moving, pool.map(lambda path: _drawn(path, moving[path], cache, say), moving)):
            if isinstance(drawn, str):
                faults.append(f"{path.stem}: its pictures stand still. {drawn}")
            else:
                found[path] = drawn
    return found, faults


def _drawn(path, part, cache, say):
    """The frames of one notebook, or a sentence that says why there are none."""
    folder = folder_of(part, cache)
    try:
        if not _is_current(folder):
            say(f"{path.stem}: drawing what its sliders can show")
            shutil.rmtree(folder, ignore_errors=True)
            with new_folder(folder) as unfinished:
                run(copy.deepcopy(part), path, {FRAMES: str(unfinished)}, timeout=SECONDS_PER_CELL)
        return read_frames(folder, part)
    except (CellExecutionError, CellTimeoutError, DeadKernelError, ValueError) as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"


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
