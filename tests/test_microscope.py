"""The microscope's data decode to the shipped model's tensors, within the precision that the page states."""

import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import minidsv4 as v4
from minidsv4.cost.baselines import mha
from minidsv4.course import microscope
from minidsv4.course.microscope import measure
from minidsv4.course.microscope.fixed_point import in_255ths, packed, spread, unpacked, whole
from minidsv4.course.microscope.texts import SAMPLES
from minidsv4.course.record import record

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
PAGE = Path(microscope.__file__).parent / "page"
TEXT = next(sample for sample in SAMPLES if sample.name == "far")
ONE_255TH = 1 / 255 + 1e-12
WINDOW, RATIO, PICKS = 32, 4, 16


@pytest.fixture(scope="module")
def model():
    return v4.load_pretrained()


@pytest.fixture(scope="module")
def seen(model):
    """The data of one text as the page reads them, the record they come from, and the logits (T, V)."""
    double = v4.load_pretrained().double()
    tokenizer = v4.pretrained_tokenizer()
    data = json.loads(json.dumps(measure.measured(double, tokenizer, TEXT.text), allow_nan=False))
    ids = [tokenizer.bos_id, *tokenizer.encode(TEXT.text)]
    with record(double) as rec:
        logits_BTV = double(torch.tensor([ids]))
    return data, rec, logits_BTV[0], ids


def layers(seen, kind=None):
    """Pairs of a layer's data and its record, those of one kind if it is named."""
    data, rec, _, _ = seen
    return [(found, layer) for found, layer in zip(data["layers"], rec) if kind in (None, found["kind"])]


def within_half_a_step(record, expected):
    """True where unpacked numbers are off by half a step of their scale, or less."""
    return np.abs(unpacked(record) - np.asarray(expected)).max() <= 0.5001 * record["step"]


def dense(found, n_tokens, n_entries):
    """Weights over all tokens [T, H, S] and all entries [T, H, C] from those that the page keeps."""
    window_THW, entry_THP, read_TP = (unpacked(found[name]) for name in ("window", "entries", "read"))
    token_THS = np.zeros((n_tokens, window_THW.shape[1], n_tokens))
    entry_THC = np.zeros((n_tokens, window_THW.shape[1], n_entries))
    for t in range(n_tokens):
        for age in range(min(t + 1, WINDOW)):
            token_THS[t, :, t - age] = window_THW[t, :, age]
        for place, entry in enumerate(read_TP[t].astype(int)):
            if entry != measure.NO_PICK:
                entry_THC[t, :, entry] = entry_THP[t, :, place]
    return token_THS, entry_THC


@pytest.mark.slow
def test_the_window_and_the_entries_have_the_weights_of_the_model(seen):
    for found, layer in layers(seen):
        token_THS, entry_THC = (weight[0].numpy() for weight in layer.weights())
        ours = dense(found, len(seen[3]), entry_THC.shape[-1])
        assert np.abs(ours[0] - token_THS).max() < ONE_255TH
        assert np.abs(ours[1] - entry_THC).max(initial=0) < ONE_255TH


def test_window_entries_and_sink_of_every_row_sum_to_one(seen):
    for found, layer in layers(seen):
        rows_TH = unpacked(found["window"]).sum(-1) + unpacked(found["entries"]).sum(-1) + unpacked(found["sink"])
        assert np.abs(rows_TH - 1).max() < 1e-12
        rest_TH = 1 - sum(weight.sum(-1) for weight in layer.weights())[0].numpy()
        assert np.abs(unpacked(found["sink"]) - rest_TH).max() < ONE_255TH


