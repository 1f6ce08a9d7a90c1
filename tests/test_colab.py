"""The cell for Colab installs the package there, asks for its address where it has none, and is inert elsewhere."""

import re
import shlex
import sys
import types

import forks
import nbformat
import pytest
from nbformat import v4

from minidsv4.course import colab, notebooks
from minidsv4.course.kit.exercises import setup_of
from minidsv4.course.site.pages import page

ADDRESS = "https://example.org/somebody/minidsv4"
READ = {name: path for name, path in notebooks.every().items() if name != "glossary"}  # which has no code
# IPython itself runs the cell; what its %pip would hand to a shell is printed.
ON_COLAB = """
import os, sys, types

os.environ["IPYTHONDIR"] = {folder!r}
from IPython.core.interactiveshell import InteractiveShell

sys.modules["google.colab"] = types.ModuleType("google.colab")
shell = InteractiveShell.instance()
shell.system = lambda command: print("asked for:", command)
shell.run_cell({source!r})
"""


def on_colab(source, folder):
    """What IPython says when it runs the cell on Colab."""
    return forks.python(ON_COLAB.format(folder=str(folder), source=source)).stdout


def test_on_colab_the_cell_installs_the_copy_with_all_that_a_notebook_needs(tmp_path):
    said = on_colab(colab.source(ADDRESS), tmp_path)
    (command,) = re.findall(r"(?m)^asked for: (.+)$", said)
    words = shlex.split(command)
    assert words[1:] == ["-m", "pip", "install", "--quiet", f"minidsv4[course] @ git+{ADDRESS}"]
    assert said.endswith("If Colab asks for it, restart the session and run from the top.\n")


def test_an_installation_that_failed_on_colab_ends_in_a_sentence(tmp_path, monkeypatch):
    """Kind: a failure that goes on; before, %pip failed in silence and the next cell's import told of it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    shell = types.SimpleNamespace(run_line_magic=lambda *words: None)
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    with pytest.raises(RuntimeError, match="^minidsv4 was not installed: is REPOSITORY right"):
        exec(colab.source(ADDRESS), {})


@pytest.mark.parametrize("given", ["", "github.com/NAME/minidsv4", f" {ADDRESS}", f"{ADDRESS}/blob/main/a.ipynb"])
def test_on_colab_with_no_address_of_a_repository_it_stops_and_says_what_to_fill_in(given, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    source = colab.source(given)
    with pytest.raises(ValueError, match="^REPOSITORY: give the address of the repository$"):
        exec(source, {})
    assert source.count(f'REPOSITORY = "{given}"') == 1


def test_elsewhere_it_does_nothing_and_says_nothing(capsys):
    names = {"__builtins__": __builtins__}
    exec(colab.source(ADDRESS), names)
    assert set(names) == {"__builtins__", "importlib", "sys"}
    assert capsys.readouterr() == ("", "")


# --- where it stands ---


@pytest.mark.parametrize("name", READ)
def test_it_is_the_first_code_cell_of_each_notebook_that_a_reader_runs_and_stands_there_once(name):
    cells = nbformat.read(READ[name], as_version=4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    assert code[0] == colab.source()
    assert [cell.source for cell in cells if colab.is_for_colab(cell)] == [colab.source()]


def test_the_builder_puts_it_first_and_takes_earlier_forms_away():
    notebook = v4.new_notebook(
        cells=[
            v4.new_markdown_cell("# Why?"),
            v4.new_code_cell("1"),
            v4.new_code_cell(f"{colab.MARK} something older"),
            v4.new_code_cell("2"),
        ]
    )
    for _ in range(2):
        colab.put_first(notebook)
        assert [cell.source for cell in notebook.cells] == ["# Why?", colab.source(), "1", "2"]


def test_a_notebook_without_code_needs_no_cell_for_colab():
    notebook = v4.new_notebook(cells=[v4.new_markdown_cell("# Why?")])
    colab.put_first(notebook)
    assert len(notebook.cells) == 1


def test_its_source_is_folded_and_it_is_neither_the_set_up_of_a_grader_nor_a_part_of_the_site():
    notebook = v4.new_notebook(cells=[v4.new_markdown_cell("# Why?"), v4.new_code_cell("import torch")])
    colab.put_first(notebook)
    assert [notebooks.is_folded(cell) for cell in notebook.cells] == [False, True, False]
    assert setup_of(notebook) == "import torch"
    assert not any(colab.is_for_colab(cell) for cell in page(notebook, "00_tour", {}).cells)
