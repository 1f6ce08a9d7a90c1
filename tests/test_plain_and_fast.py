"""A model that runs PLAIN is the model that runs FAST: whole models of random configs, to 1e-10 in float64."""

import functools

import numpy as np
import pytest
import torch
from oracle import random_config
from small import EXACT, TINY, off, off_all, small_model, token_ids

import minidsv4 as v4
from minidsv4.fast import FAST
from minidsv4.ops import PLAIN

SEEDS = range(14)
each_config = pytest.mark.parametrize("seed", SEEDS)


@functools.cache
def case(seed):
    """A disturbed model of a random config with an MTP block, and ids of at least 3 tokens.

    Few Sinkhorn steps: 20 of them at every site took half of the time, and the long text and the operation's own test
    have them.
    """
    config, n_batch, n_tokens = random_config(seed)
    config = config.replace(num_nextn_predict_layers=1, hc_sinkhorn_iters=1 + seed % 3)
    model = small_model(config, seed)
    return model, token_ids(n_batch, max(n_tokens, 3), seed, config)


def with_each(model, compute):
    """What `compute(model)` gives with PLAIN and with FAST; the model runs FAST afterwards."""
    plain = compute(model.use(PLAIN))
    return plain, compute(model.use(FAST))


def documents(seed, config, shape):
    """Random document starts [B, T], at multiples of every ratio."""
    draw = np.random.default_rng(seed)
    align = int(np.lcm.reduce([ratio for ratio in config.compress_ratios if ratio]))
    n_batch, n_tokens = shape
    starts = draw.integers(0, n_tokens // align + 1, (n_batch, 3)) * align
    position = np.arange(n_tokens)
    rows = [[max([0, *row[row <= place]]) for place in position] for row in starts]
    return torch.tensor(np.array(rows))


def losses_and_gradients(model, ids_BT, document_BT=None):
    model.zero_grad()
    losses = model.loss(ids_BT, document_BT)
    losses.total.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    return [part.detach() for part in losses], [None if grad is None else grad.clone() for grad in gradients]


def assert_same(plain, fast):
    """Losses agree each by itself; gradients in units of the largest, as some of them are sums of what cancels."""
    for ours, expected in zip(fast[0], plain[0], strict=True):
        assert abs(ours - expected) <= EXACT * max(1.0, abs(expected))
    largest = max(grad.abs().max() for grad in plain[1] if grad is not None)
    for ours, expected in zip(fast[1], plain[1], strict=True):
        assert (ours is None) == (expected is None) or off_all((ours,), (expected,)) == 0
        if ours is not None and expected is not None:
            assert (ours - expected).abs().max() < EXACT * largest


@pytest.mark.slow
@each_config
def test_logits_are_the_same(seed):
    model, ids_BT = case(seed)
    plain, fast = with_each(model, lambda model: model(ids_BT).detach())
    assert off(fast, plain) < EXACT


@pytest.mark.slow
@each_config
def test_five_losses_and_all_gradients_are_the_same(seed):
    model, ids_BT = case(seed)
    assert_same(*with_each(model, lambda model: losses_and_gradients(model, ids_BT)))


@pytest.mark.slow
@each_config
def test_five_losses_and_all_gradients_of_packed_rows_are_the_same(seed):
    model, ids_BT = case(seed)
    document_BT = documents(seed, model.config, ids_BT.shape)
    assert_same(*with_each(model, lambda model: losses_and_gradients(model, ids_BT, document_BT)))


@pytest.mark.slow
@each_config
def test_streams_of_packed_rows_are_the_same(seed):
    model, ids_BT = case(seed)
    document_BT = documents(seed, model.config, ids_BT.shape)
    cache = functools.partial(model.new_cache, len(ids_BT))
    plain, fast = with_each(model, lambda model: model.streams(ids_BT, cache(), document_BT).detach())
    assert off(fast, plain) < EXACT


@pytest.mark.slow
@each_config
def test_random_chunks_with_a_cache_give_the_same_and_leave_the_same_behind(seed):
    model, ids_BT = case(seed)
    draw = np.random.default_rng(seed)
    cuts = np.sort(draw.integers(0, ids_BT.shape[1] + 1, 3)).tolist()
    chunks = [chunk for chunk in ids_BT.tensor_split(cuts, dim=1) if chunk.shape[1]]

    def compute(model):
        cache = model.new_cache(len(ids_BT))
        logits = torch.cat([model(chunk, cache) for chunk in chunks], dim=1)
        return logits, *(series.contents() for series in cache.series())

    plain, fast = with_each(model, compute)
    assert off_all(fast, plain) < EXACT
    assert off(fast[0], model(ids_BT).detach()) < EXACT


@pytest.mark.slow
@each_config
def test_one_cache_is_gone_on_from_by_either(seed):
    """In small steps at the start of a text and at its end; the middle of a long one is one step."""
    model, ids_BT = case(seed)
    cache, found = model.new_cache(len(ids_BT)), []
    n_middle = max(0, ids_BT.shape[1] - 36)
    first, middle, last = ids_BT.tensor_split([18, 18 + n_middle], dim=1)
    steps = [*first.split(3, dim=1), middle, *last.split(3, dim=1)]
    for place, chunk in enumerate(step for step in steps if step.shape[1]):
        found.append(model.use((PLAIN, FAST)[(place + seed) % 2])(chunk, cache))
    assert off(torch.cat(found, dim=1), model.use(FAST)(ids_BT).detach()) < EXACT


@pytest.mark.slow
def test_a_text_longer_than_a_few_blocks_gives_the_same():
    model, ids_BT = small_model(), token_ids(2, 201)
    assert_same(*with_each(model, lambda model: losses_and_gradients(model, ids_BT)))


def test_the_random_rows_hold_several_documents_and_the_random_configs_every_kind_of_layer():
    drawn = [case(seed) for seed in SEEDS]
    packed = [documents(seed, model.config, ids_BT.shape) for seed, (model, ids_BT) in zip(SEEDS, drawn)]
    assert sum(int(document_BT.max()) > 0 for document_BT in packed) >= 6
    for model, _ in drawn:
        assert {block.attn.kind for block in model.layers} == set(v4.LayerKind)


# ---- the choice of a table ----


def layers_of(model):
    return [module for module in model.modules() if hasattr(type(module), "ops")]


def test_a_model_runs_fast_by_default_and_every_part_of_it_what_it_is_told_to_use():
    model = v4.Model(TINY)
    assert len(layers_of(model)) > 50 and all(layer.ops is FAST for layer in layers_of(model))
    assert model.use(PLAIN) is model and all(layer.ops is PLAIN for layer in layers_of(model))
    assert all(layer.ops is PLAIN for layer in layers_of(v4.Model(TINY, ops=PLAIN)))
    assert all(layer.ops is FAST for layer in layers_of(v4.Model(TINY)))  # no global state


def test_two_models_run_two_tables_side_by_side():
    calls, model, other = [], small_model(), small_model()
    model.use(PLAIN._replace(attend=lambda *given: calls.append(1) or PLAIN.attend(*given)))
    other(token_ids(1, 5))
    assert not calls
    model(token_ids(1, 5))
    assert len(calls) == len(model.layers)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAIN._fields)
def test_every_operation_of_the_table_is_run_by_the_model_and_not_passed_by(name):
    calls, model = [], small_model()
    right = getattr(FAST, name)
    model.use(FAST._replace(**{name: lambda *given: calls.append(1) or right(*given)}))
    model.loss(token_ids(1, 40))
    assert calls


def test_the_vocabulary_loss_is_run_for_the_model_and_for_its_mtp_block():
    calls, model = [], small_model()
    model.use(FAST._replace(cross_entropy=lambda *given: calls.append(1) or FAST.cross_entropy(*given)))
    model.loss(token_ids(1, 40))
    assert len(calls) == 2
