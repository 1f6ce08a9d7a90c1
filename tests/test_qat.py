"""QAT: forwards read FP4 to the bit, gradients are those at the rounded numbers, a model learns with either table."""

import copy
import math

import pytest
import torch
from small import EXACT, TINY, TWO_LAYERS, both_tables, normal, off, one_document, small_model, token_ids

import minidsv4 as v4
from minidsv4.lowbit import mxfp4, qat
from minidsv4.model.indexer import Indexer, KeyCompressor
from minidsv4.train.loop import Trainer
from minidsv4.train.recipe import Recipe

IDS = token_ids(2, 38)  # 12 entries of 3 tokens, of which a query picks 6


@torch.no_grad()
def rounded_copy(model):
    """The model with its routed experts rounded in place."""
    model = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        if "experts.w" in name and "shared" not in name:
            parameter.copy_(mxfp4.rounded(parameter))
    return model


@pytest.fixture
def rounded_indexers(monkeypatch):
    """Index queries and keys of every model are rounded where they are made."""
    stored, queries = KeyCompressor.stored, Indexer.queries

    def rounded_queries(layer, *inputs):
        query_BTUZ, weight_BTU = queries(layer, *inputs)
        return mxfp4.rounded(query_BTUZ), weight_BTU

    monkeypatch.setattr(KeyCompressor, "stored", lambda layer, x: mxfp4.rounded(stored(layer, x)))
    monkeypatch.setattr(Indexer, "queries", rounded_queries)


def test_the_rounded_number_is_read_to_the_bit_and_the_gradient_passes_unchanged():
    x, gradient = normal(5, 70, dtype=torch.float32).requires_grad_(), normal(5, 70, seed=1, dtype=torch.float32)
    y = qat.as_fp4(x)
    assert torch.equal(y, mxfp4.rounded(x)) and not torch.equal(y, x)
    y.backward(gradient)
    assert torch.equal(x.grad, gradient)


@both_tables
def test_the_forward_is_that_of_rounded_experts_and_rounded_queries_and_keys(table, rounded_indexers):
    model = small_model().requires_grad_(False)
    wanted = rounded_copy(model).use(table)(IDS)
    exact = model.use(table)(IDS)
    assert torch.equal(model.use(qat.fp4_ops(table))(IDS), wanted)
    assert off(exact, wanted) > 1e-3


@both_tables
@pytest.mark.parametrize("part", ["queries", "keys"])
def test_queries_and_keys_are_both_rounded_before_the_choice(part, table):
    sees = one_document(24, ratio=3, n_entries=8, n_window=24)
    query_BTUZ, weight_BTU, keys_BCZ = normal(2, 24, 11, 16), normal(2, 24, 11, seed=1), normal(2, 8, 16, seed=2)
    given = {"queries": (mxfp4.rounded(query_BTUZ), keys_BCZ), "keys": (query_BTUZ, mxfp4.rounded(keys_BCZ))}[part]
    found = qat.fp4_ops(table).top_entries(query_BTUZ, weight_BTU, keys_BCZ, sees, 3)
    both = table.top_entries(mxfp4.rounded(query_BTUZ), weight_BTU, mxfp4.rounded(keys_BCZ), sees, 3)
    assert torch.equal(found, both) and not torch.equal(
        found, table.top_entries(given[0], weight_BTU, given[1], sees, 3)
    )


@both_tables
def test_the_gradients_of_the_masters_are_those_at_the_rounded_experts(table, rounded_indexers):
    model = small_model()
    point = rounded_copy(model).use(table)
    with torch.no_grad():
        model.use(qat.fp4_ops(table))
    for one in (model, point):
        one.loss(IDS).main.backward()
    for (name, parameter), other in zip(model.named_parameters(), point.parameters()):
        if other.grad is None:
            assert parameter.grad is None, name
        else:
            assert (parameter.grad - other.grad).abs().max() <= EXACT * other.grad.abs().max().clamp(min=1), name
    assert model.layers[1].ffn.experts.w13.grad.abs().max() > 0


@both_tables
def test_the_indexers_loss_and_gradients_are_those_at_rounded_queries_and_keys(table):
    sees = one_document(15, ratio=3, n_entries=5, n_window=15)
    attended = (normal(2, 15, 4, 20), normal(2, 15, 20), normal(2, 5, 20), sees, normal(4))
    plain = [normal(2, 15, 11, 16, seed=3), normal(2, 15, 11, seed=4), normal(2, 5, 16, seed=5)]
    given = [x.clone().requires_grad_() for x in plain]
    point = [
        mxfp4.rounded(plain[0]).requires_grad_(),
        plain[1].requires_grad_(),
        mxfp4.rounded(plain[2]).requires_grad_(),
    ]
    found, wanted = qat.fp4_ops(table).index_loss(attended, given), table.index_loss(attended, point)
    assert torch.equal(found, wanted)
    for x, y in zip(torch.autograd.grad(found, given), torch.autograd.grad(wanted, point)):
        assert torch.equal(x, y)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["dense", "sparse"])
def test_a_model_learns_its_masters_stay_wide_and_both_tables_learn_the_same(stage):
    ids_BT, after = token_ids(4, 40), {}
    for name, table in {"plain": v4.PLAIN, "fast": v4.FAST}.items():
        model = small_model(TWO_LAYERS).use(qat.fp4_ops(table))
        start = model.loss(ids_BT).main.item()
        trainer = Trainer(model, lambda step: ids_BT, Recipe(steps=6, rate=0.003, warm_up=1), lambda step: stage)
        assert trainer.train() and trainer.losses[-1] < start
        after[name] = model.state_dict()
    w13 = after["fast"]["layers.1.ffn.experts.w13"]
    assert not torch.equal(mxfp4.rounded(w13), w13)
    for name, tensor in after["plain"].items():
        if tensor.is_floating_point():
            assert off(after["fast"][name], tensor) < 1e-6, name  # 6 steps of Muon, each rounding anew, from 1e-12


def test_a_stage_in_fp4_reads_rounded_numbers_while_it_runs_and_not_after():
    ids_BT, model = token_ids(4, 40), small_model(TINY)
    wanted = copy.deepcopy(model).use(qat.fp4_ops(v4.FAST)).loss(ids_BT).main.item()
    exact = model.loss(ids_BT).main.item()
    trainer = Trainer(model, lambda step: ids_BT, Recipe(steps=1, rate=0.003), lambda step: "sparse, FP4")
    assert trainer.train() and trainer.losses == [wanted] != [exact]
    assert model.table is v4.FAST


def test_in_16_bits_the_rounded_numbers_are_the_same_and_the_forward_is_finite():
    x = normal(3, 64, dtype=torch.bfloat16)
    assert torch.equal(mxfp4.rounded(x).float(), mxfp4.rounded(x.float()))
    model = small_model(dtype=torch.bfloat16).use(qat.fp4_ops(v4.FAST))
    assert math.isfinite(model.loss(IDS).total.item())


def test_what_computes_its_own_products_refuses_such_a_model(tmp_path):
    model = small_model(dtype=torch.float32).use(qat.fp4_ops(v4.FAST))
    with pytest.raises(ValueError, match="runs operations unknown to transformers"):
        v4.export_hf(model, tmp_path)
    with pytest.raises(ValueError, match="runs operations unknown to the loops"):
        v4.generate(model, [1, 2, 3], 2, fused=True)


@pytest.mark.parametrize("make", [qat.fp4_ops, qat.fp4_index_ops])
def test_what_is_no_table_is_refused(make):
    with pytest.raises(ValueError, match="ops: NoneType is no table of operations; give PLAIN, FAST"):
        make(None)
