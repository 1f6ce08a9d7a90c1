"""The course as static pages: built from two small notebooks, its links followed, its pictures drawn ahead."""

import json
import re
import shutil

import nbformat
import numpy as np
import pytest
import torch
from nbclient.exceptions import CellExecutionError
from nbformat import v4

from minidsv4.course import frames, notebooks, questions
from minidsv4.course.site import __main__ as command
from minidsv4.course.site import browser, build, first, links, look, mathml, pages, redraw

FIRST = """# Why {}?

Of $\\hat x_i < \\sqrt{{2}}$ and [the next](01_next.ipynb#a-second-part), [solutions](solutions/00_tour.py).

$$\\sum_j p_j\\, e_j$$

Needs: a pen. About 30 minutes. [glossary](glossary.ipynb)

Afterwards you can
- see,
- say,
- stay."""
ASKED = 'show.predict("Is it $x$?", choices=["no `x`", "yes"], right="yes", why="It is.")'
DRAW = """from matplotlib.figure import Figure
from minidsv4.course import show
import torch


def draw(height, kind):
    figure = Figure(figsize=(1, 1))
    figure.add_subplot().plot([0, height // 2], [0, torch.rand(1).item() * 0])
    return show.Picture(figure, alt=f"A {kind} line of height {height}.")
"""
EXPLORED = 'show.explore(draw, {"height": "tokens"}, {"height": 2}, height=[1, 2, 3], kind=["thin", "wide"])'


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """Two small notebooks, run, with the index, the glossary and a solution."""
    folder = tmp_path_factory.mktemp("course") / "notebooks"
    cells = [("md", FIRST.format("this")), ("code", DRAW), ("code", ASKED), ("md", "## Seen"), ("code", EXPLORED)]
    notebooks.write(folder / "00_tour.ipynb", [*cells, ("code", "torch.rand(1).item()")])
    second = [FIRST.format("that").replace("#a-second-part", ""), "## A second part\n\nquantisation"]
    nbformat.write(v4.new_notebook(cells=[v4.new_markdown_cell(text) for text in second]), folder / "01_next.ipynb")
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell("the map")]), folder / "index.ipynb")
    nbformat.write(v4.new_notebook(cells=[v4.new_markdown_cell("# Words")]), folder / "glossary.ipynb")
    (folder / "solutions").mkdir()
    (folder / "solutions" / "00_tour.py").write_text("answer = 1\n")
    return folder


class Tool:
    """A tool with one page, which leads back."""

    @staticmethod
    def write_site(folder, pages):
        folder.mkdir()
        (folder / "index.html").write_text(f'<a href="{pages}/00_tour.html">back</a>')


TOOLS = {"stepper": Tool}


@pytest.fixture(scope="module")
def site(course):
    """The folder of its site; everything that was said on the way is in site.said."""
    said = []
    warnings = build.build(course, course.parent / "site", course.parent / "work", tools=TOOLS, say=said.append)
    assert warnings == []
    assert said == ["00_tour: drawing what its sliders can show", "stepper: writing its pages"]
    return course.parent / "site"


@pytest.mark.slow
def test_every_link_of_the_site_leads_somewhere_and_nothing_comes_from_elsewhere(site):
    assert links.faults(site) == []
    made = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    assert {
        "index.html",
        "00_tour.html",
        "01_next.html",
        "glossary.html",
        "search.html",
        "stepper.html",
        "stepper/index.html",
    } <= made
    first = (site / "index.html").read_text(encoding="utf-8")
    assert first.index("Two paths") < first.index("Lessons") and "00 Why this?" in first
    tour = (site / "00_tour.html").read_text(encoding="utf-8")
    assert 'href="01_next.html#a-second-part"' in tour and "<code>make lab</code> opens <code>00_tour.ipynb" in tour
    assert 'rel="next"' in tour and tour.count("<math") == 3 and "$x$" not in tour


