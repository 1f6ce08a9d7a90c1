"""The instructor's kit: copies without solutions, points for what comes back, whatever students' code does."""

import ast
import csv
import io
import json
import os
import re
import runpy
import secrets
import subprocess
import time

import forks
import nbformat
import numpy as np
import pytest
import torch
from nbformat import v4

from minidsv4.course import __main__ as command
from minidsv4.course import notebooks
from minidsv4.course.kit import exercises, grade, slides, table, track, wire
from minidsv4.course.kit.pupil import Limits, Pupil
from minidsv4.course.kit.release import release, without_solutions
from minidsv4.course.kit.returned import Returned, left_out, nothing_to_grade, returned, without_steps

SOLUTIONS = notebooks.FOLDER / "solutions"
EASY = "problems/4_prefixes"  # its set-up imports little
SECONDS = 2.0


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A folder of students' copies."""
    folder = tmp_path_factory.mktemp("kit") / "copies"
    release(folder)
    return folder


@pytest.fixture(autouse=True)
def settings_as_they_were():
    """The set-up cells of notebooks change how this process computes and prints: not for longer than a test."""
    before = torch.get_default_dtype(), torch.get_num_threads()
    with np.printoptions():
        yield
    torch.set_default_dtype(before[0])
    torch.set_num_threads(before[1])
    torch.set_printoptions(profile="default")


@pytest.fixture
def forked(monkeypatch):
    """Students' processes begin where the slow imports end: tests/forks.py."""
    monkeypatch.setattr(subprocess, "Popen", forks.Worker)


# --- release ---


def test_a_release_holds_every_notebook_and_the_starter_file_and_nothing_of_the_solutions(released):
    names = {path.relative_to(released).as_posix() for path in released.rglob("*") if path.is_file()}
    assert names == {f"{name}.ipynb" for name in notebooks.every()} | {"build/my_v4.py", "README.txt"}
    texts = "".join((released / name).read_text(encoding="utf-8") for name in names)
    assert "solutions/" not in texts
    for path in SOLUTIONS.rglob("*.py"):
        for told in re.findall(r'def \w+\(.*\):\n    """(.{20,})"""', path.read_text(encoding="utf-8")):
            assert path.parent.name == "build" or told not in texts, f"{path.name} says '{told}'"


def test_a_released_exercise_is_a_stub_that_says_nothing_and_all_else_is_as_it_was(released):
    for name, path in notebooks.every().items():
        ours = exercises.read(path)
        theirs = nbformat.read(released / f"{name}.ipynb", as_version=4)
        parts = {part for one in exercises.exercises(ours) for part in (one.stub, one.check)}
        for own, copy in zip(ours.cells, theirs.cells, strict=True):
            if own.cell_type == "markdown":
                assert copy.source == without_solutions(own.source)
            elif own.source in parts:
                assert (copy.source, copy.outputs, copy.execution_count) == (own.source, [], None)
            else:
                assert copy == own


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Do it.\n\n[Solutions](solutions/01_attention.py)", "Do it."),
        ("Do it. [Solution](../solutions/x.py)\n<details>a</details>", "Do it.\n<details>a</details>"),
        ("Stuck? The solution is [one file](../solutions/build/my_v4.py).", "Stuck?"),
        (
            "Compare with [my_v4.py](../solutions/build/my_v4.py), and [this](x.py).",
            "Compare with my_v4.py, and [this](x.py).",
        ),
        ("write something; solutions stand apart, in `solutions/`. More", "write something. More"),
    ],
)
def test_links_to_solutions_leave_no_trace_in_a_students_text(text, left):
    assert without_solutions(text) == left


