"""The pages that GitHub shows tell the truth: links lead somewhere, tables name what there is, one version holds."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import minidsv4
from minidsv4.__main__ import COMMANDS
from minidsv4.course import index, notebooks
from minidsv4.course.mutants import MUTANTS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "minidsv4").rglob("README.md"))]
README = PAGES[0].read_text(encoding="utf-8")


def dead_links(text, folder, headings=""):
    """Relative links and anchors of a page that lead nowhere."""
    anchors = {
        re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in re.findall(r"(?m)^#+ (.+)$", headings)
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("#"):
            if target[1:] not in anchors:
                yield target
        elif not target.startswith("https://") and not (folder / target.split("#")[0]).exists():
            yield target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_of_a_page_leads_to_a_file_or_a_heading(path):
    text = path.read_text(encoding="utf-8")
    assert list(dead_links(text, path.parent, text)) == []


def test_a_dead_link_is_found():
    text = "[a](no/such.py) [b](README.md) [c](#none) [d](#a-heading)\n# A heading\n[e](https://example.org)"
    assert list(dead_links(text, ROOT, text)) == ["no/such.py", "#none"]


def test_the_lesson_table_is_that_of_the_index():
    """Where a notebook is new: put its row, as this test tells it, at its place in the README."""
    known = index.lessons(notebooks.FOLDER).values()
    rows = [
        f"| [{lesson.number}](notebooks/{lesson.file}) | {lesson.question} | {lesson.minutes} |" for lesson in known
    ]
    assert re.findall(r"(?m)^\| \[[^\]]+\]\(notebooks/[^|]+ \| [^|]+\? \| \d+ \|$", README) == rows


def test_the_table_of_commands_names_every_command():
    """`ship` stands in the row of `train`, which makes what it packs."""
    table = README.partition("\n## Commands\n")[2].partition("\n## ")[0]
    assert [name for name in COMMANDS if not re.search(rf"\b{name}\b", table)] == []


def test_every_trap_that_a_question_names_is_in_the_museum():
    questions = README.partition("\n## Questions that every port meets\n")[2].partition("\n## ")[0]
    rows = re.findall(r"(?m)^\| .+ \| .+ \| \[\d\d\]\(notebooks/.+\), `(\w+)` \|$", questions)
    assert len(rows) == len(set(rows)) >= 10 and set(rows) <= set(MUTANTS)


def test_the_python_that_is_shown_is_python():
    shown = re.findall(r"(?s)```python\n(.+?)```", "".join(path.read_text(encoding="utf-8") for path in PAGES))
    assert len(shown) >= 2
    for text in shown:
        ast.parse(text)


def test_package_project_and_citation_tell_the_same_version_and_the_changes_begin_with_it():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {project["version"], str(citation["version"])} == {minidsv4.__version__}
    newest = re.search(r"(?m)^## (\S+?),", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))[1]
    assert minidsv4.__version__.startswith(newest)