@pytest.mark.parametrize(
    ("planted", "fault"),
    [
        ('<a href="02_gone.html">', "02_gone.html leads to no file"),
        ('<a href="01_next.html#gone">', "01_next.html#gone leads to no place in its page"),
        ('<a href="#gone">', "#gone leads to no place in its page"),
        ('<img src="pictures/gone.png">', "pictures/gone.png leads to no file"),
        ('<script src="https://example.org/x.js">', "which lies outside the site"),
        ('<link rel="stylesheet" href="//example.org/x.css">', "which lies outside the site"),
        ('<a href="https://example.org/x">', None),
        ('<img src="data:image/png;base64,">', None),
    ],
)
def test_a_link_that_leads_nowhere_is_found(planted, fault, tmp_path):
    (tmp_path / "01_next.html").write_text('<p id="here">')
    (tmp_path / "00_tour.html").write_text(f'{planted}</a><a href="01_next.html#here">x</a>')
    found = links.faults(tmp_path)
    assert [fault in sentence for sentence in found] == [True] if fault else found == []


def explored(site):
    """What the page of the first notebook tells its slider, and the page's text."""
    text = (site / "00_tour.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', text)[1]), text


@pytest.mark.slow
def test_a_slider_of_the_site_has_all_pictures_and_a_page_without_script_the_stored_one(site):
    told, text = explored(site)
    assert [control["labels"] for control in told["controls"]] == [
        ["1 token", "2 tokens", "3 tokens"],
        ["thin", "wide"],
    ]
    assert [(control["kind"], control["start"]) for control in told["controls"]] == [("slider", 1), ("menu", 0)]
    words = [f"A {kind} line of height {height}." for height in (1, 2, 3) for kind in ("thin", "wide")]
    assert [frame["alt"] for frame in told["frames"]] == words
    assert len({frame["file"] for frame in told["frames"]}) == 2, "heights 2 and 3 are the same picture, kept once"
    assert all((site / "pictures" / frame["file"]).exists() for frame in told["frames"])
    static = re.search(r'<img src="pictures/(\w+\.webp)" alt="([^"]*)"', text)
    assert static.groups() == (told["frames"][2]["file"], "A thin line of height 2.")


@pytest.mark.slow
def test_a_second_build_runs_no_notebook(site, course):
    said = []
    build.build(course, course.parent / "again", course.parent / "work", tools={}, say=said.append)
    assert said == [] and explored(course.parent / "again")[0] == explored(site)[0]


def test_only_the_named_notebooks_are_drawn(course, monkeypatch):
    def told(wanted, *_):
        raise ValueError([path.stem for path in wanted])

    monkeypatch.setattr(redraw, "redraw", told)
    for moves, drawn in ((["01_next"], ["01_next"]), ([], []), (None, ["00_tour", "01_next", "index", "glossary"])):
        with pytest.raises(ValueError, match=re.escape(str(drawn))):
            build.build(course, course.parent / "no", course.parent / "work", moves=moves, tools={})


def test_a_name_that_is_no_notebooks_is_refused(capsys):
    with pytest.raises(SystemExit):
        command.main(["--moving", "01_attention", "77"])
    assert capsys.readouterr().err.startswith("--moving: no notebook is called 77; there are 00_tour, ")


def test_the_first_page_has_the_map_of_the_courses_own_index():
    """Kind: the real index, which has a cell for Colab too; before, the site could not be built."""
    stored = nbformat.read(notebooks.every()["index"], as_version=4)
    page = first.first_page(notebooks.FOLDER, stored, ())
    (drawn,) = (cell for cell in page.cells if cell.cell_type == "code")
    assert "image/png" in drawn.outputs[0].data and "remove-input" in drawn.metadata["tags"]


@pytest.mark.slow
def test_a_notebook_is_drawn_again_where_a_file_that_it_imported_has_changed(site, course):
    (uses,) = (course.parent / "work").rglob(frames.USES)
    told = uses.read_text(encoding="utf-8")
    names = [line.split()[1] for line in told.splitlines()]
    assert {"course/sliders.py", "ops.py"} < set(names) and redraw._is_current(uses.parent)
    uses.write_text(told.replace(told[:64], "0" * 64), encoding="utf-8")
    assert not redraw._is_current(uses.parent)
    uses.write_text(told, encoding="utf-8")


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (
            CellExecutionError("Traceback\nZeroDivisionError: by zero", "", ""),
            "CellExecutionError: ZeroDivisionError: by zero",
        ),
        (None, "ValueError: 1 cells have a show.explore, it was called 0 times; it should be once a cell"),
    ],
)
def test_a_notebook_that_cannot_be_drawn_is_a_fault_and_its_pictures_stand_still(error, fault, tmp_path, monkeypatch):
    def run(*_, **__):
        if error:
            raise error

    monkeypatch.setattr(redraw, "run", run)
    notebook = v4.new_notebook(cells=[v4.new_code_cell("show.explore(draw)")])
    found = redraw.redraw({tmp_path / "07_x.ipynb": notebook}, tmp_path / "kept", 1, say=list)
    assert found == ({}, [f"07_x: its pictures stand still. {fault}"])


