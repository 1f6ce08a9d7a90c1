"""The folder of test vectors: model, cases and the text that says how to compare."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from minidsv4.checkpoint import load
from minidsv4.course.mutants import MUTANTS
from minidsv4.course.vectors.answers import answers, model_of
from minidsv4.course.vectors.cases import CASES, Case, with_ids
from minidsv4.files import given_path, new_folder
from minidsv4.ops import PLAIN
from minidsv4.train.ship import FILES, SHIPPED

TOLERANCE = 1e-4  # of a tensor's largest value; the reason stands in README.md
LIST, MODEL, VALUES, WORDS = "cases.json", "model", "cases", "README.md"
INPUT = "input."  # how the names of inputs begin


def write(folder: str | Path) -> Path:
    """Write model, cases and README into a new folder, which is there once all of it is whole.

    returns  the folder
    raises   ValueError for a folder that exists; OSError with a sentence where nothing can be written
    """
    folder = given_path("vectors", folder)
    if folder.exists() or folder.is_symlink():
        raise ValueError(f"vectors: {folder.name!r} exists, and is left as it is; give a new folder")
    try:
        with new_folder(folder) as scratch:
            fill(scratch)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"vectors: cannot write {folder.name!r} ({error}); nothing of it is left. Free some space, or give another "
            "place"
        ) from error
    return folder


def fill(folder: Path) -> None:
    """Everything, into an empty folder."""
    model, values = folder / MODEL, folder / VALUES
    model.mkdir()
    values.mkdir()
    for name in FILES:
        shutil.copyfile(SHIPPED / name, model / name)
    right = load(model).use(PLAIN).double()
    told = []
    for case, ids_BT, drafts_BT in with_ids():
        said = answers(model_of(case, right), case, ids_BT, drafts_BT)
        tensors = inputs(case, ids_BT, drafts_BT) | {name: narrow(value) for name, value in said.items()}
        save_file(tensors, values / f"{case.trap}.safetensors")
        told.append(entry(case, list(said)))
    listed = {"tolerance": TOLERANCE, "cases": told}
    (folder / LIST).write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    (folder / WORDS).write_text(readme(), encoding="utf-8")


def inputs(case: Case, ids_BT: Tensor, drafts_BT: Tensor) -> dict[str, Tensor]:
    """What an implementation is given, int64: ids, drafts if there are any, which ids are text and no padding."""
    given = {f"{INPUT}ids": ids_BT}
    if case.drafts:
        given[f"{INPUT}drafts"] = drafts_BT
    if case.padding:
        place_BT = torch.arange(case.n_tokens).expand_as(ids_BT)
        given[f"{INPUT}text"] = (place_BT >= torch.tensor(case.padding)[:, None]).long()
    return given


def narrow(value: Tensor) -> Tensor:
    """A value as it is stored: float32, or int64."""
    return (value.float() if value.is_floating_point() else value.long()).contiguous()


def entry(case: Case, names: list[str]) -> dict[str, Any]:
    """What `cases.json` says of a case; its values in the order in which a model computes them."""
    bug = MUTANTS[case.trap]
    words = {"mistake": bug.mistake, "symptom": bug.symptom, "found": bug.found}
    words |= {"begins": case.begins}
    return {"name": case.trap, **words, **steps(case), "config": case.config, "zeros": case.zeros, "values": names}


def steps(case: Case) -> dict[str, Any]:
    """How the text is read."""
    fields = asdict(case)
    return {"calls": case.calls} | {name: fields[name] for name in ("n_tokens", "watched", "drafts", "mtp")}


def readme() -> str:
    """How to compare, and the table of cases."""
    rows = "\n".join(f"| `{case.trap}` | {reading(case)} | {MUTANTS[case.trap].mistake} |" for case in CASES)
    text = Path(__file__).with_name(WORDS).read_text(encoding="utf-8")
    return text.replace("CASES", rows)


def reading(case: Case) -> str:
    """How a text is read, in a few words."""
    words = f"{case.n_tokens} tokens"
    if case.reads:
        words += " as " + " + ".join(map(str, case.reads))
    if case.drafts:
        words += f", {case.drafts} drafts rejected after {case.reads[0]}"
    if case.padding:
        words += ", rows with " + " and ".join(map(str, case.padding)) + " padding tokens"
    changed = [f"`{name}` = {value}" for name, value in case.config.items()]
    changed += ["index head weights zero"] if case.zeros else []
    changed += ["MTP"] if case.mtp else []
    return ", ".join([words, *changed])
