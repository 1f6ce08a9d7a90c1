"""Stored prefixes: a hit is a cold run, by every strategy and at every length; damage and full disks are misses."""

import errno
import functools
import itertools
import os
import random
import resource
import signal
import warnings
from typing import NamedTuple

import pytest
import torch
from small import EXACT, TINY, off, small_model, token_ids

import minidsv4 as v4
from minidsv4 import files
from minidsv4.cost import memory
from minidsv4.serve import prefix_files, prefix_identity, prefix_store
from minidsv4.serve.prefix_files import followed_file
from minidsv4.serve.prefix_state import cone_tokens, overlap_tokens
from minidsv4.serve.prefix_store import PrefixStore

WINDOW, CSA, HCA = v4.LayerKind.WINDOW, v4.LayerKind.CSA, v4.LayerKind.HCA
EVERY_KIND = TINY.replace(hc_sinkhorn_iters=3)
QUICK = EVERY_KIND.replace(
    hidden_size=10, num_attention_heads=2, o_groups=1, o_lora_rank=6, q_lora_rank=8, moe_intermediate_size=5, hc_mult=2
)


def kinds(config, window, **layers):
    """The config with layers of these kinds, such as `csa=3, hca=12`, in this order, and this window."""
    by_name = {"window": WINDOW, "csa": CSA, "hca": HCA}
    ratios = [ratio for _, ratio in layers["of"]]
    return config.replace(
        num_hidden_layers=len(ratios),
        compress_ratios=(*ratios, 0),
        layer_types=(*(by_name[name] for name, _ in layers["of"]), WINDOW),
        sliding_window=window,
    )


MIXES = {
    "every kind": EVERY_KIND,
    "windows": kinds(QUICK, 5, of=[("window", 0)] * 3),
    "HCA": kinds(QUICK, 4, of=[("hca", 6)] * 2),
    "CSA": kinds(QUICK, 7, of=[("csa", 3)] * 2),
    "CSA over a short window": kinds(QUICK, 2, of=[("csa", 4), ("hca", 8), ("csa", 4)]),
    "HCA first": kinds(QUICK, 6, of=[("hca", 10), ("csa", 5), ("window", 0)]),
}
WAYS = {"zero": {}, "periodic": {"every": 24}, "full": {}}
each_way = pytest.mark.parametrize("strategy", WAYS)


UNCHANGED = set()  # models that no test changes


@functools.cache
def model(mix="every kind", dtype=torch.float64):
    net = small_model(MIXES[mix], dtype=dtype).requires_grad_(False)
    UNCHANGED.add(net)
    return net


def opened(folder, net, strategy="zero", **options):
    """A store; "periodic" stores a window every two blocks."""
    if strategy == "periodic":
        options = {"every": 2 * prefix_store.block_tokens(net.config)} | options
    return PrefixStore(folder, net, strategy, **options)


def text(n_tokens, seed=0):
    return token_ids(1, n_tokens, seed=seed)


def cold(net, ids_BT, precision="model"):
    """Logits and cache of a run without a store."""
    cache = net.new_cache(precision=precision)
    return net.prefill(ids_BT, cache), cache


class Run(NamedTuple):
    """What a run without a store gives: logits, the cache, and logits of two more tokens."""

    logits: torch.Tensor
    n_tokens: int
    contents: list[torch.Tensor]
    after: torch.Tensor


def right_run(net, ids_BT, precision="model"):
    """A run without a store; of a model that no test changes it is computed once."""
    run = known_run if net in UNCHANGED else known_run.__wrapped__
    return run(net, tuple(ids_BT[0].tolist()), precision)


@functools.cache
def known_run(net, ids, precision):
    logits, cache = cold(net, torch.tensor([ids]), precision)
    contents = [series.contents().clone() for series in cache.series()]
    return Run(logits, cache.n_tokens, contents, net(text(2, seed=9), cache))


