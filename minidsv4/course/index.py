"""The course's first page: what there is, in which order, how long it takes, and what is not there yet.

Question, minutes, needs and abilities are read off each notebook's first cell, so they are written once. That cell
has the question as its heading, a line `Needs: ... About 30 minutes.` and a list below `Afterwards you can`.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import nbformat

from minidsv4 import paper
from minidsv4.course.tables import Table

MAP_CELL = "# hidden: the map\nfrom minidsv4.course import show\n\nshow.setup()\nshow.map_of_model()"
PAGES = ("index", "glossary")  # notebooks that the builder writes
BUILD = "build"  # the folder of the track in which the reader writes a V4
PROBLEMS = "problems"  # the folder of the assignments, one a week

# Numbers of notebooks. A notebook that no week names stands below the weeks.
AFTERNOON = ("00", "01", "02", "03", "04", "05", "07")
WEEKS = {
    "Week 1, reading little of a long past": (
        "00",
        "lineage",
        "01",
        "02",
        "03",
        "04",
        "05",
        "build 1",
        "build 2",
        "problems 1",
    ),
    "Week 2, the rest of a layer": ("06", "07", "08", "build 3", "problems 2"),
    "Week 3, the whole model and its training": ("build 4", "09", "10", "11", "problems 3"),
    "Week 4, at full size and in use": ("12", "13", "14", "15", "16", "17", "18", "19", "20", "problems 4"),
}
# Where each equation of the report is taught: (first, last) = number of a notebook.
TAUGHT = {
    (1, 8): "06",
    (9, 12): "02",
    (13, 13): "01",
    (14, 17): "03",
    (18, 19): "01",
    (20, 23): "02",
    (24, 27): "01",
    (28, 28): "09",
    (29, 29): "18",
}
PLANNED = {
    "15": "Does it work at 1,048,576 tokens on this machine?",
    "16": "What if a thousand users share a prefix, and one machine dies?",
    "17": "How do thinking modes and tools reach the model?",
    "18": "How do ten specialists become one?",
    "19": "What goes wrong in everybody's first port?",
    "20": "Is it the same model?",
}


@dataclass(frozen=True)
class Lesson:
    """What a notebook's first cell says of it; the number of one of the build track is "build 1", as "problems 1"."""

    number: str
    file: str
    question: str
    minutes: int
    needs: str
    abilities: tuple

    @property
    def link(self):
        """A link in Markdown, in which a price does not begin a formula."""
        return f"[{self.number} {re.sub(r'[$](?=[0-9])', '&#36;', self.question)}]({self.file})"


def course(folder):
    """Paths of the notebooks in reading order, the pages that the builder writes left out."""
    return sorted(path for path in Path(folder).glob("*.ipynb") if path.stem not in PAGES)


def track(folder):
    """Paths of the build track's notebooks, in order."""
    return sorted((Path(folder) / BUILD).glob("*.ipynb"))


def problems(folder):
    """Paths of the assignments, one a week, in order."""
    return sorted((Path(folder) / PROBLEMS).glob("*.ipynb"))


def lesson(path):
    """The Lesson that a notebook's first cell describes.

    raises  ValueError naming the notebook and what its first cell lacks
    """
    first = nbformat.read(path, as_version=4).cells[0].source
    heading = re.match(r"# (.+\?)\n", first)
    needs = re.search(r"^Needs: (.+?)\.? About (\d+) minutes", first, re.MULTILINE)
    abilities = re.findall(r"^- (.+?)[,.]?$", first.partition("Afterwards you can")[2], re.MULTILINE)
    if not (heading and needs and abilities):
        raise ValueError(
            f"{path.name}: its first cell should have a question as heading, a line 'Needs: ... About 30 minutes.' "
            "and a list below 'Afterwards you can'"
        )
    place = Path(path.parent.name) if path.parent.name in (BUILD, PROBLEMS) else Path()
    number = " ".join([*place.parts, path.stem.split("_")[0]])
    return Lesson(number, (place / path.name).as_posix(), heading[1], int(needs[2]), needs[1], tuple(abilities))


def lessons(folder):
    """Number of a notebook = its Lesson, in reading order, then the build track, then the assignments."""
    paths = [*course(folder), *track(folder), *problems(folder)]
    return {found.number: found for found in map(lesson, paths)}


