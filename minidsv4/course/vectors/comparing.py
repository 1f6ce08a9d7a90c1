"""Another implementation's values beside the stored ones: which case differs, and in which value first."""

import difflib
import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minidsv4.course.vectors.writing import INPUT, LIST, VALUES
from minidsv4.files import given_path


class Result(NamedTuple):
    """How one case stands.

    n_given   how many of its values were given
    n_stored  how many there are
    first     name of the first given value that differs, in the order in which a model computes them; None: all agree
    how       what is wrong with that value, in words
    begins    the first value that the mistake of the case changes
    place     position of `first` less that of the logits: the lowest over all cases is the earliest value
    """

    case: str
    n_given: int
    n_stored: int
    first: str | None
    how: str
    begins: str
    place: int = 0

    @property
    def agrees(self) -> bool:
        """Whether something was given, and all of it agrees."""
        return self.n_given > 0 and self.first is None


def compare(folder: str | Path, theirs: str | Path) -> list[Result]:
    """Compare the files of another implementation with the stored values, case by case.

    folder   what `write` made
    theirs   a folder with a file CASE.safetensors for each case that was tried, which holds some of the values
    raises   ValueError for a folder without vectors, a file that cannot be read, names that no case has, and a folder
             without any case
    """
    folder, theirs = given_path("vectors", folder), given_path("vectors", theirs)
    listed = read_list(folder)
    if not theirs.is_dir():
        raise ValueError(f"vectors: {theirs.name!r} is no folder; give one that holds CASE.safetensors for each case")
    cases = listed["cases"]
    given = read_given(theirs, {case["name"]: case["values"] for case in cases})
    results = []
    for case in cases:
        stored = read_file(folder / VALUES / f"{case['name']}.safetensors")
        results.append(result(case, stored, given.get(case["name"], {}), listed["tolerance"]))
    return results


def read_given(theirs: Path, values: dict[str, list[str]]) -> dict[str, dict[str, Tensor]]:
    """Case = its given values by name, without inputs.

    values  case = names of its values
    raises  ValueError with all names that no case has, or where no case is given
    """
    given = {}
    strange = []
    for path in sorted(theirs.glob("*.safetensors")):
        if path.stem not in values:
            strange.append(path.stem)
            continue
        read = read_file(path)
        given[path.stem] = {name: value for name, value in read.items() if not name.startswith(INPUT)}
    faults = [f"no case is called {named(strange, values)}"] if strange else []
    if faults := [*faults, *strange_values(given, values)]:
        raise ValueError(f"vectors: {'; '.join(faults)}; {LIST} has all names")
    if not any(given.values()):
        raise ValueError(
            f"vectors: {theirs.name!r} holds no case; it should hold a file for each case that was tried, such as "
            f"{next(iter(values))}.safetensors; {LIST} has the names of all {len(values)}"
        )
    return given


def strange_values(given: dict[str, dict[str, Tensor]], values: dict[str, list[str]]) -> list[str]:
    """Words for the given names that their cases do not have; cases with the same ones are told together."""
    cases: dict[tuple[str, ...], list[str]] = {}
    for case, read in given.items():
        if strange := tuple(sorted(set(read) - set(values[case]))):
            cases.setdefault(strange, []).append(case)
    told = []
    for names, those in cases.items():
        others = f" (and {len(those) - 1} more)" if len(those) > 1 else ""
        told.append(f"{those[0]}{others} has no value called {named(names, values[those[0]])}")
    return told


def named(names: Iterable[str], known: Collection[str]) -> str:
    """The names in quotes, the nearest known one behind each that has one: 'logit' (logits?), 'x'."""
    words = []
    for name in names:
        near = difflib.get_close_matches(name.lower(), known, n=1)
        words.append(f"{name!r} ({near[0]}?)" if near else repr(name))
    return ", ".join(words)


def read_list(folder: Path) -> dict:
    """What `cases.json` of a folder says.

    raises  ValueError where there is none or it cannot be read
    """
    try:
        listed = json.loads((folder / LIST).read_text(encoding="utf-8"))
        assert isinstance(listed["tolerance"], float)
        return listed
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise ValueError(
            f"vectors: {folder.name!r} holds no {LIST} that can be read; make the folder with "
            "`python -m minidsv4 vectors FOLDER`"
        ) from error


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a file.

    raises  ValueError, with its name, where it cannot be read
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"vectors: {path.name} cannot be read ({error}); write it again") from error


def result(case: dict, stored: dict[str, Tensor], given: dict[str, Tensor], tolerance: float) -> Result:
    """How a case stands."""
    numbers = (case["name"], len(given), len(case["values"]))
    for name in case["values"]:
        fault = difference(given[name], stored[name], tolerance) if name in given else ""
        if fault:
            place = case["values"].index(name) - case["values"].index("logits")
            return Result(*numbers, name, fault, case.get("begins", ""), place)
    return Result(*numbers, None, "", case.get("begins", ""))


def difference(given: Tensor, stored: Tensor, tolerance: float) -> str:
    """What is wrong with a value, in words; empty where it agrees.

    Indices and counts are compared exactly; other numbers to the tolerance, as a part of the largest stored one.
    """
    if given.shape != stored.shape:
        return f"shape {list(given.shape)}, should be {list(stored.shape)}"
    if not stored.is_floating_point():
        n_wrong = int((given != stored).sum())
        return f"{n_wrong} of {stored.numel()} indices differ" if n_wrong else ""
    error = ((given.double() - stored.double()).abs().max() / stored.abs().max()).item()
    if not torch.isfinite(given).all():
        return "holds NaN or infinity"
    return "" if error <= tolerance else f"off by {error:.1e} of its largest value"
