"""From a committed notebook to the notebook that the site shows: the same text, with outputs that a page can move.

Pictures become files of their own with their alternative text; a picture behind sliders brings all its frames; a
question says what is right, for the script that hides what follows. The cell for Colab stays away: a page is not run.
"""

import ast
import base64
import copy
import hashlib
import json
import re
from html import escape
from pathlib import Path

from nbformat import v4

from minidsv4.course import colab

PICTURES = "pictures"  # folder of the site
ASKS = "show.predict("
MOVES = "show.explore("


def page(notebook, name, pictures, frames=None):
    """The notebook of a page.

    notebook  NotebookNode as committed; stays as it is
    name      of the notebook below its folder, such as "build/1_pieces"
    pictures  dict that takes file name = bytes of every picture of the page
    frames    count of a code cell = what its show.explore left (frames.py); none means pictures that stand still
    returns   NotebookNode
    """
    made = copy.deepcopy(notebook)
    made.cells = [cell for cell in made.cells if not colab.is_for_colab(cell)]
    up = "../" * name.count("/")
    for cell in made.cells:
        if cell.cell_type != "code":
            continue
        moving = (frames or {}).get(cell.execution_count)
        cell.outputs = [_output(output, up, pictures, moving) for output in cell.outputs]
        if cell.source.startswith(ASKS):
            cell.metadata["tags"] = ["remove-input"]
            cell.outputs = [_asked(output, cell.source) for output in cell.outputs]
    if name != "index":
        made.cells.insert(1, v4.new_markdown_cell(hint(name)))
    return made


def hint(name):
    """The sentence that says where a page can be run and changed."""
    return (
        f'<p class="lab-hint">To run and change this page: <code>make lab</code> opens <code>{name}.ipynb</code>.</p>'
    )


def _output(output, up, pictures, moving):
    """An output whose picture is an element of the page; any other output as it is."""
    if "image/png" not in output.get("data", {}):
        return output
    facts = output.metadata["image/png"]
    if moving:
        return _html(explorer(moving, up))
    data = base64.b64decode(output.data["image/png"])
    file = f"{hashlib.sha256(data).hexdigest()[:16]}.png"
    pictures[file] = data
    return _html(f'<figure class="picture">{image({**facts, "file": file}, up)}</figure>')


def _html(text):
    return v4.new_output("display_data", data={"text/html": text})


def image(facts, up):
    """A picture as an HTML element; facts are its file, alt, width and height."""
    return (
        f'<img src="{up}{PICTURES}/{facts["file"]}" alt="{escape(facts["alt"], quote=True)}" '
        f'width="{facts["width"]}" height="{facts["height"]}" loading="lazy">'
    )


def explorer(moving, up):
    """A picture with everything that its sliders can show; without a script it is the picture of the start values.

    moving   "controls" and "frames" as frames.py writes them
    up       "../" for each folder between the page and the site's root
    returns  HTML
    """
    place = 0
    for control in moving["controls"]:
        place = place * len(control["labels"]) + control["start"]
    data = json.dumps({"folder": f"{up}{PICTURES}/", **moving}).replace("<", "\\u003c")
    return (
        f'<figure class="picture explore">{image(moving["frames"][place], up)}'
        f'<script type="application/json">{data}</script></figure>'
    )


# --- questions ---


def question(source):
    """The arguments of the show.predict that a cell consists of.

    source   text of the cell
    returns  dict of its keywords
    raises   ValueError for a cell that is more than one call with plain values
    """
    try:
        (statement,) = ast.parse(source).body
        return {word.arg: ast.literal_eval(word.value) for word in statement.value.keywords}
    except ValueError as error:
        raise ValueError(f"the cell {source[:60]!r} should be one show.predict with plain values") from error


def _asked(output, source):
    """The output of a question, in an element that tells a script what is right."""
    asked = question(source)
    if "choices" in asked:
        facts = {"right": list(asked["choices"]).index(asked["right"])}
    else:
        facts = {"number": asked["number"], "within": asked["within"], "unit": asked.get("unit", "")}
    words = " ".join(f'data-{key}="{escape(str(value), quote=True)}"' for key, value in facts.items())
    told = output.data["text/markdown"]
    return v4.new_output("display_data", data={"text/markdown": f'<div class="predict" {words}>\n\n{told}\n\n</div>'})


# --- what is run anew ---


def moving_part(notebook):
    """A copy of the notebook as far as its last cell with a slider; None where nothing moves."""
    places = [place for place, cell in enumerate(notebook.cells) if _moves(cell)]
    if not places:
        return None
    part = copy.deepcopy(notebook)
    part.cells = part.cells[: places[-1] + 1]
    return part


def read_frames(folder, notebook):
    """What a run with frames left for the cells of a notebook.

    folder   where the run wrote, frames.py
    returns  count of a cell = its controls and frames
    raises   ValueError where a cell does not call show.explore once, or drew another picture than the notebook stores
    """
    cells = [cell for cell in notebook.cells if _moves(cell)]
    drawn = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(folder).glob("*.json"))]
    if len(cells) != len(drawn):
        raise ValueError(
            f"{len(cells)} cells have a show.explore, it was called {len(drawn)} times; it should be once a cell"
        )
    for cell, moving in zip(cells, drawn):
        alts = [frame["alt"] for frame in moving["frames"]]
        stored = next(
            output.metadata["image/png"]["alt"] for output in cell.outputs if "image/png" in output.get("data", {})
        )
        if stored not in alts:
            raise ValueError(f"cell {cell.execution_count} stores a picture that it does not draw: {stored!r}")
    return {cell.execution_count: moving for cell, moving in zip(cells, drawn)}


def _moves(cell):
    """True for a code cell with a slider."""
    return cell.cell_type == "code" and MOVES in cell.source


def without_links(text):
    """Markdown whose links are their words."""
    return re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text)
