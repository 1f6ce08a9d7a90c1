"""The cache: any cutting gives one pass, bytes are the formula's, a snapshot is exact, a failure leaves no trace."""

import random

import pytest
import torch
from small import EXACT, TINY, small_model, token_ids

import minidsv4 as v4
from minidsv4.model.cache import KINDS
from minidsv4.model.layer import watch

WINDOW, CSA, HCA = v4.LayerKind.WINDOW, v4.LayerKind.CSA, v4.LayerKind.HCA
N_TOKENS = 38  # 12 entries of 3 tokens and 2 over, of which a query picks 6; 3 entries of 12 and 2 over

# The released windows and ratios around narrow layers: W = 128, m = 4, m' = 128.
LONG = v4.Config.from_dict(
    dict(
        vocab_size=29,
        hidden_size=6,
        moe_intermediate_size=5,
        num_hidden_layers=4,
        head_dim=10,
        hc_mult=2,
        num_attention_heads=2,
        qk_rope_head_dim=4,
        q_lora_rank=7,
        o_groups=1,
        o_lora_rank=3,
        sliding_window=128,
        compress_ratios=(0, 4, 128, 128, 0),
        index_n_heads=3,
        index_head_dim=8,
        index_topk=2,
        n_routed_experts=5,
        num_experts_per_tok=1,
        num_hash_layers=1,
        num_nextn_predict_layers=0,
        hc_sinkhorn_iters=2,
    )
)


@pytest.fixture(scope="module")
def model():
    return small_model().requires_grad_(False)


@pytest.fixture(scope="module")
def whole(model):
    return model(token_ids(2, N_TOKENS))


@pytest.fixture(scope="module")
def long_model():
    return small_model(LONG, dtype=torch.float32).requires_grad_(False)


def in_chunks(model, ids_BT, cuts, cache=None):
    cache = cache or model.new_cache(len(ids_BT))
    return torch.cat([model(ids, cache) for ids in ids_BT.split(cuts, dim=1)], dim=1)


def random_cuts(seed, n_tokens=N_TOKENS):
    draw, cuts = random.Random(seed), []
    while sum(cuts) < n_tokens:
        cuts.append(min(draw.choice([1, 2, 3, 5, 8, 13, 21]), n_tokens - sum(cuts)))
    return cuts


def contents(cache):
    """Copies of everything that is remembered."""
    return [part.contents().clone() for layer in cache.layers for part in layer.series()]


def same_bits(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other))


# ---- one definition ----


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_any_random_cutting_into_chunks_gives_the_logits_of_one_pass(seed, model, whole):
    assert (in_chunks(model, token_ids(2, N_TOKENS), random_cuts(seed)) - whole).abs().max() < EXACT


def test_decoding_one_token_at_a_time_gives_the_logits_of_one_pass(model, whole):
    assert (in_chunks(model, token_ids(2, N_TOKENS), 1) - whole).abs().max() < EXACT


def test_the_top_k_of_these_tests_has_to_choose():
    assert N_TOKENS // TINY.ratio_of(CSA) > TINY.index_topk


def test_sequences_of_a_batch_do_not_see_each_other(model, whole):
    ids_BT = token_ids(2, N_TOKENS)
    for b in range(2):
        assert (in_chunks(model, ids_BT[b : b + 1], [9, 1, 28])[0] - whole[b]).abs().max() < EXACT


def test_only_the_last_logits_are_computed_when_only_they_are_wanted(model, whole):
    ids_BT, cache = token_ids(2, N_TOKENS), model.new_cache(2)
    assert model(ids_BT[:, :30], cache, last=2).shape == (2, 2, TINY.vocab_size)
    assert (model(ids_BT[:, 30:], cache, last=3) - whole[:, -3:]).abs().max() < EXACT


def test_two_caches_of_one_model_grow_apart(model, whole):
    ids_BT, one, other = token_ids(2, N_TOKENS), model.new_cache(2), model.new_cache(2)
    in_chunks(model, ids_BT[:, :20], 10, one), in_chunks(model, ids_BT.flip(1)[:, :20], 10, other)
    assert (in_chunks(model, ids_BT[:, 20:], 9, one) - whole[:, 20:]).abs().max() < EXACT


