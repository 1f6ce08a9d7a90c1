"""The committed notebooks are what nbval needs them to be, and their builder repeats itself.

Their cells' outputs are compared by `pytest notebooks` (nbval, strict) and their pictures by conftest.py; here stands
what those two do not see.
"""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from matplotlib.figure import Figure
from nbformat import v4
from PIL import Image, PngImagePlugin

from minidsv4.course import colab, notebooks

ROOT = Path(__file__).resolve().parents[1]
PATHS = list(notebooks.every().values())
MOST_CELLS, MOST_LINES, MOST_BYTES = 45, 15, 1_000_000
UNREPEATABLE = {
    "an address in memory": r"\b0x[0-9a-f]{6,}\b",
    "a path of one machine": r"(?<![\w.:/~-])/(?:home|root|Users|tmp|work|mnt|opt|private|workspace|usr)/\w",
    "a rate": r"\b\d[\d.,]*\s*(?:it|steps?|tok|tokens|[kM]?B)/s\b",
    "a time": r"(?i)\b\d[\d.,]*\s*(?:ns|µs|us|ms|s|sec|seconds?|min|minutes?)\b|wall time|cpu times",
    "a progress bar": r"\d+%\|",
}


def stored_texts(output):
    """What an output says in words; a listing of the package's source is no measurement."""
    if output.output_type == "stream":
        return [output.text]
    if output.output_type == "error":
        return [output.evalue, *output.traceback]
    if output.data.get("text/markdown", "").startswith("```python"):
        return []
    return [text for kind, text in output.data.items() if kind.startswith("text/")]


def output_faults(output):
    """What a stored output should not hold, a sentence each."""
    if output.output_type == "stream" and output.name == "stderr":
        yield f"it writes to stderr: {output.text[:60]!r}"
    for text in stored_texts(output):
        for what, pattern in UNREPEATABLE.items():
            if found := re.search(pattern, text):
                yield f"its output holds {what}: {found.group()!r}"
    for kind in output.get("data", {}):
        if kind.startswith("image/") and len(output.metadata.get(kind, {}).get("alt", "").split()) < 3:
            yield f"its {kind} has no alternative text"


def code_faults(cell, count):
    """What is wrong with the count-th code cell, a sentence each."""
    if cell.execution_count != count:
        yield f"its execution count is {cell.execution_count}, it should be {count}"
    if len(cell.source.splitlines()) > MOST_LINES:
        yield f"it has {len(cell.source.splitlines())} lines, {MOST_LINES} are allowed"
    for output in cell.outputs:
        yield from output_faults(output)


def cell_faults(cell, count):
    """What is wrong with one cell, a sentence each; count is the number of code cells up to it."""
    if strange := set(cell.metadata.get("tags", [])) - {"raises-exception", "hide-input"}:
        yield f"it has the tags {sorted(strange)}, only raises-exception and hide-input are allowed"
    elif cell.metadata != notebooks.cell_metadata(cell):
        yield f"its metadata should be {notebooks.cell_metadata(cell)}: save it with make notebooks"
    if re.search(r"(?m)^\s*#\s*(?:NBVAL_\w+|PYTEST_\w+)", cell.source):
        yield "it tells nbval to look away"
    if cell.cell_type == "code":
        yield from code_faults(cell, count)
    elif re.search(r"!\[\s*\]\(|<img(?![^>]*\balt=\"\w)", cell.source):
        yield "it has a picture without alternative text"


def notebook_faults(notebook):
    """What is wrong with a notebook, a sentence each."""
    n_cells = sum(not colab.is_for_colab(cell) for cell in notebook.cells)
    if n_cells > MOST_CELLS:
        yield f"it has {n_cells} cells beside the one for Colab, {MOST_CELLS} are allowed"
    if notebook.metadata != nbformat.from_dict(notebooks.METADATA):
        yield f"its metadata should be {notebooks.METADATA}: save it with make notebooks"
    if len(nbformat.writes(notebook).encode()) > MOST_BYTES:
        yield f"it is larger than {MOST_BYTES} bytes"
    count = 0
    for number, cell in enumerate(notebook.cells):
        count += cell.cell_type == "code"
        yield from (f"cell {number}: {fault}" for fault in cell_faults(cell, count))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_is_within_its_bounds_and_holds_nothing_that_another_run_would_change(path):
    assert list(notebook_faults(nbformat.read(path, as_version=4))) == []


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_was_saved_by_the_builder(path):
    notebook = nbformat.read(path, as_version=4)
    notebooks.settle(notebook, path.stem)
    assert nbformat.writes(notebook) + "\n" == path.read_text(encoding="utf-8")


