"""Another implementation's values beside the stored ones: which case differs, and in which value first."""

import json
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
    raises   ValueError for a folder without vectors, a file that cannot be read, and names that no case has
    """
    folder, theirs = given_path("vectors", folder), given_path("vectors", theirs)
    listed = read_list(folder)
    if not theirs.is_dir():
        raise ValueError(f"vectors: {theirs.name!r} is no folder; give one that holds CASE.safetensors for each case")
    known = {case["name"] for case in listed["cases"]}
    found = {path.stem for path in theirs.glob("*.safetensors")}
    if strange := sorted(found - known):
        raise ValueError(f"vectors: {strange[0]}.safetensors is named after no case; {LIST} has their names")
    results = []
    for case in listed["cases"]:
        given = read_file(theirs / f"{case['name']}.safetensors") if case["name"] in found else {}
        results.append(result(case, read_file(folder / VALUES / f"{case['name']}.safetensors"), given, listed))
    return results


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


def result(case: dict, stored: dict[str, Tensor], given: dict[str, Tensor], listed: dict) -> Result:
    """How a case stands.

    raises  ValueError for a name that the case has not
    """
    tried = {name for name in given if not name.startswith(INPUT)}
    if strange := sorted(tried - set(case["values"])):
        raise ValueError(f"vectors: {case['name']} has no value called {strange[0]!r}; {LIST} has their names")
    numbers = (case["name"], len(tried), len(case["values"]))
    for name in case["values"]:
        fault = difference(given[name], stored[name], listed["tolerance"]) if name in tried else ""
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
