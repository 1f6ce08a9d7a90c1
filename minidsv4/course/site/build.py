"""The whole site: sources from the committed notebooks, Sphinx over them, the pictures and tools beside."""

import io
import os
import re
import shutil
from pathlib import Path

import nbformat

from minidsv4.course import index, notebooks
from minidsv4.course.site import first, redraw
from minidsv4.course.site.pages import PICTURES, page

HERE = Path(__file__).parent
ROOT = notebooks.FOLDER.parent
SITE = ROOT / "site"
WORK = ROOT / "build" / "site"  # what a build keeps for the next one
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def build(folder=notebooks.FOLDER, site=SITE, work=WORK, moves=None, tools=None, say=print):
    """Build the site of a folder of notebooks.

    folder   of the course
    site     where the pages go; emptied of pages that no longer exist
    work     where sources, Sphinx's memory and drawn frames are kept between builds
    moves    names of the notebooks whose pictures follow sliders, such as 01_attention; None means all
    tools    name of a page in first.TOOLS = a module with write_site(folder, address of the pages); none means all
    say      called with a sentence before what takes long
    returns  a sentence for each notebook whose pictures stand still, and Sphinx's warnings; none for a sound site
    raises   ValueError for a folder without an index
    """
    tools = first.tools() if tools is None else tools
    read = {path: nbformat.read(path, as_version=4) for path in _paths(folder)}
    wanted = {path: notebook for path, notebook in read.items() if moves is None or _name(path, folder) in moves}
    moving, faults = redraw.redraw(wanted, work / "frames", _jobs(), say)
    pictures = {}
    texts = {}
    for path, notebook in read.items():
        name = _name(path, folder)
        if name == "index":
            notebook = first.first_page(folder, notebook, tools)
        texts[f"{name}.ipynb"] = nbformat.writes(page(notebook, name, pictures, moving.get(path)))
    texts |= {f"{name}.md": first.tool_page(name) for name in tools}
    _write_sources(work / "source", folder, texts)
    warnings = _sphinx(work, site)
    _write_pictures(site / PICTURES, pictures, read, moving, work / "frames")
    for name, module in tools.items():
        say(f"{name}: writing its pages")
        module.write_site(site / name, "..")
    return faults + warnings


def _paths(folder):
    """The notebooks of a folder: course, track, assignments and pages."""
    pages = [folder / f"{name}.ipynb" for name in index.PAGES]
    paths = [*index.course(folder), *index.track(folder), *index.problems(folder), *pages]
    if missing := [path.name for path in paths if not path.exists()]:
        raise ValueError(
            f"the folder {folder} has no {', '.join(missing)}; the site is built of the course's notebooks"
        )
    return paths


def _name(path, folder):
    """The name of a notebook, such as 01_attention or build/1_pieces."""
    return path.relative_to(folder).with_suffix("").as_posix()


def _jobs():
    """How many notebooks run at a time: one on each processor, at most four."""
    return min(4, os.cpu_count() or 1)


def _write_sources(source, folder, texts):
    """Lay what Sphinx reads, and touch only what changed, so that Sphinx reads only that."""
    for path in sorted(Path(folder).rglob("*.py")):
        texts[path.relative_to(folder).as_posix()] = path.read_text(encoding="utf-8")
    for path in [path for path in source.rglob("*") if path.is_file()]:
        if path.relative_to(source).as_posix() not in texts:
            path.unlink()
    for name, text in texts.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _sphinx(work, site):
    """Run Sphinx; returns its warnings, a line each."""
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    made = work / "html"  # myst-nb puts a folder beside it
    shutil.rmtree(made, ignore_errors=True)
    heard = io.StringIO()
    with patch_docutils(str(HERE)), docutils_namespace():
        app = Sphinx(work / "source", HERE, made, work / "doctrees", "html", status=None, warning=heard)
        app.build(force_all=True)
    shutil.rmtree(site, ignore_errors=True)
    shutil.copytree(made, site, ignore=shutil.ignore_patterns(".buildinfo", "objects.inv"))
    return COLOURS.sub("", heard.getvalue()).strip().splitlines()


def _write_pictures(target, pictures, read, moving, cache):
    """Put every picture of the pages into the site."""
    target.mkdir(exist_ok=True)
    for file, data in pictures.items():
        (target / file).write_bytes(data)
    for path in moving:
        drawn = redraw.folder_of(redraw.moving_part(read[path]), cache)
        for picture in drawn.glob("*.webp"):
            shutil.copyfile(picture, target / picture.name)