@pytest.mark.slow
def test_a_question_of_the_site_says_what_is_right_and_does_not_show_its_source(site):
    text = (site / "00_tour.html").read_text(encoding="utf-8")
    assert '<div class="predict" data-right="1">' in text and "<summary>Answer</summary>" in text
    assert "show.predict" not in re.sub(r"<[^>]*>", "", text)


def test_a_picture_that_is_not_the_stored_one_is_refused(course, tmp_path):
    notebook = nbformat.read(course / "00_tour.ipynb", as_version=4)
    frame = {"controls": [], "frames": [{"alt": "Another picture altogether."}]}
    (tmp_path / "00.json").write_text(json.dumps(frame))
    with pytest.raises(ValueError, match="cell 3 stores a picture that it does not draw: 'A thin line"):
        pages.read_frames(tmp_path, notebook)
    (tmp_path / "01.json").write_text(json.dumps(frame))
    with pytest.raises(ValueError, match="1 cells have a show.explore, it was called 2 times"):
        pages.read_frames(tmp_path, notebook)


def test_a_folder_without_the_courses_pages_is_refused(course, tmp_path):
    shutil.copy(course / "00_tour.ipynb", tmp_path)
    with pytest.raises(ValueError, match="has no index.ipynb, glossary.ipynb"):
        build.build(tmp_path, tmp_path / "site", tmp_path / "work")


@pytest.mark.parametrize("name", notebooks.every())
def test_every_question_of_the_course_can_be_asked_by_a_page(name):
    for cell in nbformat.read(notebooks.every()[name], as_version=4).cells:
        if cell.cell_type == "code" and "show.predict(" in cell.source:
            asked = pages.question(cell.source)
            assert cell.source.startswith(pages.ASKS) and ("choices" in asked or "within" in asked)


def test_a_question_whose_answer_is_computed_is_refused():
    with pytest.raises(ValueError, match="should be one show.predict with plain values"):
        pages.question("show.predict('How many?', number=2 * n, within=0, why='so')")
    with pytest.raises(ValueError, match="should be one show.predict with plain values"):
        pages.question("show.predict('How many?', number=2, within=0, why='so')\nx = 1")


# --- frames ---


def test_too_many_values_are_thinned_and_both_ends_and_the_start_stay():
    ranges = {"layer": list(range(10)), "kind": ["a", "b"]}
    few = frames.thinned(ranges, {"layer": 3, "kind": "a"}, most=14)
    assert few == {"layer": [0, 2, 3, 4, 6, 8, 9], "kind": ["a", "b"]}
    assert frames.thinned(ranges, {"layer": 3, "kind": "a"}, most=20) == ranges