def stored(store, ids_BT):
    """Logits and cache of a run with one."""
    cache = store.model.new_cache(precision=store.precision)
    return store.prefill(ids_BT, cache), cache


def differences(cache, right):
    """How far off each series of a cache is that remembers anything."""
    assert cache.n_tokens == right.n_tokens
    pairs = [(series.contents(), expected) for series, expected in zip(cache.series(), right.contents, strict=True)]
    assert all(one.shape == other.shape for one, other in pairs)
    return [off(one, other) for one, other in pairs if other.numel()]


def assert_same_caches(cache, right):
    assert max(differences(cache, right)) < EXACT


def assert_a_cold_run(store, ids_BT):
    """Same logits, same cache, and a next token that reads it gets the same logits."""
    right = right_run(store.model, ids_BT, store.precision)
    logits, cache = stored(store, ids_BT)
    assert off(logits, right.logits) < EXACT
    assert_same_caches(cache, right)
    assert off(store.model(text(2, seed=9), cache), right.after) < EXACT


def assert_no_holes(store):
    """The file that each one follows is there, but for first blocks."""
    names = store.files.found()
    first = {name for name in names if name.endswith("entries") and store._root in name}
    assert set(followed_file(names)) == set(names) - first


# ---- a hit is a cold run ----


@pytest.mark.slow
@each_way
@pytest.mark.parametrize("mix", MIXES)
def test_a_hit_at_any_length_is_a_cold_run(mix, strategy, tmp_path):
    net = model(mix)
    store = opened(tmp_path, net, strategy)
    n_stored = 3 * store.block + cone_tokens(net.config)
    whole = text(n_stored)
    assert_a_cold_run(store, whole)
    lengths = range(1, n_stored + 1, 1 if mix == "CSA" else 7)  # every length once, and all borders
    borders = {n + near for n in range(0, n_stored, store.block) for near in (-1, 0, 1)}
    for n in sorted(borders.union(lengths).intersection(range(1, n_stored))):
        other = (whole[:, n : n + n % 3] + 1) % TINY.vocab_size  # 0 to 2 tokens that do not go on as the stored text
        ids_BT, found = torch.cat([whole[:, :n], other], dim=1), store.counts.found
        logits, cache = stored(store, ids_BT)
        right = right_run(net, ids_BT)
        assert store.counts.found == found + n // store.block * store.block
        assert off(logits, right.logits) < EXACT
        assert_same_caches(cache, right)


