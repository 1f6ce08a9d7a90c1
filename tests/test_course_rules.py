"""The course's rules on names, prose and code, and its two pages that the builder writes.

A table over all notebooks is printed (`pytest -s`); it must hold zeros.
"""

import ast
import re
import shutil

import nbformat
import pytest
from nbformat import v4

from minidsv4 import paper
from minidsv4.course import colab, index, notebooks
from minidsv4.course.glossary import ABBREVIATIONS, glossary_cells
from minidsv4.dims import GLOSSARY

PATHS = index.course(notebooks.FOLDER)
WIDEST, LONGEST, NEAR = 88, 15, 30
RULES = (f"code lines over {WIDEST} columns", f"cells over {LONGEST} lines", "statements of several assignments")
RULES += ("lines of several statements", "abbreviations not spelled out")


def read(path):
    """The notebook in a file."""
    return nbformat.read(path, as_version=4)


def code(notebook):
    """Sources of the code cells."""
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def listings(notebook):
    """Texts of the stored listings of the package's source."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    texts = [output.get("data", {}).get("text/markdown", "") for output in outputs]
    return [text for text in texts if text.startswith("```python")]


def wide_lines(notebook):
    """Lines of code that are too wide, in cells and in listings: JupyterLab would break them."""
    sources = [*code(notebook), *listings(notebook)]
    return [line for source in sources for line in source.splitlines() if len(line) > WIDEST]


def long_cells(notebook):
    """First lines of code cells that are too long."""
    return [source.splitlines()[0] for source in code(notebook) if len(source.splitlines()) > LONGEST]


def packed_statements(notebook):
    """Statements that assign several things: a, b = x, y and a = b = x."""
    nodes = [node for source in code(notebook) for node in ast.walk(ast.parse(source))]
    return [ast.unparse(node) for node in nodes if isinstance(node, ast.Assign) and is_packed(node)]


def crowded_lines(notebook):
    """Lines of code on which a second statement begins: `a; b`, and `if a: b`."""
    found = []
    for source in code(notebook):
        begins = [node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
        lines = source.splitlines()
        found += [lines[number - 1] for number in sorted(set(begins)) if begins.count(number) > 1]
    return found


def is_packed(assign):
    """True for an assignment with several targets, or of a tuple that is written out to a tuple."""
    return len(assign.targets) > 1 or (isinstance(assign.targets[0], ast.Tuple) and isinstance(assign.value, ast.Tuple))


def prose(notebook):
    """What a reader reads, in order: Markdown without code, formulas and addresses, and the words of questions."""
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(
                re.sub(r"(?s)```.*?```|\$\$.*?\$\$|\$[^$\n]*\$|`[^`\n]*`|\]\([^)\s]*\)|<[^>]*>", " ", cell.source)
            )
        elif cell.source.startswith("show.predict("):
            nodes = ast.walk(ast.parse(cell.source))
            words = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
            parts.append("\n".join(words))
    return re.sub(r"[\s*_\[\]]+", " ", "\n\n".join(parts))


def unspelled(notebook):
    """Abbreviations that are not spelled out next to their first use."""
    text = prose(notebook)
    for short, meant in ABBREVIATIONS.items():
        first = re.search(rf"(?<![\w-]){short}(?:\d*|s)(?!\w)", text)
        if first and not meant.everyday:
            reach = len(meant.words) + NEAR
            around = text[max(0, first.start() - reach) : first.end() + reach]
            if plain(meant.words) not in plain(around):
                yield short


def plain(words):
    """Words in small letters, hyphens as spaces."""
    return re.sub(r"[\s-]+", " ", words.lower())


def counts(notebook):
    """How often each of the RULES is broken, with the cases."""
    found = (wide_lines(notebook), long_cells(notebook), packed_statements(notebook), crowded_lines(notebook))
    return dict(zip(RULES, (*found, list(unspelled(notebook)))))


def test_notebooks_keep_the_rules():
    faults = {path.stem: counts(read(path)) for path in PATHS}
    for stem, found in faults.items():
        row = ", ".join(f"{len(cases)} {rule}" for rule, cases in found.items())
        print(f"{stem:24s} {row}")
    assert {stem: found for stem, found in faults.items() if any(found.values())} == {}


def sound():
    """A notebook that keeps the rules."""
    cells = [
        v4.new_markdown_cell(
            "# Why?\n\nCompressed Sparse Attention (CSA) and `HCA` and $MLA$ and [this](MHA.ipynb). CSA."
        ),
        v4.new_code_cell("show.predict(\n    'Does grouped-query attention (GQA8) grow?'\n)"),
        v4.new_code_cell("a, b = f()\nc = (1, 2)\n" + "x = 1\n" * 12 + "# HCA" + " " * 83),
    ]
    return v4.new_notebook(cells=cells)


PLANTED = {
    RULES[0]: lambda n: n.cells[2].update(source="# " + "x" * 87),
    RULES[1]: lambda n: n.cells[2].update(source="x = 1\n" * 16),
    RULES[2]: lambda n: n.cells[2].update(source="a, b = 1, 2"),
    RULES[3]: lambda n: n.cells[2].update(source="if a: b = 1"),
    RULES[4]: lambda n: n.cells[1].update(source="show.predict(\n    'Does GQA8 grow?'\n)"),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_counted(rule):
    notebook = sound()
    assert counts(notebook) == dict.fromkeys(RULES, [])
    PLANTED[rule](notebook)
    assert {name for name, cases in counts(notebook).items() if cases} == {rule}


@pytest.mark.parametrize("path", notebooks.every().values(), ids=lambda path: path.stem)
def test_no_line_of_a_cell_or_of_a_listing_is_wider_than_what_jupyterlab_shows_unbroken(path):
    assert wide_lines(read(path)) == []


@pytest.mark.parametrize(("columns", "wide"), [(88, False), (89, True)])
def test_a_wide_line_of_a_listing_is_counted_and_one_of_another_output_is_not(columns, wide):
    notebook = sound()
    line = "x" * columns
    listing = {"text/markdown": f"```python\n{line}\n```", "text/plain": line}
    notebook.cells[1].outputs = [v4.new_output("display_data", data) for data in (listing, {"text/plain": 2 * line})]
    assert wide_lines(notebook) == [line] * wide


@pytest.mark.parametrize("source", ["a = b = 1", "for x in y:\n    a, b = b, a", "(a, (b, c)) = (1, z)"])
def test_several_assignments_in_a_statement_are_seen_in_any_form(source):
    assert len(packed_statements(v4.new_notebook(cells=[v4.new_code_cell(source)]))) == 1


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("**Compressed Sparse Attention** ([CSA](x.ipynb))", []),
        ("CSA (compressed sparse attention) and CSA", []),
        ("CSA. " + "Much later comes its meaning. " * 3 + "Compressed Sparse Attention", ["CSA"]),
        ("Two FLOPs are two floating-point operations.", []),
        ("An indexer in MXFP4", ["MXFP4"]),
        ("CSA-like", ["CSA"]),
        ("BF16, FP32 and xCSA", []),
    ],
)
def test_an_abbreviation_is_spelled_out_beside_its_first_use_or_missed(text, found):
    assert list(unspelled(v4.new_notebook(cells=[v4.new_markdown_cell(text)]))) == found


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_links_to_the_glossary_in_its_first_cell(path):
    assert "(glossary.ipynb)" in read(path).cells[0].source


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_explains_the_abbreviations_for_which_the_glossary_sends_readers_there(path):
    sent = [short for short, meant in ABBREVIATIONS.items() if meant.notebook == path.stem.split("_")[0]]
    text = prose(read(path))
    assert [short for short in sent if not re.search(rf"(?<![\w-]){short}", text)] == []


# --- the way through the course ---


def way_faults(paths):
    """What is wrong with the links from notebook to notebook, a sentence each; paths in reading order."""
    numbered = [path for path in paths if path.stem[0].isdigit()]
    for path, following in zip(numbered, [*numbered[1:], None]):
        cells = read(path).cells
        due = following.name if following else "index.ipynb"
        end = cells[-1].source.rpartition("Next:")[2]  # the whole cell where it has none
        if not re.search(rf"\((?:\.\./)?{re.escape(due)}\)", end):
            yield f"{path.stem} should end with 'Next:' and a link to {due}"
        if path != numbered[0] and "Last time" not in cells[0].source:
            yield f"{path.stem} should begin with what was last time"


@pytest.mark.parametrize("paths", [PATHS, index.track(notebooks.FOLDER)], ids=["course", "build"])
def test_each_notebook_begins_with_the_one_before_and_ends_with_the_one_after(paths):
    assert list(way_faults(paths)) == []


def test_a_notebook_that_leads_past_the_next_one_is_seen(tmp_path):
    texts = {
        "00_a": "Next: [b](01_b.ipynb)",
        "01_b": "Last time. Next: [d](03_d.ipynb)",
        "02_c": "Next: [i](index.ipynb)",
    }
    for stem, text in texts.items():
        nbformat.write(v4.new_notebook(cells=[v4.new_markdown_cell(text)]), tmp_path / f"{stem}.ipynb")
    assert list(way_faults(sorted(tmp_path.glob("*.ipynb")))) == [
        "01_b should end with 'Next:' and a link to 02_c.ipynb",
        "02_c should begin with what was last time",
    ]


def headings(notebook):
    """The anchors of a notebook's headings, as JupyterLab makes them."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return {found.strip().replace(" ", "-") for found in re.findall(r"(?m)^#+ (.+)$", text)}


