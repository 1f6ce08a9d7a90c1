"""The stepper's data are a true trace: of the lines of `paper.py` as it stands, with the numbers of the model."""

import ast
import inspect
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from minidsv4 import paper
from minidsv4.course import stepper
from minidsv4.course.record import record
from minidsv4.course.stepper import example, tracer
from minidsv4.course.stepper.folding import Steps
from minidsv4.course.stepper.statements import layout
from minidsv4.course.stepper.values import Values

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
FOUR_DIGITS = 5.1e-4  # a number of four significant digits is off by at most half of its last one


@pytest.fixture(scope="module")
def data():
    return json.loads(json.dumps(stepper.stepper_data(), allow_nan=False))


@pytest.fixture(scope="module")
def recorded():
    """The example through the PyTorch model: its record and its logits (T, V)."""
    model = example.example_model()
    with record(model) as rec:
        logits_BTV = model(torch.tensor([example.IDS]))
    return rec, logits_BTV[0].numpy()


def array(data, number):
    """The array in a row of values, or in the rows that a list names."""
    row = data["values"][number]
    if "items" in row:
        return np.array([array(data, item) for item in row["items"]])
    return np.array(row["numbers"], dtype=float).reshape(row["shape"]) if "shape" in row else row["number"]


def result(data, call):
    """What a call returns."""
    return next(step["result"] for step in data["steps"] if step["call"] == call and "result" in step)


def calls_of(data, function):
    """Numbers of the calls of a function."""
    return [number for number, call in enumerate(data["calls"]) if call["function"] == function]


def notes_of(data, function):
    """The notes within the calls of a function."""
    return [step.get("note", "") for step in data["steps"] if data["calls"][step["call"]]["function"] == function]


@pytest.mark.slow
def test_the_last_value_of_the_walk_is_the_logits_of_the_model(data, recorded):
    assert np.allclose(array(data, data["steps"][-1]["result"]), recorded[1], rtol=FOUR_DIGITS, atol=0)


@pytest.mark.slow
def test_replaying_every_change_gives_the_logits_of_the_model(data, recorded):
    names = {}
    for step in data["steps"]:
        names.setdefault(step["call"], {}).update(step["changed"])
    (head,) = calls_of(data, "stream_logits")
    assert np.allclose(array(data, names[head]["logits"]), recorded[1], rtol=FOUR_DIGITS, atol=0)


@pytest.mark.slow
def test_the_streams_after_each_block_are_those_of_the_model(data, recorded):
    blocks = calls_of(data, "block")
    assert len(blocks) == len(recorded[0]) == 3
    for call, layer in zip(blocks, recorded[0]):
        streams_TND = layer.streams_BTND[0].numpy()
        assert np.allclose(array(data, result(data, call)), streams_TND, rtol=FOUR_DIGITS, atol=0)


def test_the_entries_picked_for_the_last_token_are_those_of_the_model(data, recorded):
    (call,) = calls_of(data, "select_entries")
    picks_P = recorded[0][1].picks_BTP[0, -1].tolist()
    assert sorted(array(data, result(data, call))) == picks_P
    assert len(picks_P) == 2 and recorded[0][1].visible_T[-1] == 3  # one entry is left out


def test_every_step_stands_on_a_statement_of_the_function_that_it_names(data):
    source = inspect.getsource(paper)
    defined = {node.lineno: node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)}
    statements = layout(source).statements
    for step in data["steps"]:
        call = data["calls"][step["call"]]
        node = defined[call["line"]]
        assert node.name == call["function"]
        assert node.lineno < step["line"] <= node.end_lineno
        assert statements[step["line"]].first == step["line"]
        assert statements[step["line"]].last == data["statements"][str(step["line"])]


def test_the_listing_is_the_source_line_by_line(data):
    lines = inspect.getsource(paper).splitlines()
    for listing in data["functions"].values():
        for number, pieces in enumerate(listing["lines"], start=listing["first"]):
            assert "".join(text for _, text in pieces) == lines[number - 1]


def test_a_step_names_the_call_that_the_step_before_it_made_or_went_back_to(data):
    for call in data["calls"][1:]:
        maker = data["steps"][call["from"]]
        assert call["from"] < call["first"]
        assert data["calls"][maker["call"]]["depth"] == call["depth"] - 1


def test_every_function_of_the_walk_leads_to_a_notebook_and_every_equation_of_a_forward_is_met(data):
    for listing in data["functions"].values():
        assert (NOTEBOOKS / f"{listing['notebook']}.ipynb").is_file()
        assert listing["words"]
    met = {number for listing in data["functions"].values() for number in listing["equations"]}
    assert met == set(range(1, 28)) - {2}  # (2) is a constraint that is checked; (28) and (29) belong to training


def test_what_is_left_out_of_a_loop_is_said(data):
    assert "Passes 2 to 19 are left out. Pass 20 of 20 begins." in notes_of(data, "sinkhorn")
    assert "Pass 2 is left out. Pass 3 of 3 begins." in notes_of(data, "compressed_entries")
    assert not any("left out" in note for note in notes_of(data, "model_streams"))


def test_repeated_calls_on_a_line_are_counted(data):
    times = "rms_norm is called 7 times here, and the last call is followed."
    assert times in notes_of(data, "query_latent")


def test_two_calls_of_one_function_on_one_line_are_both_followed():
    student_TV = np.array([[0.0, 1.0]])
    root, _, _ = tracer.trace(paper.distillation_loss, student_TV, [2 * student_TV], [1.0])
    assert [call["function"] for call in Steps(root).calls] == ["distillation_loss", "log_softmax", "log_softmax"]


def test_a_value_is_kept_as_it_was_when_it_was_seen():
    values, array_S = Values(), np.array([1.0, 2.0])
    first = values.add(array_S)
    array_S[0] = 5.0
    second = values.add(array_S)
    assert values.rows[first]["numbers"] == [1.0, 2.0]
    assert values.rows[second]["numbers"] == [5.0, 2.0]
    assert values.add(np.array([1.0, 2.0])) == first


def test_numbers_keep_four_digits_and_infinity_its_name():
    rows = Values()
    for value in (np.array([123456.0, -np.inf]), 1 / 3, 7, "CSA", range(2, 5), None):
        rows.add(value)
    assert rows.rows == [
        {"shape": [2], "numbers": [123500.0, "-inf"]},
        {"number": 0.3333},
        {"number": 7},
        {"text": "'CSA'"},
        {"text": "range(2, 5)"},
        {"text": "None"},
    ]


def test_tracing_leaves_the_trace_function_of_before_in_place_even_after_an_error():
    def mine(frame, event, argument):
        return None

    before = sys.gettrace()
    sys.settrace(mine)
    try:
        with pytest.raises(ValueError, match="power of two"):
            tracer.trace(paper.hadamard_matrix, 3)
        assert sys.gettrace() is mine
    finally:
        sys.settrace(before)


@pytest.mark.slow
def test_two_writings_are_the_same_bytes_and_small(tmp_path):
    first, second = (stepper.write_site(tmp_path / name) for name in ("first", "second"))
    files = sorted(path.name for path in first.parent.iterdir())
    assert {"index.html", "data.js", "theme.css"} < set(files)
    for name in files:
        assert (first.parent / name).read_bytes() == (second.parent / name).read_bytes()
    assert sum(path.stat().st_size for path in first.parent.iterdir()) < 500_000
