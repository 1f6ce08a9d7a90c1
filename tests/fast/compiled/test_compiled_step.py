"""The fused step: it computes what the model computes, on the same cache, and refuses what it cannot do.

float64 nearly throughout: numba compiles once for each dtype.
"""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from small import EXACT, TINY, off, small_model, token_ids
from torch import nn

import minidsv4 as v4
from minidsv4.config import LayerKind
from minidsv4.fast.compiled import block_loops, expert_loops, row_loops, sequence_loops
from minidsv4.fast.compiled.step import FusedStep

CONFIGS = {
    "tiny": TINY,
    "one stream": TINY.replace(hc_mult=1),
    "equal ratios": TINY.replace(compress_ratios=(0, 4, 4, 4, 0), layer_types=TINY.layer_types, sliding_window=1),
    "learned only": TINY.replace(num_hash_layers=0, n_routed_experts=2, hc_sinkhorn_iters=1, index_topk=1),
    "hash only": TINY.replace(num_hash_layers=4, swiglu_limit=0.05, rope_scaling=None, index_head_dim=18),
    "every entry its own": TINY.replace(compress_ratios=(0, 1, 2, 1, 0), layer_types=TINY.layer_types),
}


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def step(model):
    return FusedStep(model)


def write(write_one, ids_BT, cache):
    """Logits [1, T, V] of tokens taken in one by one."""
    return torch.cat([write_one(ids_BT[:, t : t + 1], cache) for t in range(ids_BT.shape[1])], dim=1)


def remembered(cache):
    """Everything in a cache, as one flat tensor."""
    return torch.cat([series.contents().flatten() for layer in cache.layers for series in layer.series()])


def agree(model, step, ids_BT, cache, fused):
    """The two steps, each on its cache, give the same logits and remember the same."""
    assert off(write(step, ids_BT, fused), write(model, ids_BT, cache)) < EXACT
    assert off(remembered(fused), remembered(cache)) < EXACT
    assert fused.n_tokens == cache.n_tokens and fused.report() == cache.report()


# --- the same numbers ---


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_70_tokens_from_an_empty_cache_are_decoded_as_by_the_model(name):
    model = small_model(CONFIGS[name])  # 70 passes every window and entry border, and buffers grow several times
    agree(model, FusedStep(model), token_ids(1, 70), model.new_cache(), model.new_cache())


@pytest.mark.slow
@pytest.mark.parametrize("n_prompt", [1, 2, 3, 6, 11, 12, 13, 35, 36, 64])
def test_a_prompt_of_any_length_is_gone_on_from(model, step, n_prompt):
    ids_BT, caches = token_ids(1, n_prompt + 13, seed=n_prompt), [model.new_cache(), model.new_cache()]
    for cache in caches:
        model.prefill(ids_BT[:, :n_prompt], cache, chunk=10)
    agree(model, step, ids_BT[:, n_prompt:], *caches)


@pytest.mark.slow
def test_float32_is_as_near_to_float64_as_the_model_is(model):
    rounded, ids_BT = small_model(dtype=torch.float32), token_ids(1, 50)
    wanted = write(model, ids_BT, model.new_cache())
    eager, fused = (write(one, ids_BT, rounded.new_cache()).double() for one in (rounded, FusedStep(rounded)))
    assert 0 < off(fused, wanted) < 2 * off(eager, wanted) < 1e-4  # float32 rounds at 6e-8


def test_among_equal_scores_the_lower_place_is_picked():
    score = torch.tensor([3.0, 5.0, 1.0, 5.0, 7.0, 3.0, 3.0], dtype=torch.float64).numpy()
    picked = []
    for k in (1, 2, 3, 4, 7):
        picked_A = np.empty(k, np.int64)
        expert_loops.stable_topk(score, np.zeros(7), picked_A)
        picked.append(sorted(picked_A))
    assert picked == [[4], [1, 4], [1, 3, 4], [0, 1, 3, 4], [0, 1, 2, 3, 4, 5, 6]]


def test_entries_that_all_score_alike_are_picked_as_by_the_model():
    model = small_model(seed=2)
    for layer in (model.layers[1], model.layers[3]):
        nn.init.zeros_(layer.attn.indexer.weights_proj.weight)
    agree(model, FusedStep(model), token_ids(1, 40), model.new_cache(), model.new_cache())