def sound_notebook():
    """A notebook without a fault, with a picture, a listing and an error that is meant."""
    data, alt = {"image/png": "iVBORw0K", "text/plain": "a rising line"}, {"image/png": {"alt": "a rising line"}}
    listing = {"text/markdown": "```python\n# takes 3 s\n```", "text/plain": "# takes 3 s"}
    outputs = [
        v4.new_output("stream", text="shape (2, 5, 6), cost 3.2e+09\n"),
        v4.new_output("display_data", data=data, metadata=alt),
        v4.new_output("display_data", data=listing),
    ]
    folded = {"jupyter": {"source_hidden": True}, "tags": ["hide-input"]}
    error = v4.new_output("error", ename="ValueError", evalue="no", traceback=["ValueError: no"])
    cells = [
        v4.new_markdown_cell("# Why?"),
        v4.new_code_cell("1", outputs=outputs, execution_count=1),
        v4.new_code_cell("2", outputs=[error], execution_count=2, metadata={"tags": ["raises-exception"]}),
        v4.new_code_cell("# hidden: a plot\n3", execution_count=3, metadata=folded),
    ]
    return v4.new_notebook(cells=cells, metadata=nbformat.from_dict(notebooks.METADATA))


def test_a_sound_notebook_has_no_faults():
    assert list(notebook_faults(sound_notebook())) == []


