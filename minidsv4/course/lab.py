"""JupyterLab on a copy of the course that is the reader's own.

    python -m minidsv4.course.lab                             lay copies in work/ and open them
    python -m minidsv4.course.lab --no-browser --port 9999    further words go to jupyter lab

Notebooks are laid without outputs, so that a question hides what follows, and saving them leaves the stored ones as
they are. What the reader changed is never overwritten: work/.laid.json keeps the SHA-256 of what every file said as it
was laid. Of a notebook this is its cells' text, so running and saving one changes nothing.
"""

import hashlib
import json
import os
import sys

import nbformat

from minidsv4.course.notebooks import FOLDER
from minidsv4.files import atomic_file

AGAIN = "where you open a saved notebook again, choose Run, Run All Cells: buttons and sliders live in the kernel"
WORK = FOLDER.parent / "work"
LAID = ".laid.json"


def lay(source=FOLDER, target=WORK):
    """Copy the course's notebooks, cleared, and its Python files into a folder; nothing that changed there is touched.

    source   folder of the course
    target   folder of the copies, made where it is missing; subfolders are kept
    returns  names of the files that stayed as the reader left them, each with a note where the course has a newer one
    """
    target.mkdir(parents=True, exist_ok=True)
    record = target / LAID
    laid = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    kept = []
    for path in sorted([*source.rglob("*.ipynb"), *source.rglob("*.py")]):
        name = path.relative_to(source).as_posix()
        if ".ipynb_checkpoints" in path.parts:
            continue
        copy, due, was = target / name, _said(path), laid.get(name)
        says = _said(copy) if copy.exists() else None
        if says not in (None, was, due):
            kept.append(name if was == due else f"{name} (the course has a newer one)")
            continue
        if says != due:  # else it stays as it is, with the outputs of the reader's run
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(_copy_of(path))
        laid[name] = due
    with atomic_file(record) as unfinished:
        unfinished.write_text(json.dumps(laid, indent=1), encoding="utf-8")
    return kept


def _copy_of(path):
    """The bytes to lay for a file: a notebook without outputs and counts, anything else as it is."""
    if path.suffix != ".ipynb":
        return path.read_bytes()
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
            cell.execution_count = None
    return (nbformat.writes(notebook) + "\n").encode()


def _said(path):
    """The SHA-256 of what a file says: of a notebook the text of its cells, empty ones left out; else its bytes."""
    content = path.read_bytes()
    if path.suffix == ".ipynb":
        try:
            cells = nbformat.reads(content.decode(), as_version=4).cells
        except (ValueError, nbformat.ValidationError):  # the reader's, and no notebook any more
            return hashlib.sha256(content).hexdigest()
        content = json.dumps([(cell.cell_type, cell.source) for cell in cells if cell.source.strip()]).encode()
    return hashlib.sha256(content).hexdigest()


def main(words=None):
    """Lay the copies and start JupyterLab on their index; words go to it as they are."""
    if not FOLDER.exists():
        sys.exit(f"lab: there is no folder {FOLDER.name} beside the package: run it in a clone of the repository")
    if kept := lay():
        print(f"kept as you changed them in {WORK.name}/ (delete one to get it anew): {', '.join(kept)}")
    print(AGAIN)
    from jupyterlab.labapp import main as jupyter_lab

    as_root = ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    os.chdir(FOLDER.parent)
    jupyter_lab([*as_root, *(sys.argv[1:] if words is None else words), f"{WORK.name}/index.ipynb"])


if __name__ == "__main__":
    main()