def lost_anchors(path):
    """Links of a notebook to a heading that is not there."""
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    for file, anchor in re.findall(r"\]\(([\w./]*\.ipynb)?#([^)\s]+)\)", text):
        if anchor not in headings(read(path.parent / file if file else path)):
            yield f"{file}#{anchor}"


@pytest.mark.parametrize("path", notebooks.every().values(), ids=lambda path: path.stem)
def test_a_link_to_a_heading_finds_it(path):
    assert list(lost_anchors(path)) == []


def test_a_link_to_a_heading_that_is_not_there_is_seen(tmp_path):
    path = tmp_path / "x.ipynb"
    cell = v4.new_markdown_cell("## Two words\n\n[a](#Two-words) [b](x.ipynb#Two-words) [c](#One)")
    nbformat.write(v4.new_notebook(cells=[cell]), path)
    assert list(lost_anchors(path)) == ["#One"]


# --- the pages that the builder writes ---


@pytest.mark.parametrize("page", notebooks.GENERATED)
def test_a_page_of_the_builder_is_as_it_would_write_it_now(page):
    cells = read(notebooks.FOLDER / f"{page}.ipynb").cells
    stored = [cell.source for cell in cells if not colab.is_for_colab(cell)]
    assert stored == [text for _, text in notebooks.GENERATED[page](notebooks.FOLDER)], "make notebooks ARGS=" + page


