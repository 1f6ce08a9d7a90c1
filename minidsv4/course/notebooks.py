"""The course's notebooks: run, written and indexed so that a second run changes no byte.

    python -m minidsv4.course.notebooks                  run and save every notebook, then index and glossary
    python -m minidsv4.course.notebooks 00_tour --check  run this one and say whether a byte would change

The committed .ipynb is the source. Running it anew fixes everything that a run leaves behind: cell ids, counts from 1
to n, no times, no language version, sorted keys. Exercises follow the convention in minidsv4/course/checks.py.

What is not for the reader's eyes is folded: a code cell whose first line is `# hidden: WHY` (a plot, a fixture), and
one that begins with `show.predict(`. The builder gives it the metadata with which JupyterLab hides a cell's source, and
takes that metadata from every other cell. Before the first code cell it puts the one that installs the package on
Colab (minidsv4/course/colab.py). The index and the glossary are written by the builder whole.
"""

import argparse
import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import v4

from minidsv4.course import colab
from minidsv4.course.glossary import glossary_cells
from minidsv4.course.index import course, index_cells, problems, track
from minidsv4.course.live import STATIC

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
GENERATED = {"index": index_cells, "glossary": glossary_cells}
SECONDS_PER_CELL = 300
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
FOLDED = re.compile(r"# hidden: \S|show\.predict\(")


def write(path, cells):
    """Author a notebook: make its cells, run them, save it.

    path    where it goes, NN_name.ipynb
    cells   pairs (kind, text), kind one of "md", "code" and "code-raises" (a cell that is meant to raise)
    raises  ValueError for another kind; nbclient's CellExecutionError where a "code" cell raises
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(run(v4.new_notebook(cells=[_new_cell(*cell) for cell in cells]), path), encoding="utf-8")


def _new_cell(kind, text):
    """One unrun cell of nbformat 4."""
    text = text.strip("\n")
    if kind == "md":
        return v4.new_markdown_cell(text)
    if kind == "code":
        return v4.new_code_cell(text)
    if kind == "code-raises":
        return v4.new_code_cell(text, metadata={"tags": ["raises-exception"]})
    raise ValueError(f"cell kind {kind!r} is not known: it should be 'md', 'code' or 'code-raises'")


def run(notebook, path, settings=None, timeout=SECONDS_PER_CELL):
    """Run a notebook in a fresh kernel in its folder.

    notebook  NotebookNode; its outputs are replaced
    path      where it lies: the kernel's folder, and the start of its cells' ids
    settings  more variables of the kernel's environment
    timeout   seconds for a cell
    returns   the text of the .ipynb file
    """
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],  # else each kernel warns that it is reached by TCP
        timeout=timeout,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(Path(path).parent)}},
    )
    client.execute(env=_environment() | (settings or {}))
    settle(notebook, Path(path).stem)
    return nbformat.writes(notebook) + "\n"


def _environment():
    """The kernel's environment: one thread, no random hashing, no widgets, this environment's kernel."""
    settings = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "JUPYTER_PREFER_ENV_PATH": "1", STATIC: "1"}
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # the kernel is looked up in this process
    return os.environ | settings


def cell_metadata(cell):
    """The metadata that a cell should have: its tag raises-exception, where it is meant to raise, and its fold.

    cell     a cell of a notebook
    returns  a dict, empty for most cells
    """
    tags = [tag for tag in cell.metadata.get("tags", []) if tag == "raises-exception"]
    if not is_folded(cell):
        return {"tags": tags} if tags else {}
    return {"jupyter": {"source_hidden": True}, "tags": ["hide-input", *tags]}


def is_folded(cell):
    """True for a code cell of which the reader sees the output only."""
    return cell.cell_type == "code" and FOLDED.match(cell.source) is not None


def settle(notebook, stem):
    """Give everything that differs from run to run its fixed value."""
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    count = 0
    for index, cell in enumerate(notebook.cells):
        cell.id = f"{stem}-{index:02d}"
        cell.metadata = nbformat.from_dict(cell_metadata(cell))
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
            if output.output_type == "error":  # a traceback holds this machine's folders; its last line says it all
                output.traceback = [f"{output.ename}: {output.evalue}"]


def every():
    """The paths of all notebooks by name, such as `00_tour` or `build/1_pieces`: course, track, assignments, pages."""
    pages = [FOLDER / f"{page}.ipynb" for page in GENERATED]
    paths = [*course(FOLDER), *track(FOLDER), *problems(FOLDER), *pages]
    return {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in paths}


def rebuild(path, check=False):
    """Run the notebook at path and save it; with check, save nothing.

    returns  True where the file stays as it was, byte for byte
    """
    if path.stem in GENERATED:
        notebook = v4.new_notebook(cells=[_new_cell(*cell) for cell in GENERATED[path.stem](path.parent)])
    else:
        notebook = nbformat.read(path, as_version=4)
    colab.put_first(notebook)
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    after = run(notebook, path)
    if not check:
        path.write_text(after, encoding="utf-8")
    return before == after


def main(words=None):
    """Rebuild the named notebooks, or all, index and glossary; the exit status is 1 where --check finds a change."""
    parser = argparse.ArgumentParser(
        prog="python -m minidsv4.course.notebooks", description="Run and save the notebooks."
    )
    parser.add_argument("names", nargs="*", help="such as 00_tour; none means all of them, index and glossary")
    parser.add_argument("--check", action="store_true", help="save nothing, say what would change")
    choice = parser.parse_args(words)
    known = every()
    if unknown := [name for name in choice.names if name not in known]:
        parser.error(f"no notebook is called {', '.join(unknown)}: there are {', '.join(known)}")
    same = True
    for name in choice.names or known:
        unchanged = rebuild(known[name], choice.check)
        print(f"{name}: {'unchanged' if unchanged else 'would change' if choice.check else 'saved'}")
        same = same and unchanged
    return int(choice.check and not same)


if __name__ == "__main__":
    sys.exit(main())