def test_a_weight_changed_in_place_counts_at_once_and_so_does_one_moved(model):
    model, ids_BT = small_model(seed=1), token_ids(1, 20)
    step = FusedStep(model)
    with torch.no_grad():
        model.layers[1].attn.wq_b.weight.mul_(1.5)
    agree(model, step, ids_BT, model.new_cache(), model.new_cache())
    model.float().double()
    with torch.no_grad():
        model.layers[1].attn.wq_b.weight.mul_(0.5)
    agree(model, step, ids_BT, model.new_cache(), model.new_cache())


REPLACED = {
    "a parameter": lambda attn: setattr(attn.wq_b, "weight", nn.Parameter(1.5 * attn.wq_b.weight)),
    "the data of a parameter": lambda attn: setattr(attn.wq_b.weight, "data", 1.5 * attn.wq_b.weight.data),
    "a part": lambda attn: setattr(attn, "wq_b", copy.deepcopy(attn.wq_b).requires_grad_(False)),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", REPLACED)
def test_what_is_put_in_anothers_place_counts_at_the_next_step(what):
    """Kind: the same logits as the model; before, the step went on with the weights that it was made with."""
    model, ids_BT = small_model(seed=1), token_ids(1, 20)
    step = FusedStep(model)
    agree(model, step, ids_BT, model.new_cache(), model.new_cache())
    with torch.no_grad():
        REPLACED[what](model.layers[1].attn)
        agree(model, step, ids_BT, model.new_cache(), model.new_cache())
        model.layers[1].attn.wq_b.weight.mul_(1.5)  # the new one, in place
    agree(model, step, ids_BT, model.new_cache(), model.new_cache())


def test_a_replaced_parameter_that_the_loops_cannot_read_is_refused_at_the_next_step():
    model = small_model(seed=1)
    step, cache = FusedStep(model), model.new_cache()
    model.layers[1].attn.wq_b.weight = nn.Parameter(model.layers[1].attn.wq_b.weight.float())
    for _ in range(2):
        with pytest.raises(ValueError, match=r"fused: layers.1.attn.wq_b.weight is torch.float32"):
            step(token_ids(1, 1), cache)
    assert cache.n_tokens == 0


def test_the_loops_are_compiled_once_for_a_dtype(step, model):
    write(step, token_ids(1, 40), model.new_cache())
    for loop in (block_loops.block, row_loops.enter, row_loops.leave, row_loops.logits, sequence_loops.attend_sequence):
        assert len(loop.signatures) <= 2  # float64 and float32


# --- the same cache ---


@pytest.mark.slow
@pytest.mark.parametrize("turns", [(1, 1), (3, 5), (13, 2), (7, 12)])
def test_both_steps_take_turns_in_one_cache(model, step, turns):
    ids_BT, mixed = token_ids(1, 66), model.new_cache()
    found = []
    for part_BT in ids_BT.split(sum(turns), dim=1):
        found.append(write(step, part_BT[:, : turns[0]], mixed))
        if part_BT.shape[1] > turns[0]:
            found.append(model(part_BT[:, turns[0] :], cache=mixed))  # several tokens at once
    assert off(torch.cat(found, dim=1), model(ids_BT)) < EXACT
    plain = model.new_cache()
    model(ids_BT, cache=plain)
    assert off(remembered(mixed), remembered(plain)) < EXACT and mixed.report() == plain.report()


def test_a_snapshot_brings_back_exactly_what_was_before_fused_steps(model, step):
    ids_BT, cache = token_ids(1, 60), model.new_cache()
    write(step, ids_BT[:, :20], cache)
    snapshot, before = cache.snapshot(), remembered(cache).clone()
    wanted = write(step, ids_BT[:, 20:], cache)
    for _ in range(2):
        write(step, token_ids(1, 30, seed=7), cache)
        cache.restore(snapshot)
        assert torch.equal(remembered(cache), before) and cache.n_tokens == 20
    assert torch.equal(write(step, ids_BT[:, 20:], cache), wanted)


def test_a_cache_filled_in_inference_mode_is_gone_on_from_outside_of_it_and_back(model, step):
    ids_BT, mixed = token_ids(1, 40), model.new_cache()
    with torch.inference_mode():
        found = [model(ids_BT[:, :17], cache=mixed), write(step, ids_BT[:, 17:20], mixed)]
    found += [write(step, ids_BT[:, 20:25], mixed), model(ids_BT[:, 25:30], cache=mixed)]
    with torch.inference_mode():
        found += [write(step, ids_BT[:, 30:], mixed)]
        assert off(torch.cat(found, dim=1), model(ids_BT)) < EXACT


def test_a_step_that_fails_leaves_the_cache_as_it_was(model, step, monkeypatch):
    ids_BT, cache = token_ids(1, 36), model.new_cache()
    write(step, ids_BT[:, :35], cache)  # the next token closes windows in every layer that has them
    before, calls, block = remembered(cache).clone(), [], block_loops.block

    def fails_late(*arguments):
        block(*arguments)
        calls.append(1)
        if len(calls) == len(model.layers):
            raise MemoryError

    monkeypatch.setattr(block_loops, "block", fails_late)
    with pytest.raises(MemoryError):
        step(ids_BT[:, 35:], cache)
    monkeypatch.undo()
    assert torch.equal(remembered(cache), before) and cache.n_tokens == 35
    assert off(step(ids_BT[:, 35:], cache), model(ids_BT)[:, -1:]) < EXACT


# --- writing ---


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1.0, "seed": 5}])
def test_generate_writes_the_same_text_fused(model, sampling):
    assert v4.generate(model, [3, 1, 2], 40, fused=True, **sampling) == v4.generate(model, [3, 1, 2], 40, **sampling)