def test_a_folder_that_holds_something_takes_no_release(tmp_path, capsys):
    (tmp_path / "old.ipynb").touch()
    assert command.main(["release", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"{tmp_path} is not empty; give a new folder, so that nothing of an earlier release stays\n"
    )


def test_a_file_takes_no_release(tmp_path, capsys):
    file = tmp_path / "notes.txt"
    file.touch()
    assert command.main(["release", str(file)]) == 2
    assert capsys.readouterr().err == f"{file} is a file; give a new folder\n"


# --- the inputs ---


@pytest.mark.slow
@pytest.mark.parametrize("name", ["00_tour", "09_muon", "17_chat", EASY])
def test_the_inputs_that_the_checks_hold_are_caught_for_both_forms_of_an_exercise(name, capsys):
    path = notebooks.every()[name]
    found = grade.trials(path, seed=5)
    assert capsys.readouterr().out == ""
    solutions = runpy.run_path(str(SOLUTIONS / f"{name}.py"))
    for trial in found:
        assert len(trial.cases) > grade.DRAWN and 1 <= trial.points <= 3
        for arguments, wanted in trial.cases:
            assert trial.differs(arguments, solutions[trial.name](*arguments), wanted) is None


# --- what students hand in ---


def hand_in(folder, student, name, answers, extra=()):
    """A returned notebook: cells of stubs replaced by the answers, and more cells before the exercises."""
    notebook = nbformat.read(notebooks.every()[name], as_version=4)
    for exercise in exercises.exercises(notebook):
        if exercise.name in answers:
            cell = next(cell for cell in notebook.cells if cell.source == exercise.stub)
            cell.source = answers[exercise.name]
    notebook.cells[2:2] = [v4.new_code_cell(source) for source in extra]
    path = folder / student / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


def solved(name):
    """Name of an exercise = its solution, with the imports of the file."""
    text = (SOLUTIONS / f"{name}.py").read_text(encoding="utf-8")
    parts = [(node, ast.get_source_segment(text, node)) for node in ast.parse(text).body]
    imports = "\n".join(part for node, part in parts if isinstance(node, ast.Import | ast.ImportFrom))
    return {node.name: f"{imports}\n\n\n{part}" for node, part in parts if isinstance(node, ast.FunctionDef)}


def points(scores, student):
    """Exercise = (points, reason) of a student."""
    return {score.exercise: (score.points, score.reason) for score in scores if score.student == student}


HOSTILE = {
    "computed_again": "def computed_again(*given):\n    import os\n    os._exit(0)",
    "hits": "def hits(requests, block, capacity):\n    while True:\n        pass",
    "recovered": "class Always:\n    __eq__ = lambda self, other: True\n\n\ndef recovered(lines):\n    return Always()",
    "dollars": "def dollars(*given):\n    return bytearray(10**11)",
    "smallest_store": "def smallest_store(*given):\n    raise SystemExit('all right')",
}
FORGED = """import os

show.exercise_of = show.exercise = lambda *given, **more: print("correct in 3 of 3 cases")
print("exercise hits: correct in 2 of 2 cases and for 10 fresh inputs")
for number in range(3, 30):
    try:
        os.write(number, (9).to_bytes(8, "little") + b'["x", []]')
    except OSError:
        pass"""


@pytest.mark.slow
def test_a_student_s_process_is_a_program_of_its_own_and_holds_nothing_of_the_grader_s():
    cells = [(3, "import os, sys\n\n\ndef told():\n    return os.getppid(), 'pytest' in sys.modules"), (5, "1 / 0")]
    with Pupil("", cells, Limits()) as pupil:
        assert pupil.ask("told", (), time.monotonic() + 60) == ("answer", (os.getpid(), False))
        assert pupil.faults == {5: "ZeroDivisionError: division by zero"}


@pytest.mark.slow
def test_points_are_for_right_answers_whatever_else_a_notebook_does(tmp_path, forked):
    answers = solved(EASY)
    hand_in(tmp_path, "ada", EASY, answers)
    wrong = {
        "dollars": "def dollars(*given):\n    return 0.00168",  # what its cell shows
        "hits": "def hits(:",
        "smallest_store": "import nothing_of_this_name\n\n\ndef smallest_store(*given):\n    return 1",
    }
    hand_in(tmp_path, "ben", EASY, answers | wrong, extra=["import sys\nsys.exit()"])
    hand_in(tmp_path, "eve", EASY, HOSTILE, extra=["%matplotlib inline", "import time\ntime.sleep(60)", "1 / 0"])
    forgotten = "def computed_again(*given):\n    pass"
    hand_in(tmp_path, "mallory", EASY, {"hits": FORGED, "computed_again": forgotten})
    hand_in(tmp_path, "zoe", EASY, {})
    scores = grade.grade_all(tmp_path, 3, Limits(SECONDS, 500_000_000))
    assert sum(score.points for score in scores if score.student == "ada") == sum(score.most for score in scores) / 5
    ben = points(scores, "ben")
    assert ben["recovered"] == (2, "") and ben["dollars"][1].startswith("wrong for input 2 of 11. It is 0.00168")
    assert re.match(r"there is no function hits \(cell 2: SystemExit: ; cell \d+: SyntaxError: ", ben["hits"][1])
    assert re.search(r"; cell \d+: ModuleNotFoundError: No module named 'nothing", ben["smallest_store"][1])
    eve = points(scores, "eve")
    assert eve["computed_again"] == (0, "ended the process (exit code 0)")
    assert eve["hits"] == (0, "ran longer than 2 s")
    assert eve["recovered"] == (
        0,
        "it stopped with TypeError: it gives back a Always, which is no value that can be compared",
    )
    assert eve["dollars"][0] == 0 and "MemoryError" in eve["dollars"][1]
    assert eve["smallest_store"] == (0, "it stopped with SystemExit: all right")
    assert sum(number for number, _ in points(scores, "mallory").values()) == 0
    said = points(scores, "mallory")["computed_again"][1]
    assert re.fullmatch(r"wrong for input 1 of \d+\. It returned None: is a `return` missing\?", said)
    assert set(points(scores, "zoe").values()) == {(0, "not done yet")}


# --- the track ---


def my_v4(folder, student, *changes):
    """A returned my_v4.py: the solution with some texts replaced by others."""
    text = (SOLUTIONS / "build" / "my_v4.py").read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / student / "my_v4.py"
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")


@pytest.mark.slow
def test_a_step_of_the_track_earns_a_point_and_a_wrong_one_is_told_by_its_mistake(tmp_path, forked):
    my_v4(tmp_path, "ada")
    my_v4(
        tmp_path,
        "ben",
        ("turned_even = even * angle.cos() - odd", "turned_even = even * angle.cos() + odd"),
        ("radians = base ** (-2 * pair / n_rotary)", "raise NotImplementedError"),
        ("    normed = x * ", "    x *= 1.5\n    normed = x * "),
    )
    (tmp_path / "cy").mkdir()
    (tmp_path / "cy" / "my_v4.py").write_bytes(track.FILE.read_bytes())
    scores = grade.grade_all(tmp_path, 3, Limits())
    assert set(points(scores, "ada").values()) == {(1, "")} and len(points(scores, "ada")) == len(track.TRACK)
    ben = points(scores, "ben")
    assert ben["rms_norm"] == (0, "it stopped with ValueError: it changes x_BTD in place")
    assert ben["frequencies"] == (0, "not done yet")
    assert re.match(r"wrong for input 1 of \d+. .* sign", ben["rotate"][1])
    assert ben["window_map"] == (1, "")
    assert ben["model"] == (0, "it needs stream_logits, which is not right")
    assert set(points(scores, "cy").values()) == {(0, "not done yet")}


# --- what was returned ---

WORKS = {name: path for name, path in notebooks.every().items() if name[:2] in ("01", "02") or "1_dec" in name}


def laid(folder, *places):
    """Empty files, folders where a place ends in a slash."""
    for place in places:
        path = folder / place
        (path if place.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not place.endswith("/"):
            path.touch()


def test_a_student_is_a_subfolder_or_the_beginning_of_a_name(tmp_path):
    laid(tmp_path, "ada/01_attention.ipynb", "ben/week/1_decoding.ipynb", "cy_01_attention.ipynb")
    laid(tmp_path, "dee-1_decoding.ipynb", "notes.ipynb", ".git/", "points.csv")
    assert {student: list(own.works) for student, own in returned(tmp_path, WORKS).items()} == {
        "ada": ["01_attention"],
        "ben": ["problems/1_decoding"],
        "cy": ["01_attention"],
        "dee": ["problems/1_decoding"],
    }


@pytest.mark.parametrize(
    ("places", "reason"),
    [
        (["ann/"], "the folder is empty"),
        (["ann/.ipynb_checkpoints/01_attention.ipynb"], "the folder is empty"),
        (["ann/a.zip", "ann/b.txt"], "there is no notebook, only a.zip, b.txt"),
        (["ann/02_compression.ipynb"], "not returned"),
        (["ann/homework.ipynb", "ann/x.txt"], "no file has the name of a notebook, only homework.ipynb"),
        (
            ["ann/01_attention (1).ipynb"],
            "not returned under its name; if 01_attention (1).ipynb is it, call it 01_attention.ipynb",
        ),
        (
            ["ann/my homework of week 1, 01_attention, final.ipynb"],
            "not returned under its name; if my homework of week 1, 01_attention, final.ipynb is it, call it "
            "01_attention.ipynb",
        ),
        (
            ["ann/Atention.ipynb"],
            "not returned under its name; if Atention.ipynb is it, call it 01_attention.ipynb",
        ),
        (
            ["ann_01_atention.ipynb"],
            "not returned under its name; if ann_01_atention.ipynb is it, call it 01_attention.ipynb",
        ),
    ],
)
def test_a_student_without_the_notebook_has_a_row_with_the_reason(places, reason, tmp_path):
    laid(tmp_path, *places)
    assert returned(tmp_path, WORKS)["ann"].missing("01_attention", "01_attention.ipynb") == reason


def test_a_notebook_whose_name_is_not_the_courses_is_told_and_not_passed_over_in_silence(tmp_path):
    laid(tmp_path, "ada/01_attention.ipynb", "ben/01_attention (1).ipynb", "ben/.ipynb_checkpoints/x.ipynb")
    laid(tmp_path, "01_attention.ipynb", "zz.ipynb")
    assert list(left_out(tmp_path, WORKS)) == [
        "left out, for it bears no student's name: 01_attention.ipynb",
        "left out, for its name is no notebook's of the course: ben/01_attention (1).ipynb (is it 01_attention.ipynb?)",
        "left out, for its name is no notebook's of the course: zz.ipynb",
    ]


def test_notebooks_of_the_track_without_the_file_of_its_steps_are_told(tmp_path):
    laid(tmp_path, "ada/build/1_pieces.ipynb", "ben/1_pieces.ipynb", "ben/my_v4.py", "cy/01_attention.ipynb")
    found = returned(tmp_path, notebooks.every() | grade.gradable())
    assert list(without_steps(found)) == [
        "not graded, for my_v4.py with the steps is missing: ada's notebooks of build/"
    ]


def test_a_copy_of_the_course_in_place_of_students_folders_is_told_from_a_filled_one(released, tmp_path):
    example = "give the folder in which each student has a folder, as in ada/01_attention.ipynb"
    unfilled = nothing_to_grade(released, grade.gradable())
    assert unfilled.startswith(f"{released} holds the course's own files (00_tour.ipynb, 01_attention.ipynb, ")
    assert unfilled.endswith(f"more), as they are released, with nothing filled in, and no student's; {example}")
    hand_in(tmp_path, "", EASY, {"hits": "def hits(*given):\n    return 1"})
    assert nothing_to_grade(tmp_path, grade.gradable()) == (
        f"{tmp_path} holds the course's own files (4_prefixes.ipynb), with answers in 4_prefixes.ipynb, "
        f"and no student's; {example}"
    )
    assert returned(released, WORKS) == {}


@pytest.mark.parametrize(
    ("files", "words", "said"),
    [
        ([], [], "holds no notebook of the course that has exercises; give the folder in which each student has"),
        (["ada/x.ipynb", "ada/index.ipynb"], [], "exercises; what it holds is index.ipynb, x.ipynb; give the folder"),
        (["01_attention.ipynb"], [], "holds the course's own files (01_attention.ipynb), "),
        (["ada/01_attention.ipynb", "ada/again/01_attention.ipynb"], [], "ada returned 01_attention twice"),
        (["ada/01_attention.ipynb"], ["--notebooks", "77"], "'77' is no notebook with exercises; there are 00_tour, "),
        (["ada/01_attention.ipynb"], ["--memory", "much"], "'much' is no amount"),
        (["ada/01_attention.ipynb"], ["--seconds", "0"], "give a number above 0"),
        (None, [], "is no folder; give the one that holds what students returned"),
    ],
)
def test_what_cannot_be_graded_is_told_in_a_sentence(files, words, said, tmp_path, capsys):
    for place in files or []:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(json.dumps(v4.new_notebook()))
    try:
        code = command.main(["grade", str(tmp_path / "none" if files is None else tmp_path), *words])
    except SystemExit as stopped:
        code = stopped.code
    told = capsys.readouterr().err.splitlines()
    assert code == 2 and said in told[-1] and not any("Traceback" in line for line in told)
    assert not any(line.startswith("inputs of") for line in told)  # the sentence stands alone


def test_a_file_that_is_no_notebook_earns_nothing_and_stops_nobody(tmp_path):
    path = notebooks.every()[EASY]
    (tmp_path / "x.ipynb").write_text("{broken")
    given = Returned({EASY: tmp_path / "x.ipynb"})
    reasons = {one.reason for one in grade.score("ada", EASY, path, given, 3, Limits())}
    assert reasons == {"the file is no notebook (NotJSONError)"}


# --- the table ---


def test_the_table_has_a_row_a_student_and_a_column_an_exercise_and_the_reasons_below():
    scores = [grade.Score("a|b", "01_x", "f", 2, 2), grade.Score("a|b", "problems/1_y", "g", 0, 3, "it\nstopped|")]
    assert table.as_markdown(scores).splitlines() == [
        "| student | 01 f | problems 1 g | sum |",
        "|---|---|---|---|",
        "| of | 2 | 3 | 5 |",
        "| a\\|b | 2 | 0 | 2 |",
        "",
        "| student | exercise | why no points |",
        "|---|---|---|",
        "| a\\|b | problems 1 g | it stopped\\| |",
    ]
    read = list(
        csv.reader(
            io.StringIO(
                table.as_csv(
                    [*scores, grade.Score("=1", "01_x", "f", 0, 2), grade.Score("=1", "problems/1_y", "g", 3, 3)]
                )
            )
        )
    )
    assert read[0] == ["student", "01 f", "problems 1 g", "sum", "why no points"]
    assert [row[:4] for row in read[1:]] == [["a|b", "2", "0", "2"], ["'=1", "0", "3", "3"]]


def test_one_reason_for_a_whole_notebook_or_for_everything_is_told_once():
    scores = [
        *[grade.Score("ada", "01_x", name, 0, 1, "not returned") for name in "fg"],
        grade.Score("ada", "02_y", "h", 0, 1, "it stopped"),
        *[grade.Score("ben", book, name, 0, 1, "the folder is empty") for book, name in (("01_x", "f"), ("02_y", "h"))],
        *[grade.Score("cy", "01_x", name, 0, 1, reason) for name, reason in (("f", "not done yet"), ("g", ""))],
    ]
    told = {student: table.reasons(found) for student, found in table.rows(scores).items()}
    assert told == {
        "ada": [("01", "not returned"), ("02 h", "it stopped")],
        "ben": [("all", "the folder is empty")],
        "cy": [("01 f", "not done yet")],
    }


# --- the wire ---


@pytest.mark.parametrize(
    "value", [1, 2.5, "x", None, True, ..., [1, (2, [])], {"a": {3: [4.0]}}, b"\x00\xff", float("inf")]
)
def test_an_answer_comes_through_the_wire_as_it_was(value):
    assert wire.loads(wire.dumps(value)) == value and type(wire.loads(wire.dumps(value))) is type(value)


@pytest.mark.parametrize("value", [object(), {1, 2}, lambda: 1, [object()], np.array([object()])])
def test_what_is_no_value_does_not_go_through_the_wire(value):
    with pytest.raises(TypeError, match="it gives back a"):
        wire.dumps(value)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'["x", 1]', b'["array", "AAAA"]', b'["plain", []]', b"\xff", b"[" * 9999]
)
def test_bytes_that_are_no_answer_are_refused(content):
    with pytest.raises(ValueError):
        wire.loads(content)


