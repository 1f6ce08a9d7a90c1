"""What bits cost, measured: rows that must agree do, rounding costs what it can, the Hadamard matrix undoes itself."""

import copy
import math

import pytest
import torch
from small import TINY, normal, one_document, small_model, token_ids
from torch.nn import functional as F

import minidsv4 as v4
from minidsv4.experiments import precision
from minidsv4.lowbit import mxfp4
from minidsv4.train.loop import bits_per_byte
from minidsv4.train.plan import Plan
from minidsv4.train.pretrain import Texts
from minidsv4.train.programs import document, programs
from minidsv4.train.recipe import Recipe
from minidsv4.train.tokenizer import Tokenizer

IDS = token_ids(2, 38)
TEXTS = [document(program) for program in programs(3, 8)]
PLAN = Plan.read("mini")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS * 3, 300)


@pytest.fixture(scope="module")
def model(tokenizer):
    shape = dict(vocab_size=len(tokenizer), hidden_size=64, moe_intermediate_size=32, max_position_embeddings=4096)
    return small_model(TINY.replace(**shape), dtype=torch.float32)


def test_bits_per_byte_are_those_of_each_precision_and_the_model_is_left_alone(model, tokenizer):
    before = copy.deepcopy(model.state_dict())
    rows = precision.bits_by_precision(model, tokenizer, TEXTS[:2])
    assert rows["fp32"] == bits_per_byte(model, tokenizer, TEXTS[:2])
    assert 0 < abs(rows["bf16"] - rows["fp32"]) < abs(rows["FP4 experts and indexer"] - rows["fp32"]) < 1
    assert model.table is v4.FAST and all(torch.equal(before[name], x) for name, x in model.state_dict().items())


def test_errors_of_logits_are_zero_for_equal_ones_and_as_defined_for_others():
    exact, other = normal(2, 3, 5), normal(2, 3, 5) + 0.3 * normal(2, 3, 5, seed=1)
    assert precision.logit_error(exact, exact) == (0.0, 0.0, 1.0)
    found = precision.logit_error(other, exact)
    nats = F.kl_div(other.log_softmax(-1), exact.log_softmax(-1), log_target=True, reduction="none").sum(-1).mean()
    assert math.isclose(found.bits, nats.item() / math.log(2)) and found.bits > 0
    assert math.isclose(found.relative, ((other - exact).norm() / exact.norm()).item())
    assert found.same_best == sum(other[b, t].argmax() == exact[b, t].argmax() for b in range(2) for t in range(3)) / 6


def test_experts_from_before_the_training_for_fp4_are_rounded_by_it_and_the_shipped_ones_are_not():
    shipped = v4.load_pretrained().layers[3].ffn.experts.state_dict()
    before = precision.experts_before_fp4()
    assert before.keys() == shipped.keys()
    for name, stack in before.items():
        assert torch.equal(mxfp4.rounded(shipped[name]), shipped[name])
        lost = (mxfp4.rounded(stack) - stack).norm() / stack.norm()
        moved = (shipped[name] - stack).norm() / stack.norm()
        assert 0.11 < lost < 0.13  # a fresh normal matrix loses 12%
        assert lost < moved < 0.25  # the same experts, 60 steps later: another order or layer would be off by 1.4


def test_every_rounding_is_off_a_little_and_all_together_the_most(model):
    rows = precision.logit_errors(model, token_ids(2, 38, config=model.config))
    assert list(rows)[-1] == "as released, packed cache"
    assert all(0 < error.relative < 0.6 and error.bits > 0 for error in rows.values())
    assert rows["bf16"].relative < min(error.relative for name, error in rows.items() if name != "bf16")
    assert all(not module._forward_pre_hooks for module in model.modules())


# ---- the indexer ----


def test_the_hadamard_matrix_is_taken_away_and_exact_scores_are_the_layers_own():
    model = small_model().requires_grad_(False)
    calls = precision.pick_calls(model, IDS)
    assert len(calls) == 2
    with precision.watch(model, "top_entries") as seen:
        model(IDS)
    for call, (layer, arguments, picks_BTP) in zip(calls, seen):
        assert (layer.hadamard(call.keys_BCZ) - arguments[2]).abs().max() < 1e-12  # float64
        found = v4.PLAIN.top_entries(*call)
        choosing = call.sees.visible_counts() > call.k
        assert torch.equal(found[:, choosing], picks_BTP[:, choosing]) and choosing.any()


def test_recall_is_the_share_of_exact_picks_that_rounded_ones_have():
    sees = one_document(30, ratio=3, n_entries=10, n_window=30)
    call = precision.PickCall(normal(2, 30, 11, 16), normal(2, 30, 11, seed=1), normal(2, 10, 16, seed=2), sees, 4)
    rounded = call._replace(query_BTUZ=mxfp4.rounded(call.query_BTUZ), keys_BCZ=mxfp4.rounded(call.keys_BCZ))
    exact, found = v4.PLAIN.top_entries(*call), v4.PLAIN.top_entries(*rounded)
    shares = [
        len({*exact[b, t].tolist()} & {*found[b, t].tolist()}) / 4
        for b in range(2)
        for t in range(30)
        if (t + 1) // 3 > 4
    ]
    assert math.isclose(precision.fp4_recall(call, hadamard=False), sum(shares) / len(shares)) and min(shares) < 1
    assert precision.fp4_recall(rounded, hadamard=False) == 1