# --- refusals ---


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([[1, 2]], r"shape \(1, 2\) is more than one token"),
        ([[1], [2]], "batch_size = 1, not 2"),
        ([[61]], "61 is no token id"),
        ([[-1]], "-1 is no token id"),
        ([[0.5]], "cannot name tokens"),
    ],
)
def test_wrong_ids_are_refused(model, step, ids, said):
    with pytest.raises(ValueError, match=said):
        step(torch.tensor(ids), model.new_cache())


def test_a_batch_is_refused_even_with_a_cache_for_it(model, step):
    with pytest.raises(ValueError, match=r"shape \(2, 1\) is more than one token"):
        step(token_ids(2, 1), model.new_cache(2))


def test_a_foreign_cache_and_none_are_refused(model, step):
    with pytest.raises(ValueError, match="another config"):
        step(token_ids(1, 1), small_model(TINY.replace(index_topk=5)).new_cache())
    for cache in (model.new_draft_cache(), model.new_cache(kinds=[LayerKind.HCA] * 4)):
        with pytest.raises(ValueError, match="layers are of other kinds"):
            step(token_ids(1, 1), cache)
    with pytest.raises(ValueError, match="continues a cache"):
        step(token_ids(1, 1), None)


def test_a_model_that_the_loops_do_not_know_is_refused():
    with pytest.raises(ValueError, match="embed.weight is torch.bfloat16; the loops know float32 or float64"):
        FusedStep(small_model(dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="embed.weight is on meta; the loops run on the CPU"):
        FusedStep(v4.Model(TINY).to("meta"))
    model = small_model()
    model.layers[0].attn_norm.weight.data = model.layers[0].attn_norm.weight.data.float()
    with pytest.raises(ValueError, match="attn_norm.weight is torch.float32"):
        FusedStep(model)
    model = small_model()
    model.layers[2].attn.finish = nn.Tanh()
    with pytest.raises(ValueError, match="layers.2.attn.finish is of type Tanh"):
        FusedStep(model)
    model = small_model()
    model.head.weight.data = model.head.weight.data.T.contiguous().T
    with pytest.raises(ValueError, match="head.weight has strides"):
        FusedStep(model)


def test_a_model_that_runs_operations_of_its_own_is_refused_and_both_tables_are_not(model):
    ops = model.ops
    try:
        FusedStep(model.use(v4.PLAIN))
        model.use(v4.PLAIN._replace(sinkhorn=lambda logits, *_: logits.softmax(-1)))
        with pytest.raises(ValueError, match=r"the model runs operations unknown to the loops; .*model.use\(FAST"):
            FusedStep(model)
    finally:
        model.use(ops)


def test_fused_and_speculate_together_are_refused(model):
    with pytest.raises(ValueError, match="verifies several tokens a pass"):
        v4.generate(model, [1], 2, fused=True, speculate=True)


@pytest.mark.slow
def test_without_numba_everything_else_works_and_the_fused_step_says_what_to_install():
    script = """
import sys
sys.modules["numba"] = None
import minidsv4 as v4
model = v4.Model(v4.Config.tiny())
v4.generate(model, [1], 2)
try:
    v4.generate(model, [1], 2, fused=True)
except ValueError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "numba is not installed" in said.stdout and "pip install 'minidsv4[fast]'" in said.stdout


def test_nothing_imports_numba_unless_asked_for():
    script = "import sys, minidsv4; print(sum(name.split('.')[0] in ('numba', 'llvmlite') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "0\n"