def test_without_a_seed_the_inputs_are_drawn_anew_and_the_seed_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(secrets, "randbits", lambda bits: 77)
    (tmp_path / "ada").mkdir()
    (tmp_path / "ada" / "4_prefixes.ipynb").write_text("{}")
    assert command.main(["grade", str(tmp_path), "--format", "csv"]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("inputs of --seed 77; each cell and each exercise may take 60 s and 2 GB")
    assert said.out.startswith("student,problems 4 computed_again,") and os.linesep == "\n"


# --- slides ---


def test_slides_hold_every_cell_and_fetch_nothing(tmp_path):
    path = tmp_path / "x.html"
    assert command.main(["slides", "01", "--out", str(path)]) == 0
    html = path.read_text(encoding="utf-8")
    notebook = exercises.read(notebooks.every()["01_attention"])
    pictures = sum(
        "image/png" in one.get("data", {}) for cell in exercises.code_cells(notebook) for one in cell.outputs
    )
    headings = re.findall(
        r"(?m)^##? .+", "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    )
    assert html.count("<img alt=") == pictures > 3 and html.count("<section>") >= len(headings) > 8
    assert not re.search(r'(?:src|href)="(?!data:|https?://|\w[\w/.]*\.(?:ipynb|py)|#)', html)
    assert not re.search(r'<(?:script|link|img)[^>]+(?:src|href)="https?:', html) and "kept0here" not in html


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("## A\n\nThe price is \\$5 and `$x$` is code.", "<code>$x$</code>"),
        ("a|b\n---|---\n1|2", "<td>2</td>"),
        ("```python\nx = 1  # $y$\n```", "$y$"),
    ],
)
def test_markdown_of_a_slide_keeps_code_as_it_is(text, html):
    assert html in re.sub(r"<span[^>]*>|</span>", "", slides.markdown(text))


def test_slides_of_no_notebook_are_refused(capsys):
    assert command.main(["slides", "99"]) == 2
    assert capsys.readouterr().err.startswith("slides: '99' is no notebook; there are 00_tour, ")