def test_picks_are_the_best_scores_of_the_finished_entries(seen):
    n_left_out = 0
    for found, layer in layers(seen, "CSA"):
        read_TP, score_TC = unpacked(found["read"]).astype(int), unpacked(found["scores"])
        for t, (row, score_C) in enumerate(zip(read_TP, score_TC)):
            picks = [entry for entry in row if entry != measure.NO_PICK]
            others = sorted(set(range((t + 1) // RATIO)) - set(picks))
            assert len(picks) == min(PICKS, (t + 1) // RATIO)
            if others:
                n_left_out += 1
                assert score_C[picks].min() >= score_C[others].max() - found["scores"]["step"]
        shown_TC = layer.index_scores()[0].numpy()
        assert within_half_a_step(found["scores"], np.where(np.isfinite(shown_TC), shown_TC, 0))
    assert n_left_out > 60  # the text is long enough for the indexer to choose


def test_an_hca_query_reads_every_finished_entry(seen):
    for found, _ in layers(seen, "HCA"):
        for t, row in enumerate(unpacked(found["read"]).astype(int)):
            assert [entry for entry in row if entry != measure.NO_PICK] == list(range((t + 1) // 32))


def test_the_shares_of_pooled_tokens_are_the_model_s_and_sum_to_one(seen):
    for found, layer in [*layers(seen, "CSA"), *layers(seen, "HCA")]:
        share_CS = layer.slot_weights()[0].mean(-1).numpy()
        assert np.abs(unpacked(found["pooled"]) - share_CS).max() < ONE_255TH
        assert np.abs(unpacked(found["pooled"]).sum(-1) - 1).max() < 1e-12


def test_experts_and_their_weights_are_the_router_s(seen):
    for number, (found, layer) in enumerate(layers(seen)):
        assert np.array_equal(unpacked(found["experts"]), layer.routed.picked_BTA[0].numpy())
        assert within_half_a_step(found["expertWeights"], layer.routed.weight_BTA[0].numpy())
        assert within_half_a_step(found["expertScores"], layer.routed.score_BTE[0].numpy())
        assert found["hashed"] == (number == 0)


def test_mixes_and_norms_of_the_streams_are_the_model_s(seen):
    for found, layer in layers(seen):
        assert within_half_a_step(found["norms"], layer.streams_BTND[0].square().mean(-1).sqrt())
        for site, mix in zip(("attentionMix", "expertsMix"), layer.mixes):
            for name, part in zip(("pre", "post", "carry"), mix):
                assert within_half_a_step(found[site][name], part[0])
        old_to_new_Tij = unpacked(found["attentionMix"]["carry"])
        assert np.abs(old_to_new_Tij.sum(1) - 1).max() < 1e-3  # over old streams, within four roundings of 16 bits


def test_losses_and_best_guesses_are_those_of_the_logits(seen):
    data, _, logits_TV, ids = seen
    tokenizer = v4.pretrained_tokenizer()
    nats_T = F.cross_entropy(logits_TV[:-1], torch.tensor(ids[1:]), reduction="none")
    assert within_half_a_step(data["loss"], nats_T)
    best = logits_TV.softmax(-1).topk(5, dim=-1)
    assert within_half_a_step(data["chance"], best.values)
    assert data["best"][7] == measure.spelled(tokenizer, best.indices[7].tolist())
    assert data["tokens"][0] == "<bos>" and "".join(data["tokens"][1:]) == TEXT.text


def test_every_token_has_a_text_to_show(seen):
    tokenizer = v4.pretrained_tokenizer()
    assert measure.spelled(tokenizer, [tokenizer.bos_id, *tokenizer.encode("x ="), tokenizer.eos_id]) == [
        *("<bos>", "x", " =", "<eos>")
    ]
    assert all(token for row in seen[0]["best"] for token in row)


def test_the_bytes_of_the_cache_are_those_it_reports_whatever_the_tokens_are(model):
    grown = measure.cache_growth(model, 33)
    cache = model.new_cache()
    with torch.inference_mode():
        model(torch.tensor([list(range(5, 38))]), cache)
    assert {kind: rows[-1] for kind, rows in grown.items()} == cache.report()
    assert all(len(rows) == 33 for rows in grown.values())
    assert [grown["window"][t] for t in (0, 31, 32)] == [6 * 64 * 4, 32 * 6 * 64 * 4, 32 * 6 * 64 * 4]


def test_rounding_to_255ths_keeps_every_row_whole_and_every_number_near():
    rows = np.random.default_rng(0).dirichlet(np.full(49, 0.1), size=300)
    rounded = in_255ths(rows)
    assert (rounded.sum(-1) == 255).all()
    assert (rounded == np.rint(rounded)).all() and rounded.min() >= 0
    assert np.abs(rounded / 255 - rows).max() < ONE_255TH
    assert in_255ths(np.array([0.0, 1.0, 0.0])).tolist() == [0, 255, 0]


def test_packed_numbers_come_back_within_half_a_step_and_whole_ones_exactly():
    values = np.random.default_rng(1).normal(size=(3, 5, 2))
    assert within_half_a_step(spread(values), values)
    assert spread(values)["step"] == pytest.approx(np.ptp(values) / 65535)
    counts = np.array([[0, 7], [255, 300]])
    assert np.array_equal(unpacked(whole(counts)), counts)
    assert unpacked(spread(np.zeros((0, 4)))).shape == (0, 4)
    with pytest.raises(AssertionError):
        packed(np.array([1.5]), 0, 1 / 255, bits=8)


def test_programs_of_the_texts_print_what_the_texts_say():
    told = [sample for sample in SAMPLES if "#>" in sample.text and sample.name != "bug"]
    assert len(told) >= 4
    for sample in told:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(sample.text, sample.name, "exec"), {"__name__": "sample"})
        assert printed.getvalue().splitlines() == re.findall(r"^#> (.*)$", sample.text, re.MULTILINE)


def test_a_word_that_the_reader_is_asked_to_click_stands_in_the_text():
    asked = [(sample.text, word) for sample in SAMPLES for word in re.findall(r"`([^`]+)`", sample.look)]
    assert len(asked) > 5
    assert [word for text, word in asked if word not in text] == []


def test_the_bug_is_one_word_and_a_program_that_fails():
    texts = {sample.name: sample.text for sample in SAMPLES}
    pairs = zip(texts["function"].split(), texts["bug"].split(), strict=True)
    assert [(right, wrong) for right, wrong in pairs if right != wrong] == [("n", "print")]
    with pytest.raises(TypeError):
        exec(texts["bug"], {"__name__": "sample"})


@pytest.mark.slow
def test_the_page_has_every_file_that_it_names_and_links_to_notebooks_that_exist(tmp_path):
    short = [sample for sample in SAMPLES if sample.name == "noise"]
    index = microscope.write_site(tmp_path / "page", samples=short)
    text = index.read_text(encoding="utf-8")
    for name in re.findall(r'(?:src|href)="([\w.]+\.(?:js|css))"', text):
        assert (index.parent / name).is_file()
    assert (index.parent / "texts" / "noise.js").read_text(encoding="utf-8").startswith("window.TEXT_noise = {")
    scripts = "".join(path.read_text(encoding="utf-8") for path in PAGE.glob("*.js"))
    linked = set(re.findall(r'notebook\("(\w+)"', scripts)) | set(re.findall(r'"(\d\d_\w+)"', scripts))
    assert len(linked) > 7
    assert all((NOTEBOOKS / f"{name}.ipynb").is_file() for name in linked)


def test_the_page_says_how_large_the_model_is(model):
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    text = (PAGE / "index.html").read_text(encoding="utf-8")
    assert f"{millions:.0f} million parameters" in text
    assert {6: "six layers"}[len(model.layers)] in text


def test_sizes_and_the_comparison_of_bytes_are_those_of_the_model(model):
    frame = microscope.frame(model, SAMPLES[:1], longest=2)
    per_token = mha(model.config, model.config.head_dim).cache_bytes(1, 4)
    assert (frame["sizes"]["W"], frame["sizes"]["CSA"], frame["sizes"]["P"]) == (WINDOW, RATIO, PICKS)
    assert frame["others"]["MHA"] == per_token == 2 * 8 * 64 * 6 * 4


def test_the_scripts_of_the_page_stay_short():
    lines = {path.name: path.read_text(encoding="utf-8").count("\n") for path in PAGE.glob("*.js")}
    assert sum(lines.values()) < 800 and max(lines.values()) < 300, lines
