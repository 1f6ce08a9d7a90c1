"""`make lab` lays a copy of the course that is the reader's: cleared, complete, and never overwritten once changed."""

import json
import os
import subprocess
import tomllib
from pathlib import Path

import jupyterlab.labapp
import nbformat
import pytest
from nbformat import v4

from minidsv4.course import lab, notebooks

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def course(tmp_path):
    """A course of one notebook, a track in a subfolder and what an editor leaves behind."""
    folder = tmp_path / "notebooks"
    notebooks.write(folder / "00_one.ipynb", [("md", "# Why?"), ("code", "# hidden: a sum\n1 + 1")])
    for name in ("build/1_norm.ipynb", ".ipynb_checkpoints/00_one-checkpoint.ipynb"):
        (folder / name).parent.mkdir()
        nbformat.write(v4.new_notebook(), folder / name)
    (folder / "build" / "my_v4.py").write_text("norm = ...\n")
    (folder / "ruff.toml").write_text("line-length = 88\n")
    return folder


@pytest.mark.slow
def test_the_copy_is_complete_and_cleared_and_keeps_what_is_folded(course, tmp_path):
    work = tmp_path / "work"
    assert lab.lay(course, work) == []
    laid = sorted(path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_file())
    assert laid == [".laid.json", "00_one.ipynb", "build/1_norm.ipynb", "build/my_v4.py"]
    stored, copy = (nbformat.read(folder / "00_one.ipynb", as_version=4).cells[1] for folder in (course, work))
    assert stored.outputs and not copy.outputs and copy.execution_count is None
    assert copy.source == stored.source and copy.metadata == stored.metadata != {}
    assert (work / "build" / "my_v4.py").read_text() == "norm = ...\n"


@pytest.mark.slow
def test_what_the_reader_changed_stays_and_all_else_follows_the_course(course, tmp_path):
    work = tmp_path / "work"
    lab.lay(course, work)
    mine = work / "build" / "my_v4.py"
    mine.write_text("norm = x / 2\n")
    assert lab.lay(course, work) == ["build/my_v4.py"] and mine.read_text() == "norm = x / 2\n"
    (course / "build" / "my_v4.py").write_text("norm = ...  # new\n")
    nbformat.write(v4.new_notebook(cells=[v4.new_markdown_cell("new", id="x")]), course / "00_one.ipynb")
    assert lab.lay(course, work) == ["build/my_v4.py (the course has a newer one)"]
    assert mine.read_text() == "norm = x / 2\n"
    assert nbformat.read(work / "00_one.ipynb", as_version=4).cells[0].source == "new"
    mine.unlink()
    assert lab.lay(course, work) == [] and mine.read_text() == "norm = ...  # new\n"


def run_and_save(path, output="2"):
    """What JupyterLab leaves of a notebook that was run: outputs, counts, metadata, another layout, an empty cell."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].outputs = [v4.new_output("stream", text=output)]
    notebook.cells[1].execution_count = 7
    notebook.metadata["language_info"] = {"name": "python", "version": "3.11.7"}
    path.write_text(json.dumps({**notebook, "cells": [*notebook.cells, v4.new_code_cell()]}, indent=2))


@pytest.mark.slow
def test_a_notebook_that_was_only_run_keeps_its_outputs_until_the_course_has_a_newer_one(course, tmp_path):
    """Kind: a run and a save that end all updates."""
    work = tmp_path / "work"
    lab.lay(course, work)
    run_and_save(work / "00_one.ipynb")
    saved = (work / "00_one.ipynb").read_bytes()
    assert lab.lay(course, work) == [] and (work / "00_one.ipynb").read_bytes() == saved
    newer = nbformat.read(course / "00_one.ipynb", as_version=4)
    newer.cells[0].source = "# Why not?"
    nbformat.write(newer, course / "00_one.ipynb")
    assert lab.lay(course, work) == []
    cells = nbformat.read(work / "00_one.ipynb", as_version=4).cells
    assert cells[0].source == "# Why not?" and len(cells) == 2 and not cells[1].outputs
    run_and_save(work / "00_one.ipynb")
    mine = nbformat.read(work / "00_one.ipynb", as_version=4)
    mine.cells[1].source = "2 + 2"
    nbformat.write(mine, work / "00_one.ipynb")
    assert lab.lay(course, work) == ["00_one.ipynb"]
    (work / "00_one.ipynb").write_text("{")
    assert lab.lay(course, work) == ["00_one.ipynb"]


@pytest.mark.slow
def test_without_its_record_a_file_that_differs_counts_as_the_readers(course, tmp_path):
    work = tmp_path / "work"
    lab.lay(course, work)
    (work / lab.LAID).unlink()
    assert lab.lay(course, work) == [] and len(json.loads((work / lab.LAID).read_text())) == 3
    (work / lab.LAID).unlink()
    (work / "build" / "my_v4.py").write_text("mine")
    assert lab.lay(course, work) == ["build/my_v4.py (the course has a newer one)"]


@pytest.mark.parametrize(("user", "flags"), [(0, ["--allow-root"]), (1000, [])])
def test_jupyterlab_opens_the_copy_of_the_index_with_the_readers_words(user, flags, monkeypatch, tmp_path, capsys):
    """Kind: a target of make that refuses root, or takes no words."""
    opened = []
    monkeypatch.setattr(jupyterlab.labapp, "main", opened.append)
    monkeypatch.setattr(lab, "lay", lambda: ["a.py"])
    monkeypatch.setattr(os, "geteuid", lambda: user, raising=False)
    monkeypatch.chdir(tmp_path)
    lab.main(["--no-browser", "--port", "9999"])
    assert opened == [[*flags, "--no-browser", "--port", "9999", "work/index.ipynb"]]
    assert Path.cwd() == ROOT
    kept, again = capsys.readouterr().out.splitlines()
    assert kept == "kept as you changed them in work/ (delete one to get it anew): a.py"
    assert again == lab.AGAIN and "Run All Cells" in again


def test_ruff_and_pytest_leave_the_copy_alone_even_where_git_is_not():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert "work/*" in settings["ruff"]["exclude"] and "work" in settings["pytest"]["ini_options"]["norecursedirs"]


def test_make_lab_hands_its_words_on_and_git_ignores_the_copy():
    said = subprocess.run(
        ["make", "--dry-run", "lab", "ARGS=--no-browser"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert said.splitlines()[-1] == ".venv/bin/python -m minidsv4.course.lab --no-browser"
    assert "/work/" in (ROOT / ".gitignore").read_text().splitlines()
