"""Test vectors for other implementations: right ones agree, and each case's mistake does not."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from minidsv4 import export_hf, load
from minidsv4.__main__ import main
from minidsv4.course.mutants import MUTANTS, mutant
from minidsv4.course.record import record
from minidsv4.course.vectors import CASES, Case, compare, write, writing
from minidsv4.course.vectors.answers import answers, layers, model_of
from minidsv4.course.vectors.command import lead
from minidsv4.course.vectors.comparing import Result, difference
from minidsv4.course.vectors.writing import LIST, TOLERANCE
from minidsv4.ops import PLAIN

pytestmark = pytest.mark.slow  # writing the vectors takes some ten seconds
NAMES = [case.trap for case in CASES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The written vectors."""
    return write(tmp_path_factory.mktemp("vectors") / "new" / "vectors")


@pytest.fixture(scope="module")
def right(folder):
    """The model that lies in the folder, in float32."""
    return load(folder / "model").use(PLAIN)


def told(folder, name):
    """A case as a reader of the folder knows it, its ids and its drafts."""
    (fields,) = (case for case in json.loads((folder / LIST).read_text())["cases"] if case["name"] == name)
    given = load_file(folder / "cases" / f"{name}.safetensors")
    text = given.get("input.text")
    case = Case(
        trap=name,
        begins=fields["begins"],
        reads=tuple(fields["calls"]),
        zeros=tuple(fields["zeros"]),
        padding=() if text is None else tuple((text == 0).sum(dim=1).tolist()),
        **{key: fields[key] for key in ("n_tokens", "watched", "drafts", "config", "mtp")},
    )
    return case, given["input.ids"], given.get("input.drafts")


def compared(folder, theirs, name, values):
    """How the one case stands whose values these are."""
    theirs.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in values.items()}, theirs / f"{name}.safetensors")
    (result,) = (result for result in compare(folder, theirs) if result.case == name)
    return result


@pytest.mark.slow
def test_there_are_30_cases_each_named_after_another_trap_of_the_museum(folder):
    assert len(CASES) == len(set(NAMES)) == 30 and set(NAMES) <= set(MUTANTS)
    assert {path.stem for path in (folder / "cases").iterdir()} == set(NAMES)
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {".safetensors", ".json", ".md", ""}
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 15_000_000


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_folders_model_in_float32_agrees_with_every_stored_value_and_with_the_mistake_it_does_not(
    name, folder, right, tmp_path
):
    case, *ids = told(folder, name)
    model = model_of(case, right)
    agreeing = compared(folder, tmp_path, name, answers(model, case, *ids))
    assert agreeing.agrees and agreeing.n_given == agreeing.n_stored, agreeing
    with mutant(name):
        wrong = compared(folder, tmp_path, name, answers(model, case, *ids))
    assert wrong.first == case.begins and not wrong.agrees


@pytest.mark.slow
@pytest.mark.parametrize("name", ["carry_transposed", "norm_after_the_turn", "one_choice_for_all_queries"])
def test_transformers_gives_the_stored_logits(name, folder, right, tmp_path):
    case, ids_BT, _ = told(folder, name)
    export_hf(right, tmp_path / "hf")
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation="eager")
    with torch.no_grad():
        logits_BTV = reference(ids_BT).logits[:, -case.watched :]
    assert compared(folder, tmp_path / "theirs", name, {"logits": logits_BTV}).agrees


@pytest.mark.slow
def test_no_choice_in_a_text_is_near_a_tie_but_where_all_scores_are_equal(folder):
    right = load(folder / "model").use(PLAIN).double()
    for name in set(NAMES) - {"padding_hidden_by_a_mask", "ties_broken_anyhow"}:
        case, ids_BT, _ = told(folder, name)
        model = model_of(case, right)
        with record(model) as rec:
            model(ids_BT)
        margins = [margin for layer in layers(rec) for margin in margins_of(layer)]
        assert min(margins) > 1e-5, name  # float32 is off by some 1e-6


def margins_of(layer):
    """How far the best that was left out is from the last that was taken, as a part of the largest score."""
    gate = layer.block.ffn.gate
    if hasattr(gate, "bias"):
        yield margin(layer.routed.score_BTE + gate.bias, gate.active)
    indexer = getattr(layer.block.attn, "indexer", None)
    if indexer is not None and layer.entries_BCK.shape[1] > indexer.n_picked:
        yield margin(layer.index_scores(), indexer.n_picked)


def margin(score, k):
    """The smallest gap behind the k-th best score, over those that have one."""
    best = score.sort(dim=-1, descending=True).values
    gap = best[..., k - 1] - best[..., k]
    return (gap[gap.isfinite()].min() / score[score.isfinite()].abs().max()).item() if gap.isfinite().any() else 1.0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (torch.tensor([1.0, 2.0 + 3e-4]), "off by 1.5e-04 of its largest value"),
        (torch.tensor([1.0, float("nan")]), "holds NaN or infinity"),
        (torch.tensor([[1.0, 2.0]]), "shape [1, 2], should be [2]"),
        (torch.tensor([1.0, 2.0 + 1e-4]), ""),
    ],
)
def test_a_value_that_differs_is_told_by_how_much(given, says):
    assert difference(given, torch.tensor([1.0, 2.0]), TOLERANCE) == says