def test_an_outlier_changes_no_exact_pick_and_the_hadamard_matrix_spreads_it():
    sees = one_document(192, ratio=3, n_entries=64, n_window=192)
    call = precision.PickCall(normal(1, 192, 8, 32), normal(1, 192, 8, seed=1), normal(1, 64, 32, seed=2), sees, 8)
    loud = precision.with_outlier(call, 5, 16.0)
    assert torch.equal(v4.PLAIN.top_entries(*call), v4.PLAIN.top_entries(*loud))  # a power of two: exact
    assert loud.keys_BCZ[..., 5].abs().max() > 16
    assert precision.fp4_recall(loud, True) > precision.fp4_recall(loud, False) + 0.02
    assert precision.fp4_recall(call, False) > precision.fp4_recall(loud, False)


def test_a_text_in_which_no_query_chooses_is_refused():
    model = small_model().requires_grad_(False)
    with pytest.raises(ValueError, match="no query sees more than the 6 entries"):
        precision.index_recall(model, IDS[:, :18])


# ---- training for few bits ----


@pytest.mark.slow
def test_training_for_few_bits_beats_rounding_afterwards_where_bits_are_few(model, tokenizer):
    """At 2.5 bits rounding hurts a small model that has learned; the same steps with the rounding in view mend it."""
    ids_BT = torch.tensor([(tokenizer.encode(text) * 9)[:48] for text in TEXTS])
    trained = precision.trained_on(model, lambda step: ids_BT, Recipe(steps=20, rate=0.01, optimizer="muon"), None)
    recipe = Recipe(steps=6, rate=0.003, warm_up=1, optimizer="muon")
    held_out = {"programs": TEXTS[:2]}
    rows = precision.qat_beside_rounding(trained, tokenizer, held_out, lambda step: ids_BT, recipe, bits=2.5)
    bits = {row: kinds["programs"] for row, kinds in rows.items()}
    assert bits["rounded"] > bits["float32"] and bits["trained, rounded"] > bits["trained, float32"]
    assert bits["QAT, rounded"] < bits["trained, rounded"] and bits["QAT, rounded"] < bits["rounded"]


def test_other_seeds_give_other_batches_of_the_last_stage():
    small = Plan.from_dict(PLAN.fields | {"data": PLAN.fields["data"] | {"source": 0, "programs": 1, "n_programs": 60}})
    texts = Texts(small)
    tokenizer = Tokenizer.train(texts.train["programs"], 300)
    batches = [precision.sparse_batches(small, texts, tokenizer, seed)(0).ids_BT for seed in (0, 0, 1)]
    last = small.stages[-1]
    assert batches[0].shape == (last.batch_size, last.length + 1)
    assert torch.equal(batches[0], batches[1]) and not torch.equal(batches[0], batches[2])


def test_runs_of_every_width_and_seed_are_kept_to_four_decimals(monkeypatch, tmp_path):
    """Kind: a width or a seed is left out, the seed does not reach the batches, digits are not rounded."""
    texts = type("SmallTexts", (), {"held_out": {"programs": TEXTS[:1]}})()
    monkeypatch.setattr(precision, "Texts", lambda plan: texts)
    monkeypatch.setattr(precision, "load_pretrained", lambda: "the shipped model")
    monkeypatch.setattr(precision, "sparse_batches", lambda plan, texts, tokenizer, seed: seed)

    def beside(model, tokenizer, held_out, seed, recipe, bits):
        assert model == "the shipped model" and held_out is texts.held_out and recipe is precision.RECIPE
        return {"float32": {"programs": seed + bits + 1 / 3}}

    monkeypatch.setattr(precision, "qat_beside_rounding", beside)
    monkeypatch.setattr(precision, "FILE", tmp_path / "precision.json")
    precision.main()
    runs = precision.measured()
    assert [(one["bits"], one["seed"]) for one in runs] == [(b, s) for b in (4.25, 2.5) for s in (0, 1, 2)]
    assert runs[1]["bits per byte"] == {"float32": {"programs": 5.5833}}


def test_the_kept_runs_say_what_the_course_says():
    rows = [one["bits per byte"] for one in precision.measured()]
    assert sum(one["bits"] == 4.25 for one in precision.measured()) == 3
    for one in rows:
        assert one["float32"] == rows[0]["float32"], "all began from the shipped model"
        assert all(one["QAT, rounded"][kind] < one["trained, rounded"][kind] for kind in ("source", "programs"))
