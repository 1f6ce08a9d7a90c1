"""The cell with which a notebook gets the package on Colab; anywhere else it does nothing and says nothing.

The builder puts it before the first code cell of every notebook that a reader runs. `REPOSITORY` is the one place in
the project with the address: whoever publishes a copy writes it here, and `make notebooks` brings it into all of them.
"""

from nbformat import v4

REPOSITORY = ""  # where the copy is published, such as https://github.com/NAME/minidsv4; empty: nowhere yet
MARK = "# hidden: on Colab"


def source(repository=REPOSITORY):
    """The text of the cell."""
    return f"""{MARK} this cell installs the package
import importlib.util
import sys

if "google.colab" in sys.modules:
    from IPython import get_ipython

    REPOSITORY = "{repository}"  # such as https://github.com/NAME/minidsv4
    if not REPOSITORY.startswith("https://") or "/blob/" in REPOSITORY:
        raise ValueError("REPOSITORY: give the address of the repository")
    package = f"minidsv4[course] @ git+{{REPOSITORY}}"
    get_ipython().run_line_magic("pip", f'install --quiet "{{package}}"')
    if importlib.util.find_spec("minidsv4") is None:
        raise RuntimeError("minidsv4 was not installed: is REPOSITORY right?")
    print("If Colab asks for it, restart the session and run from the top.")"""


def is_for_colab(cell):
    """True for a cell of a notebook that is this one, or was in an earlier form."""
    return cell.cell_type == "code" and cell.source.startswith(MARK)


def put_first(notebook):
    """Put the cell before the notebook's first code cell, and take away every other form of it."""
    notebook.cells = [cell for cell in notebook.cells if not is_for_colab(cell)]
    places = [place for place, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    if places:
        notebook.cells.insert(places[0], v4.new_code_cell(source()))