def index_cells(folder):
    """The index: the map, what there is, two paths through it, what is not there yet, and the equations."""
    known = lessons(folder)
    return [
        ("md", "# minidsv4: the course\n\n" + WELCOME + _build_words(known) + _problem_words(known)),
        ("code", MAP_CELL),
        ("md", "## Notebooks\n\n" + _notebooks(known)),
        ("md", "## Two paths\n\n" + _paths(known)),
        ("md", "## Not there yet\n\n" + _planned(known)),
        ("md", "## From an equation of the report to its loop and to its PyTorch form\n\n" + equations(known)),
    ]


def taught(number):
    """Number of the notebook that teaches an equation."""
    return next(notebook for (first, last), notebook in TAUGHT.items() if first <= number <= last)


def equations(known):
    """The table of equations: the loop that defines each, its PyTorch form, and the notebook that teaches it."""
    rows = []
    for number, (loop, operation, file) in paper.EQUATIONS.items():
        link = links(files(known, [taught(number)]))
        rows.append((f"({number})", f"`paper.{loop.__name__}`", f"`{operation}` in `{file}`", link))
    return Table(("equation", "loop", "PyTorch form", "notebook"), rows).markdown()


WHERE_SOLUTIONS = "; solutions stand apart, in `solutions/`"  # left out where there are none
WELCOME = (
    "Each notebook answers one question and runs alone in at most a minute and a half. In every notebook you predict, "
    f"compute, look, break something and write something{WHERE_SOLUTIONS}. Letters and "
    "abbreviations are explained in the [glossary](glossary.ipynb). `make lab` opens copies of your own, in the folder "
    "`work`, with sliders and with questions that hide what follows until you answer; where you open a saved one "
    "again, choose *Run All Cells*, as buttons and sliders live in the kernel."
)


def _build_words(known):
    """A sentence about the build track, where there is one."""
    parts = files(known, [number for number in known if number.startswith(BUILD)])
    if not parts:
        return ""
    return f"\n\n**Build a V4.** In `{BUILD}/` you write the model yourself, step by step: {links(parts)}."


def _problem_words(known):
    """A sentence about the assignments, where there are any."""
    parts = files(known, [number for number in known if number.startswith(PROBLEMS)])
    if not parts:
        return ""
    return f"\n\n**Assignments.** Each of the four weeks below ends with a larger piece of work: {links(parts)}."


def _notebooks(known):
    """The table of notebooks."""
    rows = [
        (
            found.link,
            str(found.minutes),
            _without_links(found.needs),
            "<br>".join(f"• {ability}" for ability in found.abilities),
        )
        for found in known.values()
    ]
    return Table(("question", "minutes", "needs", "afterwards you can"), rows).markdown()


def _without_links(text):
    """Text whose links are their words."""
    return re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text)


def _paths(known):
    """The two paths, and what is on neither."""
    lines = [
        f"**An afternoon** ({hours(known, AFTERNOON)}): what is new in V4's attention, cache and experts.\n",
        f"{links(files(known, AFTERNOON))}\n",
        "**A course of four weeks**, a notebook at a sitting, with exercises, the track *build a V4* and an assignment "
        "at the end of each week. Instructors: `python -m minidsv4.course --help` makes copies without solutions and "
        "grades what comes back.\n",
    ]
    for title, numbers in WEEKS.items():
        lines.append(f"- {title} ({hours(known, numbers)}): {links(files(known, numbers))}")
    named = {number for numbers in WEEKS.values() for number in numbers}
    if others := [number for number in known if number not in named]:
        lines.append(f"- Besides ({hours(known, others)}): {links(files(known, others))}")
    return "\n".join(lines)


def files(known, numbers):
    """Names of those notebooks that exist."""
    return [Path(known[number].file) for number in numbers if number in known]


def links(paths):
    """Short links to notebooks: 05 cache, build 1 pieces."""
    words = [" ".join(file.with_suffix("").parts).replace("_", " ") for file in paths]
    return ", ".join(f"[{text}]({file.as_posix()})" for text, file in zip(words, paths))


def hours(known, numbers):
    """The sum of the notebooks' minutes, in half hours."""
    halves = round(sum(known[number].minutes for number in numbers if number in known) / 30)
    return f"{halves / 2:g} hour{'s' if halves != 2 else ''}"


def _planned(known):
    """Questions of notebooks that are planned and do not exist."""
    missing = [f"- {number} {question}" for number, question in PLANNED.items() if number not in known]
    return "\n".join(missing) or "Nothing: every planned notebook exists."