def test_a_cache_filled_under_inference_mode_goes_on_outside_of_it(model, whole):
    ids_BT, cache = token_ids(2, N_TOKENS), model.new_cache(2)
    with torch.inference_mode():
        in_chunks(model, ids_BT[:, :20], 1, cache)
    assert (in_chunks(model, ids_BT[:, 20:], 1, cache) - whole[:, 20:]).abs().max() < EXACT


# ---- bytes ----


def formula(config, n, n_batch=2, itemsize=4):
    """The closed form of the cache, by kind, and the tail: raw series of open windows and the one before (CSA)."""
    kinds = config.layer_types[: config.num_hidden_layers]
    n_csa, n_hca, m, m_hca = kinds.count(CSA), kinds.count(HCA), config.ratio_of(CSA), config.ratio_of(HCA)
    width, index = config.head_dim, config.index_head_dim
    open_csa, before = (n % m) * 4 * (width + index), (n >= m) * m * 2 * (width + index)
    numbers = {
        "window": len(kinds) * min(n, config.sliding_window) * width,
        "tail state": n_csa * (open_csa + before) + n_hca * (n % m_hca) * 2 * width,
        "CSA entries": n_csa * (n // m) * width,
        "indexer keys": n_csa * (n // m) * index,
        "HCA entries": n_hca * (n // m_hca) * width,
    }
    return {kind: number * n_batch * itemsize for kind, number in numbers.items()}


def roomy_series(cache, config):
    """Buffers with more room than half of what they hold, or for what is dropped from the front than a few windows."""
    for layer in cache.layers:
        limits = [(layer.window, 4 * config.sliding_window + 64)]
        for memory in layer.compressors():
            limits += [(memory.open, 4 * config.ratio_of(layer.kind) + 64)]
            limits += [(memory.entries, len(memory.entries) * 3 // 2 + 8)]
        yield from (series for series, most in limits if series.data.shape[1] > most)


@pytest.fixture(scope="module")
def long_caches(long_model):
    """Caches after so many tokens, prompts longer than 1000 by chunks."""
    caches, ids_BT = {}, token_ids(2, 20_000, config=LONG)
    for n in (1, 127, 128, 129, 1000, 20_000):
        caches[n] = long_model.new_cache(2)
        long_model.prefill(ids_BT[:, :n], caches[n])
    return caches


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 127, 128, 129, 1000, 20_000])
def test_bytes_remembered_equal_the_closed_form_item_by_item(n, long_caches):
    report = long_caches[n].report()
    assert report == formula(LONG, n) and list(report) == list(KINDS)
    assert long_caches[n].n_bytes() == sum(formula(LONG, n).values()) and long_caches[n].n_tokens == n


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 127, 128, 129, 1000, 20_000])
def test_room_held_in_advance_is_bounded_and_is_all_that_is_held_besides(n, long_caches):
    cache = long_caches[n]
    assert list(roomy_series(cache, LONG)) == []
    held = sum(part.data.untyped_storage().nbytes() for layer in cache.layers for part in layer.series())
    assert held == cache.n_bytes() + cache.spare_bytes()


def test_bytes_and_spare_room_hold_at_every_length_while_decoding_in_small_steps(long_model):
    ids_BT, cache, n = token_ids(2, 420, config=LONG), long_model.new_cache(2), 0
    for size in random_cuts(0, 420):
        long_model(ids_BT[:, n : n + size], cache)
        n += size
        assert cache.report() == formula(LONG, n), n
        assert list(roomy_series(cache, LONG)) == [], n


def test_the_formula_of_flash_is_that_of_the_paper():
    config, n = v4.Config.flash(), 1 << 20
    entry, key = 584, 68  # bytes of an entry and of an indexer key in the production formats
    numbers = formula(config, n, n_batch=1, itemsize=1)
    compressed = (numbers["CSA entries"] + numbers["HCA entries"] + numbers["window"]) // 512 * entry
    assert round((compressed + numbers["indexer keys"] // 128 * key) / 1e9, 3) == 3.688


def test_the_state_that_does_not_grow_has_the_same_size_at_every_multiple_of_the_long_window(long_model):
    ids_BT, cache, sizes = token_ids(2, 1280, config=LONG), long_model.new_cache(2), []
    for ids in ids_BT.split(256, dim=1):
        long_model(ids, cache)
        sizes.append(cache.report()["window"] + cache.report()["tail state"])
    assert len(set(sizes)) == 1


@pytest.mark.slow
def test_bytes_grow_by_the_same_slope_everywhere(long_caches):
    def growing(n):
        report = long_caches[n].report()
        return report["CSA entries"] + report["indexer keys"]

    assert growing(20_000) * 128 == growing(128) * 20_000  # both lengths are multiples of 4


def test_a_new_cache_holds_nothing(model):
    cache = model.new_cache(2)
    assert cache.n_tokens == 0 and cache.n_bytes() == 0 and cache.report() == dict.fromkeys(KINDS, 0)


def test_bytes_follow_the_dtype_of_the_model():
    caches = {}
    for dtype in (torch.float64, torch.bfloat16):
        model = small_model(dtype=dtype)
        caches[dtype] = model.new_cache(2)
        model(token_ids(2, N_TOKENS), caches[dtype])
    wide, narrow = caches[torch.float64].report(), caches[torch.bfloat16].report()
    ratios = {kind: wide[kind] / narrow[kind] for kind in KINDS}
    assert ratios.pop("tail state") == 2  # raw series are float32 in 16-bit models, as released
    assert set(ratios.values()) == {4}
    assert caches[torch.float64].report() == formula(TINY, N_TOKENS, itemsize=8)


def test_the_window_holds_the_last_tokens_in_order(model):
    ids_BT, cache = token_ids(2, N_TOKENS), model.new_cache(2)
    with watch(model, "attend") as longer:
        model(ids_BT, cache)
    assert torch.equal(cache.layers[0].window.contents(), longer[0][1][1][:, -TINY.sliding_window :])


def test_the_cache_of_a_prefix_is_a_prefix_of_the_cache(model):
    ids_BT, cache = token_ids(2, N_TOKENS), model.new_cache(2)
    model(ids_BT[:, :20], cache)
    before = [memory.entries.contents().clone() for layer in cache.layers for memory in layer.compressors()]
    model(ids_BT[:, 20:], cache)
    after = [memory.entries.contents() for layer in cache.layers for memory in layer.compressors()]
    assert all(torch.equal(long[:, : short.shape[1]], short) for long, short in zip(after, before))
    assert all(long.shape[1] > short.shape[1] > 0 for long, short in zip(after, before))


# ---- snapshots ----


def assert_every_bit_comes_back(model, cache, at):
    """Take in `at` tokens, go on, go back, go on with other tokens, go back again: bytes and logits are the same."""
    ids_BT = token_ids(2, N_TOKENS)
    if at:
        in_chunks(model, ids_BT[:, :at], random_cuts(at, at), cache)
    snapshot, before, report = cache.snapshot(), contents(cache), cache.report()
    expected = in_chunks(model, ids_BT[:, at:], 7, cache)
    for tail in (ids_BT.flip(1)[:, at:], ids_BT[:, :3]):
        cache.restore(snapshot)
        assert same_bits(contents(cache), before) and cache.report() == report and cache.n_tokens == at
        in_chunks(model, tail, 5, cache)  # something else, which must leave no trace
    cache.restore(snapshot)
    assert torch.equal(in_chunks(model, ids_BT[:, at:], 7, cache), expected)


@pytest.mark.slow
@pytest.mark.parametrize("at", [0, 1, 11, 12, 20])
def test_restoring_brings_back_every_bit_as_often_as_wanted(at, model):
    assert_every_bit_comes_back(model, model.new_cache(2), at)


def test_many_snapshots_are_restored_from_the_newest_to_the_oldest(model):
    ids_BT, cache, taken = token_ids(2, N_TOKENS), model.new_cache(2), []
    for ids in ids_BT.split(5, dim=1):
        taken.append((cache.snapshot(), contents(cache)))
        model(ids, cache)
    for snapshot, before in reversed(taken):
        cache.restore(snapshot)
        assert same_bits(contents(cache), before)


def test_a_snapshot_that_was_taken_after_the_restored_one_is_void(model):
    ids_BT, cache = token_ids(2, N_TOKENS), model.new_cache(2)
    early = cache.snapshot()
    model(ids_BT[:, :9], cache)
    late = cache.snapshot()
    cache.restore(early)
    model(ids_BT[:, 9:20], cache)
    before = contents(cache)
    with pytest.raises(ValueError, match="snapshot at token 9 is void"):
        cache.restore(late)
    assert same_bits(contents(cache), before) and cache.n_tokens == 11
    cache.restore(early)
    assert cache.n_tokens == 0


def test_a_snapshot_of_another_cache_is_refused(model):
    cache, other = model.new_cache(2), model.new_cache(2)
    with pytest.raises(ValueError, match="belongs to another cache"):
        cache.restore(other.snapshot())


def test_a_snapshot_costs_no_copy(model):
    cache = model.new_cache(2)
    model(token_ids(2, N_TOKENS), cache)
    held = {part.data.data_ptr() for layer in cache.layers for part in layer.series()}
    assert {data.data_ptr() for data, _, _ in cache.snapshot().ends} == held


# ---- failures ----


def failing_calls(model):
    other = small_model(TINY.replace(index_topk=5))
    return {
        "float ids": lambda cache: model(torch.zeros(2, 3), cache),
        "an id out of range": lambda cache: model(torch.full((2, 3), TINY.vocab_size), cache),
        "another batch": lambda cache: model(token_ids(3, 4), cache),
        "another config": lambda cache: other(token_ids(2, 4), cache),
        "a bad prompt": lambda cache: model.prefill(torch.full((2, 3), -1), cache),
    }


@pytest.mark.parametrize(
    "mistake", ["float ids", "an id out of range", "another batch", "another config", "a bad prompt"]
)
def test_a_refused_call_leaves_the_cache_as_it_was(mistake, model, whole):
    ids_BT, cache = token_ids(2, N_TOKENS), model.new_cache(2)
    in_chunks(model, ids_BT[:, :20], 13, cache)
    before = contents(cache)
    with pytest.raises(ValueError):
        failing_calls(model)[mistake](cache)
    assert same_bits(contents(cache), before) and cache.n_tokens == 20
    assert (model(ids_BT[:, 20:], cache) - whole[:, 20:]).abs().max() < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize(
    "where", ["layers.0.ffn", "layers.1.attn.kv_norm", "layers.2.attn.compressor.norm", "layers.3"]
)
@pytest.mark.parametrize("call", ["forward", "prefill"])
def test_an_error_in_the_middle_of_a_forward_leaves_the_cache_as_it_was(call, where, kind, model, whole):
    ids_BT, cache = token_ids(2, N_TOKENS), model.new_cache(2)
    in_chunks(model, ids_BT[:, :20], 7, cache)
    before, calls = contents(cache), []

    def stop(module, inputs):
        calls.append(module)
        if call == "forward" or len(calls) == 2:  # a prompt fails in its second chunk
            raise kind("in the middle")

    hook = model.get_submodule(where).register_forward_pre_hook(stop)
    try:
        with pytest.raises(kind, match="in the middle"):
            model(ids_BT[:, 20:], cache) if call == "forward" else model.prefill(ids_BT[:, 14:], cache, chunk=12)
    finally:
        hook.remove()
    assert same_bits(contents(cache), before) and cache.n_tokens == 20
    assert (model(ids_BT[:, 20:], cache) - whole[:, 20:]).abs().max() < EXACT


@pytest.mark.parametrize("n_batch", [0, -2])
def test_a_batch_of_no_sequences_is_refused(n_batch, model):
    with pytest.raises(ValueError, match=f"batch_size = {n_batch} .*from 1"):
        model.new_cache(n_batch)