@pytest.mark.parametrize("mix", MIXES)
def test_one_token_less_than_the_cone_is_not_enough_and_more_is_no_better(mix, tmp_path):
    net = model(mix)
    store = opened(tmp_path, net)
    n = -(-(store.cone + 8) // store.block) * store.block
    right = right_run(net, text(n))
    stored(store, text(n))
    for extra, exact in ((-1, False), (0, True), (5, True)):
        store.cone = cone_tokens(net.config) + extra
        logits, cache = stored(store, text(n))
        assert (max(differences(cache, right)) < EXACT) is exact
        expected = right.logits
        if mix == "CSA over a short window":  # the overlap asks for more tokens than the window: later entries read it
            logits, expected = net(text(4, seed=1), cache), net(text(4, seed=1), cold(net, text(n))[1])
        assert (off(logits, expected) < EXACT) is exact, (extra, off(logits, expected))


def test_the_cone_is_that_of_the_released_models():
    assert cone_tokens(v4.Config.flash()) == 128 + 42 * 127 and cone_tokens(v4.Config.pro()) == 128 + 60 * 127
    assert overlap_tokens(v4.Config.flash()) == 4 and overlap_tokens(MIXES["HCA"]) == 1
    assert prefix_store.block_tokens(v4.Config.flash()) == 128


@pytest.mark.slow
@pytest.mark.parametrize("table", [v4.PLAIN, v4.FAST, v4.COMPILED], ids=["plain", "fast", "compiled"])
def test_what_one_table_of_operations_stored_serves_all(table, tmp_path):
    stored(opened(tmp_path, model()), text(60))
    net = small_model(EVERY_KIND).requires_grad_(False).use(table)
    store = opened(tmp_path, net)
    assert_a_cold_run(store, text(60))
    assert store.counts.found == 60


@each_way
def test_a_packed_cache_is_stored_in_its_bytes(strategy, tmp_path):
    store = opened(tmp_path, model(), strategy, precision="released")
    assert_a_cold_run(store, text(60))
    assert_a_cold_run(store, torch.cat([text(50), text(4, seed=1)], dim=1))
    assert store.counts.found == 48
    config, every = model().config, {"full": 1, "periodic": 24, "zero": None}[strategy]
    assert store.report() == memory.stored_prefix(config, 60, every, memory.PRODUCTION)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types_are_stored_in_their_bytes(dtype, tmp_path):
    store = opened(tmp_path, model("CSA", dtype), "full")
    right, right_cache = cold(store.model, text(60))
    stored(store, text(60))
    logits, cache = stored(store, text(60))
    tolerance = 1e-5 if dtype == torch.float32 else 0.1  # rounding: a chunk of another length sums in another order
    assert store.counts.found == 60 and off(logits, right) < tolerance
    for ours, other in zip(cache.layers, right_cache.layers):
        assert torch.equal(ours.main.entries.contents(), other.main.entries.contents())  # what was stored, bit for bit


@pytest.mark.slow
@each_way
def test_a_long_prompt_is_stored_chunk_by_chunk(strategy, tmp_path, monkeypatch):
    monkeypatch.setattr(prefix_store, "PREFILL_CHUNK", 31)  # whole blocks of 12 below it
    store = opened(tmp_path, model(), strategy)
    for n in (31, 80, 85):
        assert_a_cold_run(store, text(n))
        assert_a_cold_run(store, text(n))
    every = {"full": 1, "periodic": 24, "zero": None}[strategy]
    assert store.report() == memory.stored_prefix(EVERY_KIND, 85, every, memory.Precision("fp64", "fp64"))


@each_way
def test_what_is_computed_again_is_what_the_strategy_says(strategy, tmp_path):
    store = opened(tmp_path, model(), strategy)
    stored(store, text(120))
    for n in range(12, 121, 12):
        before = store.counts.again
        stored(store, text(n))
        periodic = n % 24 + 3 if n >= 24 else 12
        assert store.counts.again - before == {"full": 3, "periodic": periodic, "zero": min(n, 25)}[strategy]
    assert store.counts.new == 120


@pytest.mark.slow
@pytest.mark.parametrize("written", WAYS)
@each_way
def test_what_any_strategy_stored_serves_all(written, strategy, tmp_path):
    stored(opened(tmp_path, model(), written), text(60))
    store = opened(tmp_path, model(), strategy)
    for n in (49, 60):
        assert_a_cold_run(store, text(n))
    assert_a_cold_run(store, torch.cat([text(60), text(30, seed=1)], dim=1))
    assert_a_cold_run(store, torch.cat([text(60), text(30, seed=1)], dim=1))


def test_the_longest_prefix_leaves_a_token_to_run(tmp_path):
    store = opened(tmp_path, model(), "full")
    assert store.longest(text(60)[0].tolist())[1] == 0
    stored(store, text(60))
    for n, held in ((1, 0), (12, 0), (13, 12), (48, 36), (59, 48), (60, 48), (61, 60)):
        ids = torch.cat([text(60), text(9, seed=1)], dim=1)[:, :n]
        cache, n_held = store.longest(ids[0])
        assert n_held == cache.n_tokens == held
        assert off(model().prefill(ids[:, held:], cache), cold(model(), ids)[0]) < EXACT


def test_a_cache_that_went_on_can_be_kept(tmp_path):
    store = opened(tmp_path, model(), "periodic")
    logits, cache = stored(store, text(20))
    for token in text(60)[0, 20:]:
        model()(token[None, None], cache)
    store.keep(text(60)[0, :50], cache)
    assert store.longest(text(60)[0])[1] == 48
    store.keep(text(60)[0], cache)
    assert_a_cold_run(store, text(60))
    assert store.counts.found == 48 + 60
    assert_no_holes(store)


def test_a_hit_in_inference_mode_goes_on_outside(tmp_path):
    store = opened(tmp_path, model(), "full")
    with torch.inference_mode():
        stored(store, text(40))
        _, cache = stored(store, text(40))
    whole = torch.cat([text(40), text(9, seed=1)], dim=1)
    assert off(model()(text(9, seed=1), cache), model()(whole)[:, 40:]) < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
def test_generation_writes_the_same_with_stored_prefixes(fused, tmp_path):
    store, net = opened(tmp_path, model()), model()
    prompts = [text(50)[0], torch.cat([text(40)[0], text(5, seed=1)[0]])]
    options = dict(n_tokens=8, seed=3, fused=fused)
    for prompt in prompts:
        assert v4.generate(net, prompt, prefixes=store, **options) == v4.generate(net, prompt, **options)
    assert store.counts.found == 36
    assert v4.generate(net, prompts, prefixes=store, **options) == [v4.generate(net, p, **options) for p in prompts]
    packed = PrefixStore(tmp_path, net, precision="released")
    for wrong, sentence in (
        (dict(prefixes=tmp_path), "is a PosixPath; give a PrefixStore"),
        (dict(prefixes=opened(tmp_path, model("CSA"))), "a store of another model"),
        (
            dict(prefixes=store, speculate=True),
            "speculate = True reads the streams.*leave it or prefixes out",
        ),
        (dict(prefixes=packed), "precision = 'model', and the store's is 'released'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            v4.generate(net, prompts[0], 2, **wrong)


# ---- no text reaches another ----


def pairs(n_pairs, seed=0):
    """Two random texts with a random common prefix, which ends anywhere."""
    draw = random.Random(seed)
    for number in range(n_pairs):
        shared, rest = draw.randrange(0, 60), draw.randrange(1, 40)
        first = text(shared + draw.randrange(1, 40), seed=2 * number)
        second = torch.cat([first[:, :shared], text(rest, seed=2 * number + 1)], dim=1)
        yield draw.choice([*WAYS]), first, second


@pytest.mark.slow
def test_random_pairs_of_texts_do_not_influence_each_other(tmp_path):
    net = model("HCA first")
    for number, (strategy, first, second) in enumerate(pairs(int(os.environ.get("PREFIX_PAIRS", 40)))):
        store = opened(tmp_path / str(number), net, strategy)
        stored(store, first)
        logits, cache = stored(store, second)
        right = right_run(net, second)
        assert off(logits, right.logits) < EXACT
        assert_same_caches(cache, right)


def test_the_same_block_after_another_beginning_is_another_block(tmp_path):
    store, block = opened(tmp_path, model()), [text(12, seed=seed) for seed in range(4)]
    for seeds in ((0, 2, 3), (1, 2)):
        stored(store, torch.cat([block[seed] for seed in seeds], dim=1))
    ids_BT = torch.cat([block[1], block[2], block[3]], dim=1)
    assert_a_cold_run(store, ids_BT)
    assert store.counts.found == 24


def test_nothing_is_found_by_another_model_config_type_precision_tag_or_format(tmp_path, monkeypatch):
    stored(opened(tmp_path, model()), text(40))

    def found(net=None, **options):
        return opened(tmp_path, net or model(), **options).longest(text(40)[0])[1]

    assert found() == 36
    assert found(small_model(EVERY_KIND, seed=1)) == found(model(dtype=torch.float32)) == 0
    other = v4.Model(EVERY_KIND.replace(rope_theta=20000.0)).double()
    other.load_state_dict(model().state_dict())
    assert found(other) == 0
    assert found(precision="released") == found(tag="other") == 0
    monkeypatch.setattr(prefix_identity, "FORMAT", 2)
    assert found() == 0


def test_a_model_that_learns_on_finds_nothing_of_what_it_was(tmp_path):
    net = small_model(MIXES["CSA"])
    store = opened(tmp_path, net)
    with torch.no_grad():
        stored(store, text(40))
        assert store.longest(text(40)[0])[1] == 39
        net.layers[1].attn.wkv.weight.mul_(1.5)
        assert store.longest(text(40)[0])[1] == 0
        assert_a_cold_run(store, text(40))
        net.layers[0].attn.wkv.weight = torch.nn.Parameter(2 * net.layers[0].attn.wkv.weight)
        assert store.longest(text(40)[0])[1] == 0
        assert_a_cold_run(store, text(40))


def triple_data(net):
    net.embed.weight.data.mul_(3)


def triple_memory(net):
    net.embed.weight.detach().numpy()[:] *= 3


def exchange_rows(net):
    """The sum of all bits stays as it is."""
    net.embed.weight.data.copy_(net.embed.weight.data.flip(0))


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("change", [triple_data, triple_memory, exchange_rows])
def test_a_change_that_torch_does_not_count_is_seen(change, inference, tmp_path):
    with torch.inference_mode(inference):
        net = small_model(MIXES["CSA"])
        store = opened(tmp_path, net)
        stored(store, text(40))
        change(net)
        assert store.longest(text(40)[0])[1] == 0
        assert_a_cold_run(store, text(40))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero", "full"])
@pytest.mark.parametrize("to", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_that_changes_its_type_finds_what_the_new_type_stored(to, strategy, tmp_path):
    net = small_model(MIXES["CSA"], dtype=torch.float32).requires_grad_(False)
    store = opened(tmp_path, net, strategy)
    for dtype in (torch.float16, to):
        net.to(dtype)
        stored(store, text(40))
        found = store.counts.found
        logits, cache = stored(store, text(40))
        right, right_cache = stored(opened(tmp_path, net, strategy), text(40))
        assert store.counts.found == found + 39
        assert torch.equal(logits, right)  # a store that is opened now reads the same
        for ours, other in zip(cache.series(), right_cache.series()):
            assert torch.equal(ours.contents(), other.contents())


# ---- bytes ----


@pytest.mark.slow
@each_way
@pytest.mark.parametrize("mix", MIXES)
def test_bytes_are_those_of_the_formula(mix, strategy, tmp_path):
    net = model(mix)
    store = opened(tmp_path, net, strategy)
    every = {"full": 1, "periodic": 2 * store.block, "zero": None}[strategy]
    for n in (store.block - 1, store.block, 5 * store.block + 1):
        stored(store, text(n))
        assert store.report() == memory.stored_prefix(net.config, n, every, memory.Precision("fp64", "fp64"))
    assert sum(store.report().values()) == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_the_formula_gives_the_numbers_of_the_report_for_the_released_models():
    for config, state, per_token, ratio in (
        (v4.Config.pro(), 4.56e6, 5031, 7.08),
        (v4.Config.flash(), 3.21e6, 3514, 7.15),
    ):
        full, periodic = (memory.stored_prefix(config, 1 << 16, every) for every in (1, 1 << 13))
        assert periodic["state"] / 8 == pytest.approx(state, rel=2e-3)
        assert full["entries"] / 2**16 == pytest.approx(per_token, rel=1e-4)
        assert full["window"] / full["entries"] == pytest.approx(ratio, rel=2e-3)


@pytest.mark.slow
@each_way
def test_the_limit_holds_and_what_was_not_used_for_longest_goes_first(strategy, tmp_path):
    one = opened(tmp_path / "one", model(), strategy)
    stored(one, text(60))
    size = sum(one.report().values())
    store = opened(tmp_path / "many", model(), strategy, limit=2.5 * size)
    for seed in (1, 2, 1, 3):
        stored(store, text(60, seed))
        assert sum(store.report().values()) <= 2.5 * size
        assert_no_holes(store)
    assert [store.longest(text(61, seed)[0])[1] for seed in (1, 3)] == [60, 60]  # 1 was used after 2
    assert store.longest(text(60, 2)[0])[1] < 60
    for seed in (1, 2, 3):
        assert_a_cold_run(store, text(60, seed))


def test_a_shared_beginning_outlives_the_texts_that_share_it(tmp_path):
    store = opened(tmp_path, model(), limit=60_000)
    start = text(36)
    for seed in range(1, 12):
        stored(store, torch.cat([start, text(40, seed)], dim=1))
    assert store.counts.found == 36 * 10
    assert_no_holes(store)


def test_a_limit_below_one_file_stores_nothing_and_serves_all_the_same(tmp_path):
    store = opened(tmp_path, model(), "full", limit=100)
    assert_a_cold_run(store, text(40))
    assert_a_cold_run(store, text(40))
    assert store.counts.found == 0 and not store.files.found()


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    names = ["notes.txt", f"{'0' * 64}.entries", f"{'0' * 64}-{'g' * 64}.entries"]
    for name in names:
        (tmp_path / name).write_bytes(bytes(1000))
    store = opened(tmp_path, model(), limit=1)
    stored(store, text(40))
    assert {path.name for path in tmp_path.iterdir()} == set(names)


# ---- damage ----


def flip(path, draw):
    """Another bit in a file."""
    data = bytearray(path.read_bytes())
    place = draw.randrange(8 * len(data))
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)
    return bytes(data)


def files_read(store, ids_BT, monkeypatch):
    """The names of the files that a hit reads."""
    right, names = prefix_files.PrefixFiles.read, []

    def read(folder, name):
        content = right(folder, name)
        names.extend([name] if content is not None else [])
        return content

    monkeypatch.setattr(prefix_files.PrefixFiles, "read", read)
    stored(store, ids_BT)
    monkeypatch.undo()
    return names


@pytest.mark.slow
@each_way
def test_every_flipped_bit_is_noticed_and_its_answer_is_computed_again(strategy, tmp_path, monkeypatch):
    draw, net = random.Random(3), model("HCA first")
    store = opened(tmp_path, net, strategy)
    whole = text(11 * store.block)  # one block more than the last window of "periodic"
    right = right_run(net, whole)
    stored(store, whole)
    kept = {path: path.read_bytes() for path in tmp_path.iterdir()}
    read = files_read(store, whole, monkeypatch)
    assert len(read) == 11 + {"zero": 0, "periodic": 1, "full": 2}[strategy]
    for _ in range(int(os.environ.get("PREFIX_FLIPS", 20))):
        path = tmp_path / draw.choice(read)
        damaged = flip(path, draw)
        logits, cache = stored(store, whole)
        assert off(logits, right.logits) < EXACT
        assert_same_caches(cache, right)
        assert not path.exists() or path.read_bytes() != damaged  # removed; entries are written again
        for each, data in kept.items():
            each.write_bytes(data)


@pytest.mark.parametrize("keep", [0, 1, 31, 32, 33, -1])
def test_a_file_cut_short_is_a_miss(keep, tmp_path):
    store = opened(tmp_path, model())
    stored(store, text(40))
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:keep])
    assert store.longest(text(40)[0])[1] == 0
    assert len(store.files.found()) == 2  # the first is removed, the others are never reached
    assert_a_cold_run(store, text(40))


def test_a_file_under_the_name_of_another_is_a_miss(tmp_path):
    store = opened(tmp_path, model())
    stored(store, text(40))
    first, second, *_ = store.chain(text(40)[0])
    (tmp_path / second.file("entries")).write_bytes((tmp_path / first.file("entries")).read_bytes())
    assert store.longest(text(40)[0])[1] == 12
    assert_a_cold_run(store, text(40))


@pytest.mark.slow
@each_way
def test_a_file_that_goes_while_a_hit_is_read_is_a_miss(strategy, tmp_path, monkeypatch):
    """Whichever file of a hit an other process evicts first."""
    right = prefix_files.PrefixFiles.read
    for gone in itertools.count():
        store = opened(tmp_path / str(gone), model(), strategy)
        stored(store, text(60))
        count = itertools.count()

        def read(files, name, count=count, gone=gone):
            if next(count) == gone:
                (files.folder / name).unlink(missing_ok=True)
            return right(files, name)

        monkeypatch.setattr(prefix_files.PrefixFiles, "read", read)
        assert_a_cold_run(store, text(60))
        monkeypatch.undo()
        if next(count) <= gone:
            break
    assert gone >= 5


def test_a_folder_that_was_removed_is_reported_as_empty(tmp_path):
    store = opened(tmp_path / "gone", model("CSA"))
    (tmp_path / "gone").rmdir()
    assert set(store.report().values()) == {0}


# ---- a full disk ----


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_takes_nothing_is_told_once_and_serving_goes_on(number, tmp_path, monkeypatch):
    store = opened(tmp_path, model())
    stored(store, text(30))

    def fail(*_arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.warns(
        RuntimeWarning, match=f"{tmp_path} takes in nothing more .{os.strerror(number)}.*Make room"
    ) as told:
        assert_a_cold_run(store, text(70))
        assert_a_cold_run(store, text(70, seed=1))
    assert len(told) == 1
    monkeypatch.undo()
    assert_a_cold_run(store, text(70))
    assert store.counts.found == 24 + 24 and len(store.files.found()) == 5
    assert_no_holes(store)


@each_way
@pytest.mark.parametrize("n_files", range(4))
def test_a_disk_that_fills_up_in_the_middle_leaves_no_hole(n_files, strategy, tmp_path, monkeypatch):
    store, right, count = opened(tmp_path, model(), strategy), os.replace, itertools.count()

    def replace(source, target):
        if next(count) >= n_files:
            raise OSError(errno.ENOSPC, "full")
        right(source, target)

    monkeypatch.setattr(files.os, "replace", replace)
    with pytest.warns(RuntimeWarning, match="full"):
        stored(store, text(60))
    assert len(store.files.found()) == n_files
    assert_no_holes(store)


def test_a_file_that_is_too_large_for_the_disk_is_never_half_there(tmp_path):
    """The system itself refuses: no file may be longer than half of one."""
    store = opened(tmp_path, model())
    stored(store, text(12))
    (first,) = store.files.found().values()
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (first.n_bytes // 2, before[1]))
        with pytest.warns(RuntimeWarning, match="File too large"):
            assert_a_cold_run(store, text(60))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert len([*tmp_path.iterdir()]) == 1
    assert_a_cold_run(store, text(60))
    assert len([*tmp_path.iterdir()]) == 5


def test_a_folder_that_another_writer_holds_is_told_and_read(tmp_path, monkeypatch):
    monkeypatch.setattr(prefix_files, "PATIENCE", 0.02)
    store = opened(tmp_path, model())
    stored(store, text(30))
    with files.locked(tmp_path), pytest.warns(RuntimeWarning, match="takes in nothing more"):
        assert_a_cold_run(store, text(60))
    assert store.counts.found == 24


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    left = tmp_path / f"{files.SCRATCH}left"
    left.mkdir()
    (left / "half").write_bytes(bytes(10))
    store = opened(tmp_path, model())
    store.longest(text(30)[0])
    assert left.exists()
    stored(store, text(30))
    assert not left.exists()


# ---- what is refused ----


def test_what_cannot_be_is_refused_with_a_sentence(tmp_path):
    net = model("CSA")
    for options, sentence in (
        (dict(strategy="all"), "strategy = 'all' is not known; it is one of full, periodic, zero"),
        (dict(strategy="periodic"), "every = None cannot be; windows are stored every 3 tokens or a multiple"),
        (dict(strategy="periodic", every=4), "every = 4 cannot be"),
        (dict(strategy="periodic", every=True), "every = True cannot be"),
        (dict(every=3), "every = 3 goes with strategy='periodic'; leave it out"),
        (dict(limit="much"), "limit = 'much' is no amount"),
        (dict(precision="low"), "precision = 'low' is not known"),
        (dict(tag=3), "tag = 3 is no text"),
    ):
        with pytest.raises(ValueError, match=sentence):
            PrefixStore(tmp_path, net, **options)
    with pytest.raises(ValueError, match="names no file or folder"):
        PrefixStore("", net)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be made .*; give another"):
        PrefixStore(tmp_path / "file", net)
    with pytest.raises(ValueError, match="^PrefixStore: model = 3"):
        PrefixStore(tmp_path, 3)


def test_a_model_with_operations_of_its_own_needs_a_tag(tmp_path):
    from minidsv4.lowbit.activations import round_activations
    from minidsv4.lowbit.qat import fp4_index_ops

    net = small_model(MIXES["CSA"]).requires_grad_(False)
    store = PrefixStore(tmp_path, net)
    net.use(fp4_index_ops(v4.FAST))
    with pytest.raises(ValueError, match="operations or hooks of its own.*give a tag"):
        store.longest(text(40)[0])
    assert_a_cold_run(PrefixStore(tmp_path, net, tag="fp4 index"), text(40))
    net.use(v4.FAST)
    with round_activations(net), pytest.raises(ValueError, match="give a tag"):
        PrefixStore(tmp_path, net)
    assert_a_cold_run(PrefixStore(tmp_path, net), text(40))


def test_caches_that_do_not_fit_are_refused(tmp_path):
    store, net = opened(tmp_path, model()), model()
    _, begun = cold(net, text(5))
    for call, sentence in (
        (lambda: store.prefill(text(5), begun), "cache: holds 5 tokens; a text is read from its beginning"),
        (
            lambda: store.prefill(text(5), net.new_cache(precision="released")),
            "precision = 'released', and the store's",
        ),
        (lambda: store.prefill(text(5), net.new_cache(2)), "made for batch_size = 2, not 1"),
        (lambda: store.prefill(token_ids(2, 5), net.new_cache(2)), "2 texts; a store takes one at a time"),
        (lambda: store.prefill(text(5), model("CSA").new_cache()), "another config"),
        (lambda: store.keep(text(6)[0], begun), "ids: 6 tokens, of which the cache holds 5"),
        (lambda: store.keep([], begun), r"^keep: ids of shape \(0,\) are no prompt"),
        (lambda: store.longest("text"), "^longest: ids = 'text' is text"),
        (lambda: store.keep(text(5)[0], None), "cache = None holds no text"),
        (lambda: store.longest([99]), "99 is no token id"),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()


def test_a_failing_prompt_leaves_the_cache_empty_and_what_was_finished_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(prefix_store, "PREFILL_CHUNK", 24)
    store, cache = opened(tmp_path, model()), model().new_cache()
    right = v4.Model.prefill

    def fail(net, ids_BT, working):
        if working.n_tokens == 48:
            raise KeyboardInterrupt
        return right(net, ids_BT, working)

    monkeypatch.setattr(v4.Model, "prefill", fail)
    with pytest.raises(KeyboardInterrupt):
        store.prefill(text(80), cache)
    monkeypatch.undo()
    assert cache.n_tokens == 0 and cache.n_bytes() == 0
    assert store.longest(text(80)[0])[1] == 48
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_a_cold_run(store, text(80))
