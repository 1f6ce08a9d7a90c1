"""The pages that only the site has: the first one, and those that lead to what is not a notebook."""

import importlib
import importlib.util

from nbformat import v4

from minidsv4.course import colab, index
from minidsv4.course.site.pages import without_links
from minidsv4.course.tables import Table

# Page = its title, and what one does there. A page is made where the package has a module of its name.
TOOLS = {
    "microscope": (
        "The microscope",
        "The shipped model reads a dozen short texts, and you look inside: choose a text, a token, a layer, a head, "
        "and see what was read, what the indexer picked, which experts worked and how the streams were mixed.",
    ),
    "stepper": (
        "Step through one token",
        "The report's equations as loops, run line by line on a tiny model: the current line is lit, its values stand "
        "beside it, and you go forward and back from token ids to logits.",
    ),
}
WELCOME = """# A small DeepSeek-V4 to read, run and take apart

minidsv4 is DeepSeek-V4 at a small size: the components of the released model with the released semantics, in PyTorch
that follows the equations, and a course of notebooks in which every claim is computed in front of you. These pages
are the course as it ran, to be read without installing anything.

- **Pictures with sliders move here as well.** They were drawn ahead, by the code that stands above them.
- **Questions hide what follows until you answer.** Who would rather read on chooses *Show the whole page*.
- **To run and change a page**, clone the repository: `make lab` opens your own copies of the notebooks.
"""


def tools():
    """Names of the TOOLS that the package has, each with its module.

    returns  dict of modules, which have write_site(folder, address of the course's pages seen from there)
    """
    found = {}
    for name in TOOLS:
        if importlib.util.find_spec(f"minidsv4.course.{name}"):
            module = importlib.import_module(f"minidsv4.course.{name}")
            if hasattr(module, "write_site"):
                found[name] = module
    return found


def first_page(folder, stored, there):
    """The site's first page.

    folder  of the notebooks
    stored  NotebookNode of the course's index, for its map
    there   names of the TOOLS that the site has
    returns NotebookNode, its outputs as a notebook stores them
    """
    known = index.lessons(folder)
    (drawn,) = (cell for cell in stored.cells if cell.cell_type == "code" and not colab.is_for_colab(cell))
    drawn.metadata["tags"] = ["remove-input"]
    return v4.new_notebook(
        cells=[
            v4.new_markdown_cell(WELCOME),
            drawn,
            v4.new_markdown_cell(_paths(known)),
            v4.new_markdown_cell(_lessons(known) + _tools(there)),
            v4.new_markdown_cell(
                f"## Equations\n\nFrom the report to a loop and to PyTorch.\n\n{index.equations(known)}"
            ),
            v4.new_markdown_cell(contents(known, there)),
        ]
    )


def _paths(known):
    """Two ways through the course."""
    weeks = [
        f"- **{title}** ({index.hours(known, numbers)}): {index.links(index.files(known, numbers))}"
        for title, numbers in index.WEEKS.items()
    ]
    return "\n\n".join(
        [
            "## Two paths",
            f"**An afternoon** ({index.hours(known, index.AFTERNOON)}): what is new in V4's attention, cache and "
            f"experts. {index.links(index.files(known, index.AFTERNOON))}",
            "**Four weeks**, a notebook at a sitting, with exercises and the track *build a V4*:",
            "\n".join(weeks),
        ]
    )


def _lessons(known):
    """The table of lessons: question, minutes, and what one needs."""
    rows = [(found.link, str(found.minutes), without_links(found.needs)) for found in known.values()]
    return "## Lessons\n\n" + Table(("question", "minutes", "needs"), rows).markdown()


def _tools(there):
    """What there is beside the notebooks."""
    lines = [f"- [{TOOLS[name][0]}]({name}.md): {TOOLS[name][1]}" for name in there]
    return "\n\n## Look inside\n\n" + "\n".join(lines) if lines else ""


def contents(known, there):
    """The site's order of pages as Sphinx's hidden tables of contents: next and previous follow it."""
    entries = {number: _entry(number, found) for number, found in known.items()}
    parts = {
        "The course": [entry for number, entry in entries.items() if number.isdigit()],
        "Build a V4": [entry for number, entry in entries.items() if number.startswith(index.BUILD)],
        "Assignments": [entry for number, entry in entries.items() if number.startswith(index.PROBLEMS)],
        "Look inside": list(there),
        "Beside it": [entry for number, entry in entries.items() if number.isalpha()] + ["glossary"],
    }
    return "\n\n".join(
        f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(files) + "\n```"
        for caption, files in parts.items()
        if files
    )


def _entry(number, found):
    """A lesson's line in the table of contents: its number where it has one, its question, its page."""
    shown = number.split()[-1]
    name = found.file.removesuffix(".ipynb")
    return f"{shown} {found.question} <{name}>" if shown.isdigit() else name


def tool_page(name):
    """The page that leads to a tool, in Markdown."""
    title, words = TOOLS[name]
    return f'# {title}\n\n{words}\n\n<p><a class="open-tool" href="{name}/index.html">Open: {title.lower()}</a></p>\n'
