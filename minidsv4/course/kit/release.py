"""Students' copies of the course: solutions left out, exercises as stubs, their outputs cleared."""

import re
from pathlib import Path

import nbformat

from minidsv4.course import notebooks
from minidsv4.course.index import WHERE_SOLUTIONS
from minidsv4.course.kit import exercises
from minidsv4.files import made_folder

STUBS = ("build/my_v4.py",)  # beside the notebooks
ALONE = re.compile(r" ?\[Solutions?\]\([^)]*solutions/[^)]*\)")  # a link that says nothing else
SENTENCE = re.compile(r" ?(?:The|A) solution is \[[^\]]*\]\([^)]*solutions/[^)]*\)\.?")
LINK = re.compile(r"\[([^\]]*)\]\([^)]*solutions/[^)]*\)")
FOR_STUDENTS = """minidsv4: your copy of the course

Install the package (pip install minidsv4's folder, with the extra `course`), then open index.ipynb in JupyterLab.
An exercise is a cell that begins with `# exercise:`; write the function, keep its name, and run the cell or the one
below it to see how it stands. What you need beside the function (imports, helpers) goes into the same cell or into
cells of your own. Use what the notebook's set-up cell defines (the first code cell below the one for Colab) and what
you write, nothing from the cells between: grading runs the set-up cell and yours, in the order of the notebook.

Hand in the notebooks that you worked on, under the names that they have, and build/my_v4.py if you wrote in it.
"""


def release(folder, source=notebooks.FOLDER):
    """Write students' copies into a folder that is empty or does not exist.

    folder   where they go
    source   folder of the course
    returns  names of the files, in order
    raises   ValueError for a folder that holds something, and for a file
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a new folder")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; give a new folder, so that nothing of an earlier release stays")
    texts = {"README.txt": FOR_STUDENTS}
    for name, path in notebooks.every().items():
        texts[f"{name}.ipynb"] = students_copy(nbformat.read(path, as_version=4))
    for name in STUBS:
        texts[name] = (source / name).read_text(encoding="utf-8")
    with made_folder(folder):
        for name, text in texts.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return sorted(texts)


def students_copy(notebook):
    """The text of a notebook's .ipynb without links to solutions and without what its exercises said."""
    parts = {part for exercise in exercises.exercises(notebook) for part in (exercise.stub, exercise.check)}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = without_solutions(cell.source)
        elif cell.source in parts:
            cell.outputs = []
            cell.execution_count = None
    return nbformat.writes(notebook) + "\n"


def without_solutions(text):
    """Markdown in which nothing leads to a solution."""
    text = SENTENCE.sub("", ALONE.sub("", text.replace(WHERE_SOLUTIONS, "")))
    return LINK.sub(r"\1", text).rstrip()