def test_indices_are_compared_without_a_tolerance():
    assert difference(torch.tensor([1, 3]), torch.tensor([1, 2]), TOLERANCE) == "1 of 2 indices differ"


def test_the_command_tells_which_case_differs_and_where_first(folder, tmp_path, capsys):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name in NAMES[:3]:
        shutil.copy(folder / "cases" / f"{name}.safetensors", theirs)
    assert main(["vectors", str(folder), "--check", str(theirs)]) == 0
    said = capsys.readouterr().out
    assert "3 of 3 cases given agree; there are 30" in said and "not given" in said
    values = load_file(theirs / f"{NAMES[1]}.safetensors")
    values["layers.2.streams"][0, 0, 0, 0] += 1e6
    values["logits"] += 1e6
    save_file({key: values[key] for key in ("logits", "layers.2.streams", "embed")}, theirs / f"{NAMES[1]}.safetensors")
    assert main(["vectors", str(folder), "--check", str(theirs)]) == 1
    said = capsys.readouterr().out
    assert f"{NAMES[1]} DIFFERS first in layers.2.streams: off by" in " ".join(said.split())
    assert "2 of 3 cases given agree" in said


def of_case(name, first=None, place=0):
    """A Result of a case that agrees, or differs first in a value."""
    (begins,) = (case.begins for case in CASES if case.trap == name)
    return Result(name, 66, 66, first, "off by 1.0e-01 of its largest value" if first else "", begins, place)


def test_the_report_names_the_mistakes_that_begin_at_the_earliest_value_that_differs():
    late = of_case("sink_scaled", "layers.2.streams", -42)
    early = of_case("carry_transposed", "layers.0.attn.attended", -61)
    said = lead([late, early, of_case("window_without_the_query")])
    assert said[0].startswith("Look first at layers.0.attn.attended, the earliest value that differs")
    assert [line.split(":")[0].strip() for line in said[2:]] == ["sink_scaled", "window_without_the_query"]
    assert lead([of_case("sink_scaled")]) == []


def test_a_report_of_logits_alone_asks_for_the_values_before_them():
    said = lead([of_case("sink_scaled", "logits"), of_case("carry_transposed", "logits")])
    assert said[0].endswith("(cases in which it does: 2).") and "Write the values before the logits" in said[1]


def of_values(theirs, case, *names):
    """Write a file of a case with values of these names."""
    save_file({name: torch.ones(1) for name in names}, theirs / f"{case}.safetensors")


@pytest.mark.parametrize(
    ("lay", "says"),
    [
        (lambda theirs: theirs.rmdir(), "'theirs' is no folder"),
        (
            lambda theirs: None,
            f"'theirs' holds no case; it should hold a file for each case that was tried, such as {NAMES[0]}",
        ),
        (lambda theirs: of_values(theirs, NAMES[0], "input.ids"), "'theirs' holds no case"),
        (lambda theirs: (theirs / f"{NAMES[0]}.safetensors").touch(), f"{NAMES[0]}.safetensors cannot be read"),
        (
            lambda theirs: [(theirs / f"{name}.safetensors").touch() for name in ("Sink-scaled", "no_case")],
            "vectors: no case is called 'Sink-scaled' (sink_scaled?), 'no_case'; cases.json has all names",
        ),
        (
            lambda theirs: [of_values(theirs, name, "logit", "x") for name in NAMES[:2]],
            f"vectors: {NAMES[0]} (and 1 more) has no value called 'logit' (logits?), 'x'; cases.json has all names",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(lay, says, folder, tmp_path, capsys):
    (tmp_path / "theirs").mkdir()
    lay(tmp_path / "theirs")
    assert main(["vectors", str(folder), "--check", str(tmp_path / "theirs")]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_a_folder_without_vectors_and_one_that_exists_are_refused(tmp_path, capsys):
    assert main(["vectors", str(tmp_path), "--check", str(tmp_path)]) == 2
    assert f"{tmp_path.name!r} holds no cases.json" in capsys.readouterr().err
    assert main(["vectors", str(tmp_path)]) == 2
    assert "exists, and is left as it is; give a new folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_error_on_the_way_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def full(*_):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "save_file", full)
    with pytest.raises(OSError, match="vectors: cannot write 'new' .*No space left.*nothing of it is left"):
        write(tmp_path / "new")
    assert len(calls) == 2 and not list(tmp_path.iterdir())


def test_the_readme_names_every_case_and_every_kind_of_value(folder):
    text = (folder / "README.md").read_text()
    assert all(f"| `{name}` | " in text for name in NAMES) and "CASES" not in text
    for case in json.loads((folder / LIST).read_text())["cases"]:
        for value in case["values"]:
            end = value.split(".")[-1]
            assert f"`{value}`" in text or f".{end}`" in text, value