def page(cells):
    """The Markdown of a page as one text."""
    return "\n".join(text for kind, text in cells if kind == "md")


def test_the_index_names_each_notebook_with_its_question_its_minutes_its_needs_and_its_abilities():
    text = page(index.index_cells(notebooks.FOLDER))
    for path in [*PATHS, *index.track(notebooks.FOLDER), *index.problems(notebooks.FOLDER)]:
        told = index.lesson(path)
        row = next(line for line in text.splitlines() if line.startswith("|") and f"]({told.file})" in line)
        longest = {"build": 180, "problems": 90}.get(path.parent.name, 60)
        assert row.split(" | ")[1] == str(told.minutes) and 10 <= told.minutes <= longest
        assert row.count("<br>") == len(told.abilities) - 1 == 2
        assert told.question.endswith("?") and (told.question in row or "$" in told.question)
    assert len(re.findall(r"(?m)^- Week \d", text)) == len(index.WEEKS) and "An afternoon" in text


@pytest.mark.slow
@pytest.mark.parametrize("number", paper.EQUATIONS)
def test_the_notebook_that_the_index_names_for_an_equation_shows_its_loop_or_its_pytorch_form(number):
    loop, operation, _ = paper.EQUATIONS[number]
    path = next(path for path in PATHS if path.stem.startswith(f"{index.taught(number)}_"))
    names = [loop.__name__, *operation.split(", ")]
    assert re.search(rf"\b(?:{'|'.join(names)})\b", path.read_text(encoding="utf-8"))
    row = next(
        line for line in page(index.index_cells(notebooks.FOLDER)).splitlines() if line.startswith(f"| ({number}) ")
    )
    assert f"({path.name})" in row and f"`paper.{loop.__name__}`" in row


