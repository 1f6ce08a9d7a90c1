"""What students returned: whose a file is, what bears no name of the course's, and who returned nothing.

A work is what can be returned: a notebook of the course, or the file of the track. `works` is a dictionary, name of a
work = path of the course's own file.
"""

import difflib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import nbformat

from minidsv4.course import notebooks
from minidsv4.course.kit import exercises

NOT_RETURNED = "not returned"
MOST_NAMES = 3  # of files in a sentence
TRACK = "build"
OURS = (TRACK, "problems")  # folders of the course, so no student's
EXAMPLE = "give the folder in which each student has a folder, as in ada/01_attention.ipynb"


@dataclass
class Returned:
    """What a student returned.

    works    name of a work = path
    strange  place of a file that is none = name of the work that it resembles, or None
    others   places of files of another kind
    """

    works: dict = field(default_factory=dict)
    strange: dict = field(default_factory=dict)
    others: list = field(default_factory=list)

    def missing(self, name, file):
        """Why a work earns nothing that is not there; `file` is the name under which it should be."""
        likely = [place.name for place, near in self.strange.items() if near == name]
        if likely:
            return f"{NOT_RETURNED} under its name; if {likely[0]} is it, call it {file}"
        if self.works:
            return NOT_RETURNED
        if self.strange:
            return f"no file has the name of a notebook, only {few(list(self.strange))}"
        return f"there is no notebook, only {few(self.others)}" if self.others else "the folder is empty"


def returned(folder, works):
    """Who returned what: student = Returned.

    folder  one subfolder for each student, or files that begin with the student's name: ada_01_attention.ipynb
    raises  ValueError where it is no folder, and for a work twice of the same student
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give the one that holds what students returned")
    names = [path.name for path in sorted(folder.iterdir()) if path.is_dir()]
    found = {name: Returned() for name in names if name not in OURS and not is_hidden(name)}
    for place in places(folder):
        student, name, near = whose(place, works)
        if student is None:
            continue
        own = found.setdefault(student, Returned())
        if name in own.works:
            twice = f"{own.works[name]} and {folder / place}"
            raise ValueError(f"{student} returned {name} twice: {twice}; leave one of them")
        if name is not None:
            own.works[name] = folder / place
        elif near is not None or place.suffix == ".ipynb":
            own.strange[place] = near
        else:
            own.others.append(place)
    return found


def places(folder):
    """Places of all files below a folder in order, hidden ones left out."""
    found = [path.relative_to(folder) for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    return [place for place in found if not any(is_hidden(part) for part in place.parts)]


def is_hidden(name):
    """True for the name of a file or folder that a program made, such as .ipynb_checkpoints."""
    return name.startswith((".", "__"))


def whose(place, works):
    """(student, name, near) of a returned file's place.

    student  None for a file that is nobody's
    name     of the work that it is, or None
    near     name of the work that it resembles, where it is none
    """
    by_file = {path.name: name for name, path in works.items()}
    if len(place.parts) > 1:
        student, file = place.parts[0], place.name
    else:
        student, file = in_its_name(place.name, by_file)
    if student is None or student in OURS:
        return None, None, None
    if file in by_file:
        return student, by_file[file], None
    near = nearest(file, works)
    is_nobodys = near is None and len(place.parts) == 1
    return (None if is_nobodys else student), None, near


def in_its_name(file, by_file):
    """(student, name of the file without it) where a file's name begins with a student's; (None, file) elsewhere."""
    names = "|".join(re.escape(name) for name in by_file)
    found = re.fullmatch(rf"(.+?)[_ .-]+({names}|\d.*\.ipynb)", file)
    return found.groups() if found and file not in by_file else (None, file)


def nearest(file, works):
    """The name of the work whose file's name this one holds or resembles; None where there is none."""
    stem, _, suffix = file.lower().rpartition(".")
    by_stem = {path.stem: name for name, path in works.items() if path.suffix == f".{suffix}"}
    for known, name in by_stem.items():
        if known in stem:
            return name
    alike = difflib.get_close_matches(stem, by_stem, n=1)
    return by_stem[alike[0]] if alike else None


def few(places):
    """The names of some files, and how many more there are."""
    names = ", ".join(place.name for place in places[:MOST_NAMES])
    return f"{names} and {len(places) - MOST_NAMES} more" if len(places) > MOST_NAMES else names


def copied(place, works):
    """The name of the work that lies at a place as it does in the course, with no student's name; None elsewhere."""
    for name, path in works.items():
        if place.as_posix() in (path.name, path.relative_to(notebooks.FOLDER).as_posix()):
            return name
    return None


def left_out(folder, works):
    """A sentence for each notebook that nobody grades, because it bears another name or no student's."""
    for place in places(folder):
        _, name, near = whose(place, works)
        if copied(place, works):
            yield f"left out, for it bears no student's name: {place}"
        elif name is None and (near or place.suffix == ".ipynb"):
            resembles = f" (is it {works[near].name}?)" if near else ""
            yield f"left out, for its name is no notebook's of the course: {place}{resembles}"


def without_steps(found):
    """A sentence for each student who returned notebooks of the track, and not the file that they check."""
    for student, own in found.items():
        if TRACK not in own.works and any(name.startswith(f"{TRACK}/") for name in own.works):
            yield f"not graded, for my_v4.py with the steps is missing: {student}'s notebooks of {TRACK}/"


def nothing_to_grade(folder, works):
    """A sentence on a folder that holds no student's work."""
    there = places(folder)
    copies = [place for place in there if copied(place, works)]
    others = [place for place in there if place.suffix == ".ipynb"]
    if copies:
        filled = [place for place in copies if own_cells(folder / place, works[copied(place, works)])]
        state = f"with answers in {few(filled)}" if filled else "as they are released, with nothing filled in"
        return f"{folder} holds the course's own files ({few(copies)}), {state}, and no student's; {EXAMPLE}"
    held = f"; what it holds is {few(others)}" if others else ""
    return f"{folder} holds no notebook of the course that has exercises{held}; {EXAMPLE}"


def own_cells(path, shipped):
    """Pairs (number, source) of the code cells in a returned file that the course does not ship; a .py file is one.

    path     of the returned file
    shipped  path of the course's own
    raises   ValueError for a file that is no notebook
    """
    if path.suffix == ".py":
        source = path.read_text(encoding="utf-8", errors="replace")
        return [(0, source)] if source.strip() != shipped.read_text(encoding="utf-8").strip() else []
    try:
        cells = nbformat.read(path, as_version=4).cells
    except (ValueError, KeyError, AttributeError, OSError, nbformat.ValidationError, json.JSONDecodeError) as error:
        raise ValueError(f"the file is no notebook ({type(error).__name__})") from None
    theirs = {cell.source.strip() for cell in exercises.code_cells(exercises.read(shipped))}
    numbered = [(number, cell.source) for number, cell in enumerate(cells) if cell.cell_type == "code"]
    return [(number, source) for number, source in numbered if source.strip() not in theirs]