FAULTS = {
    "46 cells": lambda n: n.cells.extend(v4.new_markdown_cell("x") for _ in range(42)),
    "16 lines": lambda n: n.cells[1].update(source="x\n" * 16),
    "count is None": lambda n: n.cells[1].update(execution_count=None),
    "count is 3": lambda n: n.cells[2].update(execution_count=3),
    "only raises-exception and hide-input": lambda n: n.cells[1].metadata.update(tags=["nbval-skip"]),
    "its metadata should be {}": lambda n: n.cells[1].metadata.update(jupyter={"source_hidden": True}),
    "should be {'jupyter'": lambda n: n.cells[1].update(source="# hidden: a plot\n1"),
    "should be {'jupyter': {'source": lambda n: n.cells[1].update(source="show.predict(\n)"),
    "look away": lambda n: n.cells[1].update(source="# NBVAL_IGNORE_OUTPUT\n1"),
    "writes to stderr": lambda n: n.cells[1].outputs[0].update(name="stderr"),
    "an address": lambda n: n.cells[1].outputs[0].update(text="<object at 0x7f12ab34cd56>"),
    "a path": lambda n: n.cells[1].outputs[0].update(text="/".join(["saved in ", "home", "me"])),
    "a rate": lambda n: n.cells[1].outputs[0].update(text="12.5 it/s"),
    "a time": lambda n: n.cells[1].outputs[0].update(text="done in 3.2 s"),
    "a progress bar": lambda n: n.cells[1].outputs[0].update(text=" 40%|####"),
    "no alternative text": lambda n: n.cells[1].outputs[1].update(metadata={}),
    "a picture without": lambda n: n.cells[0].update(source="![](map.svg)"),
    "its metadata should be {'kernelspec'": lambda n: n.metadata.kernelspec.update(name="conda-env"),
    "larger than": lambda n: n.cells[1].outputs[1].data.update({"image/png": "A" * 1_000_000}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_planted_in_a_notebook_is_caught(fault):
    notebook = sound_notebook()
    FAULTS[fault](notebook)
    found = list(notebook_faults(notebook))
    assert len(found) == 1 and fault in found[0], found


# --- pictures and links ---


def has_ink_at_its_sides(png):
    """True where a PNG has a pixel that is not white in its first or last column: something is cut off there."""
    sides = np.asarray(Image.open(io.BytesIO(png)).convert("L"))[:, [0, -1]]
    return bool(sides.min() < 250)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_no_stored_picture_is_cut_off_at_its_sides(path):
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            if png := output.get("data", {}).get("image/png"):
                assert not has_ink_at_its_sides(base64.b64decode(png)), cell.source


@pytest.mark.parametrize(("repeats", "cut"), [(1, False), (9, True)])
def test_a_title_that_is_cut_off_is_seen(repeats, cut):
    figure, stream = Figure(figsize=(3, 2)), io.BytesIO()
    figure.suptitle("A title. " * repeats)
    figure.savefig(stream, format="png")
    assert has_ink_at_its_sides(stream.getvalue()) == cut


def bad_links(folder, text, root):
    """Links of a page in a folder that a server of the root cannot open: not there, a folder, or outside the root."""
    for link in re.findall(r"\]\((?!https?:|#|attachment:)([^)#\s]+)", text):
        place = (folder / link).resolve()
        if not (place.is_file() and place.is_relative_to(root)):
            yield link


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_link_of_a_notebook_opens_a_file_beside_the_notebooks(path):
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert list(bad_links(path.parent, text, notebooks.FOLDER.resolve())) == []


def test_a_link_to_a_folder_to_nothing_or_out_of_the_root_is_seen(tmp_path):
    (tmp_path / "root" / "build").mkdir(parents=True)
    for file in ("root/a.ipynb", "outside.py"):
        (tmp_path / file).touch()
    links = ["a.ipynb", "a.ipynb#part", "https://arxiv.org", "build/", "none.ipynb", "../outside.py"]
    text = " ".join(f"[words]({link})" for link in links)
    assert list(bad_links(tmp_path / "root", text, tmp_path / "root")) == links[3:]


# --- listings ---


def listing_faults(notebook):
    """Listings of `show.source` that are no longer the source, by their call: found without running the notebook."""
    names = {}
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        imports = re.findall(r"^(?:import|from) .*$", cell.source, flags=re.MULTILINE)
        exec("\n".join(imports), names)
        call = re.search(r"^show\.source\((?:.|\n)*\)$", cell.source, flags=re.MULTILINE)
        if call and eval(call.group(), names)._repr_markdown_() != cell.outputs[0]["data"]["text/markdown"]:
            yield f"{call.group()} lists what is no longer there; make notebooks"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_the_sources_that_a_notebook_lists_are_those_of_the_package(path):
    assert list(listing_faults(nbformat.read(path, as_version=4))) == []


@pytest.mark.parametrize("call", ["show.source(ops.pool)", "show.source(\n    ops.pool,\n    ops.swiglu,\n)"])
def test_a_listing_of_another_source_is_caught(call):
    cell = v4.new_code_cell(f"from minidsv4 import ops\nfrom minidsv4.course import show\n{call}")
    cell.outputs = [v4.new_output("execute_result", {"text/markdown": "def pool(): ..."})]
    assert len(list(listing_faults(v4.new_notebook(cells=[cell])))) == 1


# --- the builder, and the comparison of pictures in conftest.py ---

DRAW = """import io

from IPython.display import Image
from matplotlib.figure import Figure

figure, stream = Figure(figsize=(3, 2)), io.BytesIO()
figure.add_subplot().plot([1, 2, {last}])
figure.savefig(stream)
Image(stream.getvalue())"""
INNER_CONFTEST = """
import forks

forks.SERVER.set_forkserver_preload(["ipykernel.kernelapp", "matplotlib.figure"])  # all that the cells need


def pytest_runtest_setup(item):
    print("timeout", item.output_timeout)
"""


@pytest.mark.slow
def test_running_a_notebook_again_changes_no_byte_and_a_changed_cell_is_noticed(tmp_path):
    path = tmp_path / "07_again.ipynb"
    cells = [("md", "# Again?"), ("code", colab.source()), ("code", "print(2)\n{1, 2}"), ("code-raises", "1 / 0")]
    notebooks.write(path, [*cells, ("code", DRAW.format(last=3))])
    before = path.read_bytes()
    assert notebooks.rebuild(path, check=True) and notebooks.rebuild(path) and path.read_bytes() == before
    stored = json.loads(before)
    assert [cell.get("execution_count") for cell in stored["cells"]] == [None, 1, 2, 3, 4]
    assert [cell["id"] for cell in stored["cells"]] == [f"07_again-0{number}" for number in range(5)]
    assert stored["cells"][3]["outputs"][0]["traceback"] == ["ZeroDivisionError: division by zero"]
    path.write_bytes(before.replace(b"print(2)", b"print(3)"))
    assert not notebooks.rebuild(path, check=True)


def test_a_cell_of_unknown_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cell kind 'raw' is not known: it should be 'md', 'code' or 'code-raises'"):
        notebooks.write(tmp_path / "x.ipynb", [("raw", "text")])


@pytest.mark.slow
def test_pytest_compares_pictures_by_their_pixels(tmp_path):
    for file in ("conftest.py", "tests/forks.py"):
        shutil.copy(ROOT / file, tmp_path)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "conftest.py").write_text(INNER_CONFTEST)
    same, other = tmp_path / "inner" / "same.ipynb", tmp_path / "other.ipynb"
    notebooks.write(same, [("code", DRAW.format(last=3))])
    notebooks.write(other, [("code", DRAW.format(last=4))])
    plant(same, "changed", lambda output: output["data"].update(picture_of(other)))
    plant(same, "missing", lambda output: output["data"].pop("image/png"))
    plant(same, "foreign", lambda output: output["data"].update(picture_of(other, software=b"another")))
    words = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-rA", "-s", "inner"]
    said = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path).stdout
    verdicts = dict(reversed(line.split()[:2]) for line in said.splitlines() if re.match(r"(PASSED|FAILED) ", line))
    wanted = {"same": "PASSED", "changed": "FAILED", "missing": "FAILED", "foreign": "PASSED"}
    assert verdicts == {f"inner/{name}.ipynb::Cell": verdict for name, verdict in wanted.items()}, said
    assert re.search(r"the stored and the drawn picture differ by [\d.]+ of 255", said)
    assert said.count("timeout 60") == 4


def plant(path, name, change):
    """Write a copy of a one-cell notebook beside it, with a change to its only output."""
    notebook = json.loads(path.read_text())
    change(notebook["cells"][0]["outputs"][0])
    path.with_stem(name).write_text(json.dumps(notebook))


def picture_of(path, software=None):
    """The stored PNG of a one-cell notebook as an update of another's data; software replaces its drawing program."""
    data = base64.b64decode(json.loads(path.read_text())["cells"][0]["outputs"][0]["data"]["image/png"])
    if software:
        info, stream = PngImagePlugin.PngInfo(), io.BytesIO()
        info.add_text("Software", software)
        Image.open(io.BytesIO(data)).save(stream, format="png", pnginfo=info)
        data = stream.getvalue()
    return {"image/png": base64.b64encode(data).decode()}
