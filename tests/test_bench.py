"""The bench: its sizes are the published ones, both sides compute the same, and what cannot be measured is refused.

Nothing here asks how long anything takes.
"""

import json
import resource
import sys

import forks
import pytest
import torch
from test_cli import refusal

from minidsv4 import Config, Model
from minidsv4.__main__ import main
from minidsv4.bench import implementations, limits, peak_memory, phases, report
from minidsv4.bench.implementations import RECOMPUTED, SIZES, MiniDSV4, Transformers, load_size
from minidsv4.bench.phases import Bench
from minidsv4.bench.rows import Row, fresh_bytes, run
from minidsv4.cost import parameters
from minidsv4.fast import FAST
from minidsv4.fast.compiled.table import COMPILED
from minidsv4.ops import PLAIN

QUICK = ("--lengths", "24,40", "--repeats", "2")


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A config.json of 60 thousand parameters, training steps of 2 x 12 tokens, and chunks of 16 for transformers."""
    monkeypatch.setattr(implementations, "TRAINED", (2, 12))
    monkeypatch.setattr(implementations, "CHUNK", 16)  # the trials of backends too are then short
    (tmp_path / "small").mkdir()
    Config.tiny().to_json(tmp_path / "small" / "config.json")
    return str(tmp_path / "small")


@pytest.fixture
def forked(monkeypatch):
    """What is measured alone begins where the slow imports end: tests/forks.py."""
    monkeypatch.setattr(peak_memory.multiprocessing, "get_context", lambda _kind: forks.SERVER)


def bench_of(folder, with_reference=True):
    """Both sides of a size, two rounds a row."""
    config = load_size(folder)
    ours = MiniDSV4(config)
    return Bench("small", config, ours, Transformers(config, weights=ours.model) if with_reference else None, repeats=2)


# --- sizes ---


@pytest.mark.parametrize(("name", "millions"), [("tiny", 1.26), ("mini", 26.9), ("mini-8e", 19.0)])
def test_a_size_has_the_parameters_that_its_model_has(name, millions):
    config = load_size(name)
    with torch.device("meta"):
        model = Model(config)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    assert round(n_parameters / 1e6, 2 if millions < 10 else 1) == millions
    assert parameters.total(parameters.parameters(parameters.weights(config))).total - n_parameters in range(200)
    buffers = sum(b.nbytes for n, b in model.named_buffers() if n.endswith("tid2eid"))
    assert 0 <= peak_memory.weight_bytes(config) - 4 * n_parameters - buffers < 1000  # router biases are buffers here


def test_the_closed_form_of_the_cache_is_what_a_cache_holds(small):
    bench = bench_of(small, with_reference=False)
    for n_tokens in (1, 11, 24, 50):
        remembered, held = bench.ours.cache_bytes(bench.ours.prefill(bench.ids(1, n_tokens)))
        assert peak_memory.cache_bytes(bench.config, n_tokens) == remembered <= held


def test_needs_grow_with_the_length_and_a_whole_prompt_needs_more_than_chunks():
    for name in SIZES:
        config = load_size(name)
        for needs in (
            peak_memory.own_needs,
            lambda c, n: peak_memory.reference_needs(c, n, n),
            lambda c, n: peak_memory.reference_needs(c, n, 512),
        ):
            found = [needs(config, n_tokens) for n_tokens in (128, 1024, 8192, 1 << 17, 1 << 20)]
            assert found == sorted(found) and found[0] > peak_memory.weight_bytes(config)
        assert peak_memory.reference_needs(config, 8192, 8192) > 5 * peak_memory.reference_needs(config, 8192, 512)


# --- sides ---


def test_both_sides_compute_the_same_logits_losses_and_steps(small):
    bench = bench_of(small)
    assert phases.agreement(bench, 40) < 1e-5  # float32
    ids_BT, caches = bench.ids(1, 40), []
    for side in (bench.ours, bench.reference):
        caches.append(side.prefill(ids_BT, chunk=16))
    steps = [side.step(bench.ids(1, 1), cache) for side, cache in zip((bench.ours, bench.reference), caches)]
    assert torch.allclose(*steps, atol=1e-5)
    losses = [[side.train(bench.ids(2, 12)) for _ in range(2)] for side in (bench.ours, bench.reference)]
    assert (
        losses[0] == pytest.approx(losses[1], abs=1e-5) and losses[0][0] == losses[0][1]
    )  # rate 0: nothing is learned


def test_sides_that_compute_different_things_are_not_compared(small):
    bench = bench_of(small)
    with torch.no_grad():
        bench.reference.model.lm_head.weight.mul_(1.5)
    with pytest.raises(ValueError, match="do not compute the same"):
        phases.agreement(bench, 40)


def test_a_backend_that_cannot_do_the_work_is_not_chosen(small):
    reference, asked = bench_of(small).reference, []
    reference.use_backend = asked.append

    def work():
        if asked[-1] != "batched_mm":
            raise RuntimeError("not here")

    assert reference.choose_backend("decode", work) == "batched_mm" == asked[-1]


# --- measuring ---


def test_rounds_run_the_sides_in_turn(small):
    order, bench = [], bench_of(small, with_reference=False)
    times = bench.rounds({"ours": lambda: order.append("ours"), "reference": lambda: order.append("reference")})
    assert order == ["ours", "reference"] * 3  # one round to warm up, then two
    assert [len(found) for found in times.values()] == [2, 2]


def test_a_row_compares_medians_and_rounds():
    row = Row("small", "prefill", 64, "whole", "s", ours=[1.0, 2.0, 9.0], reference=[4.0, 12.0, 9.0])
    assert row.ratio() == 4.5 and row.spread() == (1.0, 6.0)
    assert row.to_dict() | {"ours_median": 2.0, "reference_median": 9.0, "ratio": 4.5} == row.to_dict()
    assert Row("small", "prefill", 64, "", "s", ours=[1.0]).ratio() is None


@pytest.mark.slow
def test_the_high_water_mark_of_a_fresh_process_sees_what_was_held_and_let_go():
    assert 64 << 20 <= peak_memory.run_alone(_hold, 64 << 20) < 96 << 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "phase"),
    [("FAST", "prefill"), ("COMPILED", "train"), ("FAST", RECOMPUTED), ("eager", "prefill"), ("eager", "train")],
)
def test_a_peak_is_what_rose_during_the_work_without_the_cache_and_no_less_than_a_page(small, monkeypatch, way, phase):
    config = load_size(small)
    side = peak_memory.side_of(config, way)
    ids_BT = implementations.random_ids(config, (1, 40))
    held = side.cache_bytes(side.prefill(ids_BT, 16))[1] if phase == "prefill" else 0
    monkeypatch.setattr(peak_memory, "reset_peak", lambda: 50 << 20)
    for risen, wanted in ((8 << 20, (8 << 20) - held), (0, peak_memory.PAGE)):
        monkeypatch.setattr(peak_memory, "peak_bytes", lambda risen=risen: (50 << 20) + risen)
        assert peak_memory.peak(config, way, phase, 40, 16, 1) == wanted


def test_a_system_without_proc_is_asked_for_its_own_mark(monkeypatch):
    def missing(path, encoding):
        raise FileNotFoundError(path)

    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr(peak_memory.Path, "read_text", missing)
    for platform, unit in (("darwin", 1), ("linux", 1024)):
        monkeypatch.setattr(sys, "platform", platform)
        assert peak_memory.peak_bytes() in range(unit * own, unit * own + (64 << 20))


def _hold(n_bytes):
    before = peak_memory.reset_peak()
    torch.ones(n_bytes // 4)
    return peak_memory.peak_bytes() - before


# --- the command ---


@pytest.mark.slow
def test_the_bench_prints_a_table_and_writes_every_value(small, tmp_path, capsys):
    file = tmp_path / "found.json"
    asked = ["--size", small, "--phases", "prefill,decode,train,cache", *QUICK, "--json", str(file)]
    assert main(["bench", *asked]) == 0
    out = capsys.readouterr().out
    assert "the same weights: logits differ by" in out and "transformers' experts: prefill" in out
    found = json.loads(file.read_text())
    labels = [(row["phase"], row["n_tokens"], row["way"], row["table"]) for row in found["rows"]]
    tables = ("FAST", "COMPILED")
    prompts = [("prefill", n, way, table) for n in (24, 40) for way in ("whole", "chunks of 512") for table in tables]
    tokens = [("decode", n, way, "FAST") for n in (24, 40) for way in ("", "fused")]
    steps = [("train", 24, way, table) for table in tables for way in ("", "recomputed")]
    assert labels[:16] == [*prompts, *tokens, *steps]
    assert all(row["ratio"] > 0 and len(row["ours"]) == len(row["reference"]) for row in found["rows"])
    assert set(found["references"]["small"]["experts"]) == {"prefill", "decode", "train"}
    assert found["settings"]["threads"] == 1
    assert out.count("x  ") >= 9 and "tokens/s" in out
    timed = [row for row in found["rows"] if row["unit"] == "s"]
    assert len(timed) == 16 and all(row["of_products"] > 0 and row["of_copy"] > 0 for row in timed)
    assert all((row["of_calls"] > 0) == (row["phase"] == "decode" and row["way"] == "") for row in timed)
    assert all(row["fresh"] >= 0 for row in timed)


def test_fresh_pages_are_counted_once_each_when_they_are_first_touched():
    n_bytes = 64 << 20
    before = fresh_bytes()
    room = torch.empty(n_bytes, dtype=torch.uint8)
    assert fresh_bytes() - before < n_bytes // 8  # nothing is touched yet
    touched = run(lambda: room.fill_(1))
    assert 512 * touched.fresh >= n_bytes // 2 and touched.seconds > 0  # pages may be of 2 MB, which count as one
    assert run(lambda: room.fill_(1)).fresh < n_bytes // 8


@pytest.mark.slow
@pytest.mark.parametrize("fused", [[], ["--fused"]], ids=["eager", "fused"])
def test_the_curve_is_measured_alone_and_drawn(small, tmp_path, capsys, forked, fused):
    files = [str(tmp_path / name) for name in ("found.json", "found.svg")]
    lengths = "16,32,80"
    options = ["--curve", *fused, "--lengths", lengths, "--json", files[0], "--plot", files[1]]
    assert main(["bench", "--size", small, *options]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert [point["n_tokens"] for point in found["points"]] == [16, 32, 80] and not found["rows"]
    assert {point["size"].endswith(", fused") for point in found["points"]} == {bool(fused)}
    assert all(0 < point["cache"] and 0 < point["prefill"] and 0 < point["decode"] for point in found["points"])
    assert (tmp_path / "found.svg").read_text().lstrip().startswith("<?xml")


def test_memory_rows_come_from_processes_of_their_own(small, monkeypatch):
    asked, bench = [], bench_of(small)
    monkeypatch.setattr(peak_memory, "run_alone", lambda work, *arguments: asked.append(arguments) or 1000)
    rows = [*phases.memory(bench, 40), *phases.training_memory(bench)]
    assert [row.way for row in rows] == [*["whole"] * 2, *[phases.CHUNKS] * 2, *["train", RECOMPUTED] * 2]
    assert [row.table for row in rows] == [*["FAST", "COMPILED"] * 2, *["FAST"] * 2, *["COMPILED"] * 2]
    assert all(row.unit == "B" for row in rows)
    ours, theirs = ["FAST", "COMPILED"], bench.reference.backends
    wanted = [*ours, *[theirs["prefill"]] * 2, theirs["train"], *[table for table in ours for _ in range(2)]]
    assert [one[1] for one in asked] == wanted


def test_what_transformers_cannot_hold_is_left_out_with_the_reason(small, monkeypatch):
    bench = bench_of(small)
    monkeypatch.setattr(phases, "WHOLE_AT_MOST", 30)
    whole, chunks = [row for row in phases.prefill(bench, 40) if row.table == "FAST"]
    assert "not run" in whole.why and not whole.reference and chunks.ratio() > 0
    monkeypatch.setattr(peak_memory, "memory_left", lambda: 10)
    assert [row.why.split(" of")[0][:11] for row in phases.prefill(bench, 40)] == ["needs about"] * 4


@pytest.mark.slow
def test_plain_operations_are_measured_beside_fast_up_to_a_thousand_tokens(small, monkeypatch):
    use, used = Model.use, []
    monkeypatch.setattr(Model, "use", lambda model, ops: used.append(ops) or use(model, ops))
    bench = bench_of(small, with_reference=False)
    for row in (*phases.prefill(bench, 24), *phases.attend(bench, 24)):
        assert len(row.plain) == len(row.ours) and row.plain != row.ours and row.plain_over_fast() > 0
    assert used.count(PLAIN) == 1
    for row in (*phases.prefill(bench, 1025), *phases.attend(bench, 1025)):
        assert not row.plain and row.plain_over_fast() is None
    assert used.count(PLAIN) == 1


def test_attention_alone_gets_what_the_layer_with_the_most_entries_gets_from_both_tables(small, monkeypatch):
    asked, bench = [], bench_of(small, with_reference=False)
    for name, table in (("FAST", FAST), ("COMPILED", COMPILED), ("PLAIN", PLAIN)):

        def noted(*inputs, name=name, attend=table.attend):
            asked.append((name, inputs[3].n_entries))
            return attend(*inputs)

        monkeypatch.setitem(phases.TABLES, name, table._replace(attend=noted))
    rows = list(phases.attend(bench, 24))
    assert set(asked) == {("FAST", 8), ("COMPILED", 8), ("PLAIN", 8)}  # CSA pools 3 of 24
    assert [row.table for row in rows] == ["FAST", "COMPILED"]
    assert not any(row.reference for row in rows) and {row.unit for row in rows} == {"s"}


# --- limits ---


def test_the_work_of_a_phase_grows_with_its_length_and_training_is_three_times_a_prompt():
    config = load_size("mini")
    prompt, longer = (limits.work_of(config, "prefill", n_tokens) for n_tokens in (512, 2048))
    assert 4 * prompt[0] < longer[0] and prompt[1] < longer[1]
    one, later = (limits.work_of(config, "decode", n_tokens) for n_tokens in (512, 1 << 20))
    assert one[0] < later[0] and one[1] < later[1]
    head = 2 * 511 * config.vocab_size * config.hidden_size  # a prompt needs the logits of its end only
    assert limits.work_of(config, "train", 512)[0] == pytest.approx(3 * (prompt[0] + head), rel=1e-9)


def test_calls_are_counted_as_they_reach_the_kernels():
    with limits.Calls() as calls:
        torch.ones(3) + 1
    assert calls.n == 2


@pytest.mark.slow
def test_without_transformers_the_bench_says_what_to_install_and_runs_alone(small, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["bench", "--size", small, "--phases", "prefill,cache", *QUICK]) == 0
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "pip install" in said.err
    assert "prefill at 40" in said.out and "  ratio" not in said.out


@pytest.mark.slow
def test_without_numba_the_bench_says_what_to_install_and_has_no_fused_row(small, monkeypatch, capsys):
    for module in (phases, report):
        monkeypatch.setattr(module, "numba_is_here", lambda: False)
    assert main(["bench", "--size", small, "--phases", "decode", "--alone", *QUICK]) == 0
    said = capsys.readouterr()
    assert "pip install 'minidsv4[fast]'" in said.err and "decode at 40" in said.out and "fused" not in said.out


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("--size", "huge"), "none of tiny, mini, mini-8e"),
        (("--phases", "prefill,sleep"), "'sleep' names no phase"),
        (("--size", ","), "has an empty name"),
        (("--size", "tiny,"), "has an empty name"),
        (("--size", ""), "has an empty name"),
        (("--repeats", "9" * 30), "give a whole number from 1"),
        (("--lengths", "1K,-3"), "is no length"),
        (("--lengths", "0"), "is no length"),
        (("--threads", "1000"), "this machine has"),
        (("--threads", "0"), "give a whole number from 1"),
        (("--repeats", "two"), "give a whole number from 1"),
        (("--plot", "found.txt", "--curve"), "ends in .png"),
        (("--plot", "found.png"), "give --curve with it"),
        (("--fused",), "goes with --curve"),
        (("--json", "no/such/folder/found.json"), "cannot be written to"),
        (("--lengths", "1000000000M"), "is no length"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_a_sentence(asked, said, capsys):
    assert said in refusal(capsys, "bench", "--phases", "prefill", *asked)


def test_too_long_a_prompt_is_refused_before_anything_is_allocated(monkeypatch, capsys):
    monkeypatch.setattr(peak_memory, "memory_left", lambda: 100 << 20)
    monkeypatch.setattr(report, "MiniDSV4", None)  # nothing is built
    said = refusal(capsys, "bench", "--size", "mini", "--lengths", "1M")
    assert "mini at 1,048,576 tokens needs about" in said and "105 MB are free" in said
