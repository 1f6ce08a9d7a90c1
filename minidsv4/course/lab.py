"""JupyterLab on a copy of the course that is the reader's own.

    python -m minidsv4.course.lab                             lay copies in work/ and open them
    python -m minidsv4.course.lab --no-browser --port 9999    further words go to jupyter lab

Notebooks are laid without outputs, so that a question hides what follows, and saving them leaves the stored ones as
they are. What the reader changed is never overwritten: work/.laid.json keeps the SHA-256 of every file as it was laid.
"""

import hashlib
import json
import os
import sys

import nbformat

from minidsv4.course.notebooks import FOLDER
from minidsv4.files import atomic_file

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
        copy, content = target / name, _copy_of(path)
        if copy.exists() and _hash(copy.read_bytes()) not in (laid.get(name), _hash(content)):
            is_newer = laid.get(name) != _hash(content)
            kept.append(f"{name} (the course has a newer one)" if is_newer else name)
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)
        laid[name] = _hash(content)
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


def _hash(content):
    return hashlib.sha256(content).hexdigest()


def main(words=None):
    """Lay the copies and start JupyterLab on their index; words go to it as they are."""
    if not FOLDER.exists():
        sys.exit(f"lab: there is no folder {FOLDER.name} beside the package: run it in a clone of the repository")
    if kept := lay():
        print(f"kept as you changed them in {WORK.name}/ (delete one to get it anew): {', '.join(kept)}")
    from jupyterlab.labapp import main as jupyter_lab

    as_root = ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    os.chdir(FOLDER.parent)
    jupyter_lab([*as_root, *(sys.argv[1:] if words is None else words), f"{WORK.name}/index.ipynb"])


if __name__ == "__main__":
    main()