def needed(lesson):
    """Numbers of the notebooks that a lesson's needs name, those of a span such as 01 to 03 too."""
    words = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", lesson.needs)
    named = set(re.findall(r"\b\d\d\b", words))
    for first, last in re.findall(r"\b(\d\d) to (\d\d)\b", words):
        named |= {f"{number:02d}" for number in range(int(first), int(last))}
    return named


def test_each_path_begins_where_the_readme_says_and_brings_what_a_notebook_needs_before_it():
    """Kind: a path that leaves out a notebook, or puts it behind one that needs it."""
    known = index.lessons(notebooks.FOLDER)
    readme = (notebooks.FOLDER.parent / "README.md").read_text(encoding="utf-8")
    assert needed(known["04"]) == {"01", "02", "03"}
    for path in (index.AFTERNOON, sum(index.WEEKS.values(), ())):
        for place, number in enumerate(path):
            missing = needed(known[number]) - set(path[:place]) if number in known else set()
            assert not missing, f"{number} needs {missing}"
        assert f"Start with [`notebooks/{known[path[0]].file}`]" in readme
    parts = [number for number in sum(index.WEEKS.values(), ()) if number.startswith(index.BUILD)]
    assert parts == [number for number in known if number.startswith(index.BUILD)]
    assert set(parts[:2]) < set(next(iter(index.WEEKS.values()))), "attention is built in the week of attention"


def test_a_notebook_of_the_future_is_announced_until_it_exists_and_then_stands_in_the_table(tmp_path):
    first = "# Why {}?\n\nNeeds: a pen. About 30 minutes.\n\nAfterwards you can\n- see,\n- say,\n- stay."
    for name in ("00_tour", "11_bits", "30_more"):
        nbformat.write(v4.new_notebook(cells=[v4.new_markdown_cell(first.format(name))]), tmp_path / f"{name}.ipynb")
    text = page(index.index_cells(tmp_path))
    assert "- 11 " not in text and "- 15 " in text
    assert "| [11 Why 11_bits?](11_bits.ipynb) | 30 | a pen | • see<br>• say<br>• stay |" in text
    assert "Week 3, the whole model and its training (0.5 hours): [11 bits](11_bits.ipynb)" in text
    assert "Besides (0.5 hours): [30 more](30_more.ipynb)" in text
    assert "build/" not in text
    (tmp_path / "build").mkdir()
    shutil.copy(tmp_path / "00_tour.ipynb", tmp_path / "build" / "1_norm.ipynb")
    text = page(index.index_cells(tmp_path))
    assert text.count("[build 1 norm](build/1_norm.ipynb)") == 2
    assert re.search(r"- Week 1, .* \(1 hour\): \[00 tour\]\(00_tour.ipynb\), \[build 1 norm\]", text)
    assert "| [build 1 Why 00_tour?](build/1_norm.ipynb) | 30 | a pen | • see<br>• say<br>• stay |" in text
    assert "| QAT | quantisation-aware training | [11 Why 11_bits?](11_bits.ipynb) |" in page(glossary_cells(tmp_path))


@pytest.mark.parametrize("lacking", ["?", "Needs", "About", "- "])
def test_a_first_cell_without_its_parts_is_refused_by_name(lacking, tmp_path):
    first = "# Why?\n\nNeeds: a pen. About 30 minutes.\n\nAfterwards you can\n- see.".replace(lacking, "")
    nbformat.write(v4.new_notebook(cells=[v4.new_markdown_cell(first)]), tmp_path / "07_x.ipynb")
    with pytest.raises(ValueError, match="07_x.ipynb: its first cell should have"):
        index.lesson(tmp_path / "07_x.ipynb")


def test_the_glossary_has_a_row_for_each_letter_and_each_abbreviation():
    text = page(glossary_cells(notebooks.FOLDER))
    for letter, axis in GLOSSARY.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| **{letter}** |"))
        assert axis.meaning in row and axis.field in row and (axis.pro is None or f"{axis.pro:,}" in row)
    assert "| **M** | tokens per compressed entry | $m, m'$ | `compress_ratios` | 4 and 128 | 4 and 128 |" in text
    assert r"| $n_{\text{win}}$ |" in text and "| $n_h^I$ |" in text
    for short, meant in ABBREVIATIONS.items():
        assert f"| {short} | {meant.words} |" in text