def test_drawing_frames_leaves_random_numbers_as_they_were():
    torch.manual_seed(0)
    np.random.seed(0)
    wanted = torch.rand(1), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    drawn = frames._as_if_alone(lambda: (torch.rand(1), np.random.rand()), {})
    assert drawn == wanted and (torch.rand(1), np.random.rand()) == wanted


# --- formulas ---


def test_a_formula_is_written_as_mathml_with_its_source_as_alternative_text():
    written = mathml.formula('a < "b" \\sqrt{2}', "block")
    assert (
        'alttext="a &lt; &quot;b&quot; \\sqrt{2}"' in written and "<msqrt>" in written and 'display="block"' in written
    )


def test_a_prime_stands_beside_its_letter_and_a_slash_takes_no_room():
    written = mathml.formula("K/M' = 2^t", "inline")
    assert "<mi>M</mi><mo " in written and ">&#x02032;</mo>" in written and written.count("<msup>") == 1
    assert '<mi>K</mi><mo lspace="0" rspace="0">&#x0002F;</mo>' in written


@pytest.mark.parametrize("latex", ["\\left( x", "x_a_b", "\\unheard x"])
def test_a_formula_that_cannot_be_read_is_named(latex):
    with pytest.raises(ValueError, match="cannot be written as MathML") as raised:
        mathml.formula(latex, "inline")
    assert repr(latex) in str(raised.value)


# --- the look in a browser ---

ROOT = "file:///site"
GOOD = {"method": "Network.requestWillBeSent", "params": {"request": {"url": f"{ROOT}/a.png"}}}


@pytest.mark.parametrize(
    ("method", "params", "fault"),
    [
        ("Runtime.exceptionThrown", {"exceptionDetails": {"text": "Uncaught x"}}, "a script stopped: Uncaught x"),
        ("Runtime.consoleAPICalled", {"type": "error", "args": [{"value": "x"}]}, "a script reports: ['x']"),
        ("Runtime.consoleAPICalled", {"type": "log", "args": []}, None),
        ("Log.entryAdded", {"entry": {"level": "error", "text": "x", "url": "y"}}, "the browser reports: x y"),
        ("Network.loadingFailed", {"errorText": "x", "canceled": False}, "a request failed: x"),
        ("Network.loadingFailed", {"errorText": "x", "canceled": True}, None),
        (
            "Network.requestWillBeSent",
            {"request": {"url": "https://e.org/"}},
            "a request leaves the folder: https://e.org/",
        ),
        (
            "Network.requestWillBeSent",
            {"request": {"url": "file:///siteless"}},
            "a request leaves the folder: file:///siteless",
        ),
    ],
)
def test_what_a_browser_tells_of_errors_and_requests_is_a_fault(method, params, fault):
    assert list(look.event_faults([GOOD, {"method": method, "params": params}], ROOT)) == ([fault] if fault else [])


def test_a_link_to_a_file_that_is_not_there_is_dead(tmp_path):
    (tmp_path / "a b.html").write_text("")
    there, gone = (tmp_path / "a b.html").as_uri(), (tmp_path / "gone.html").as_uri()
    found = list(look.dead_links([f"{there}#part", gone, gone, "https://example.org/x"]))
    assert found == [f"a link leads to no file: {gone}"]


def test_without_a_browser_the_command_says_that_the_look_was_left_out(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(browser, "find", lambda: None)
    assert command.look_at(tmp_path) == []
    assert "the look at the pages in a browser was left out" in capsys.readouterr().out


def test_a_page_without_kernel_reads_numbers_by_the_rule_of_the_lab():
    script = (build.HERE / "static" / "site.js").read_text(encoding="utf-8")
    pattern = r"\d{1,3}(,\d{3})+(\.\d*)?"
    assert pattern in script and pattern in notebooks.Path(questions.__file__).read_text(encoding="utf-8")
