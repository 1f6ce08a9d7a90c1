"""The compiled pass: a token's logits are the same bits alone, in any batch, at any place, and however prompts are cut.

The model is in float32, where every other order of a sum shows; float64 where it is compared with the model's own pass.
"""

import hashlib
import os
import random
import subprocess
import sys

import pytest
import torch
from small import EXACT, TINY, off, small_model, token_ids

import minidsv4 as v4
from minidsv4.fast.compiled import step as step_module
from minidsv4.fast.compiled.step import FusedPass

N_BATCHES = int(os.environ.get("MINIDSV4_BATCHES", "12"))  # of random ones; 200 were run by hand
BORDERS = [1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 23, 24, 25, 35, 36, 37, 60]  # windows and entries of `tiny` end there


@pytest.fixture(scope="module")
def model():
    return small_model(dtype=torch.float32)


@pytest.fixture(scope="module")
def compiled(model):
    return FusedPass(model)


def remembered(cache):
    """Everything in a cache, as one flat tensor."""
    return torch.cat([series.contents().flatten() for layer in cache.layers for series in layer.series()])


def texts(chance, most=6):
    """A few prompts of unequal length."""
    n_texts = chance.randint(1, most)
    return [token_ids(1, chance.choice(BORDERS), seed=chance.randrange(10**6))[0] for _ in range(n_texts)]


def fed(forward_each, ids, caches, chance):
    """All logits of each text, which is cut anywhere; each pass takes some of the texts in some order."""
    found = [[] for _ in ids]
    while left := [b for b, ids_T in enumerate(ids) if caches[b].n_tokens < len(ids_T)]:
        chosen = chance.sample(left, chance.randint(1, len(left)))
        parts = [ids[b][caches[b].n_tokens :][: chance.choice([1, 1, 2, 3, 5, 9, 60])] for b in chosen]
        logits = forward_each(parts, [caches[b] for b in chosen], last=60)
        for b, logits_TV in zip(chosen, logits):
            found[b].append(logits_TV)
    return [torch.cat(parts) for parts in found]


def same_bits_in_any_batch(model, forward_each, seed):
    """Assert that texts read side by side in pieces get the bits, and leave the cache, that each has alone at once."""
    chance = random.Random(seed)
    ids = texts(chance)
    caches = [model.new_cache() for _ in ids]
    together = fed(forward_each, ids, caches, chance)
    for ids_T, logits_TV, cache in zip(ids, together, caches):
        alone = model.new_cache()
        assert torch.equal(forward_each([ids_T], [alone], last=60)[0], logits_TV)
        assert torch.equal(remembered(alone), remembered(cache)) and alone.n_tokens == cache.n_tokens


# --- the same bits ---


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(N_BATCHES))
def test_a_token_has_the_same_bits_alone_and_in_any_batch_however_its_text_is_cut(model, compiled, seed, monkeypatch):
    monkeypatch.setattr(step_module, "TOKENS", random.Random(-seed).choice([1, 7, 30, 256]))
    same_bits_in_any_batch(model, compiled.forward_each, seed)


class SumsAsTheyCome(FusedPass):
    """Broken by hand: the head's product is torch's, whose order of a sum goes with the number of rows."""

    def logits(self, streams_TND):
        identity = torch.eye(self.head.shape[1], dtype=torch.float32).numpy()
        hidden_TD = self.rows.logits(streams_TND, self.site, self.norm, identity, self.sizes)
        return (torch.from_numpy(hidden_TD) @ torch.from_numpy(self.head).T).numpy()


def test_an_order_of_sums_that_goes_with_the_number_of_rows_is_seen(model):
    """Kind: the check can fail; a product of one row by torch is summed otherwise than one of several."""
    with pytest.raises(AssertionError):
        for seed in range(N_BATCHES):
            same_bits_in_any_batch(model, SumsAsTheyCome(model).forward_each, seed)


DIGEST = """
import sys
import torch
sys.path.insert(0, {tests!r})
from test_compiled_pass import digest
torch.set_num_threads({threads})
print(digest())
"""


def digest():
    """SHA-256 of the logits of a few texts read side by side."""
    model, chance = small_model(dtype=torch.float32), random.Random(0)
    ids = texts(chance)
    logits = fed(FusedPass(model).forward_each, ids, [model.new_cache() for _ in ids], chance)
    return hashlib.sha256(torch.cat(logits).numpy().tobytes()).hexdigest()


@pytest.mark.slow
def test_two_processes_with_one_thread_and_two_give_the_same_bits():
    found = [digest()]
    for threads in (1, 2):
        script = DIGEST.format(tests=os.path.dirname(__file__), threads=threads)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        run = [sys.executable, "-c", script]
        found.append(subprocess.run(run, capture_output=True, text=True, check=True, env=environment).stdout.strip())
    assert found[0] == found[1] == found[2] and len(found[0]) == 64


# --- the right bits ---


@pytest.mark.slow
def test_float64_logits_are_those_of_the_model():
    model = small_model()
    for seed in range(4):
        ids = texts(random.Random(seed))
        logits = FusedPass(model).forward_each(ids, [model.new_cache() for _ in ids], last=60)
        for ids_T, logits_TV in zip(ids, logits):
            assert off(logits_TV, model(ids_T[None])[0]) < EXACT


def test_float32_logits_are_as_near_to_float64_as_those_of_the_model(model, compiled):
    ids_T, wanted = token_ids(1, 60)[0], small_model()(token_ids(1, 60))[0]
    found = compiled.forward_each([ids_T], [model.new_cache()], last=60)[0].double()
    assert 0 < off(found, wanted) < 2 * off(model(ids_T[None])[0].double(), wanted) < 1e-4  # float32 rounds at 6e-8


@pytest.mark.parametrize("config", [TINY.replace(hc_mult=1), TINY.replace(index_head_dim=18, sliding_window=1)])
def test_other_sizes_are_computed_as_by_the_model(config):
    model, ids_T = small_model(config), token_ids(1, 60)[0]
    found = FusedPass(model).forward_each([ids_T, ids_T[:5]], [model.new_cache(), model.new_cache()], last=60)
    assert off(found[0], model(ids_T[None])[0]) < EXACT and torch.equal(found[0][:5], found[1])


def test_only_the_last_logits_are_given_and_they_are_the_same(model, compiled):
    ids = [token_ids(1, n, seed=n)[0] for n in (2, 9)]
    every = compiled.forward_each(ids, [model.new_cache() for _ in ids], last=60)
    some = compiled.forward_each(ids, [model.new_cache() for _ in ids], last=3)
    assert [len(logits_TV) for logits_TV in some] == [2, 3]
    assert all(torch.equal(a[-3:], b) for a, b in zip(every, some))


# --- writing ---


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1.0, "seed": 5}])
def test_invariant_texts_are_those_of_each_prompt_alone_and_those_of_the_model(model, sampling):
    prompts = [token_ids(1, n, seed=n)[0].tolist() for n in (1, 4, 13)]
    together = v4.generate(model, prompts, 20, invariant=True, **sampling)
    assert together == [v4.generate(model, prompt, 20, invariant=True, **sampling) for prompt in prompts]
    assert together == v4.generate(model, prompts, 20, **sampling)  # no two tokens are as near to each other as 1e-6


def test_an_engine_reads_a_prompt_to_the_same_bits_at_any_chunk(model):
    seen = []
    for chunk in (1, 7, 256):
        engine = v4.Engine(model, chunk=chunk, invariant=True)
        requests = [engine.add(token_ids(1, n, seed=n)[0], 2, temperature=0) for n in (12, 30)]
        forward, kept = engine.forward, {}

        def noting(ids, caches, last=1, forward=forward, kept=kept):
            logits = forward(ids, caches, last)
            kept.update({(cache.n_tokens, ids_T[-1].item()): x for ids_T, cache, x in zip(ids, caches, logits)})
            return logits

        engine.forward = noting
        engine.run()
        seen.append(kept)
        assert all(len(request.written) == 2 for request in requests)
    for place in seen[2]:
        assert torch.equal(seen[0][place], seen[2][place]) and torch.equal(seen[1][place], seen[2][place])
    assert len(seen[0]) > len(seen[1]) > len(seen[2])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"speculate": True}, "speculate = True verifies drafts in the model's own pass; invariant = True takes one"),
        ({"invariant": 1}, "invariant = 1 is no switch"),
        ({"cache_precision": "released"}, "precision = 'released' packs what it holds"),
    ],
)
def test_what_an_invariant_text_cannot_be_written_with_is_refused(model, options, said):
    with pytest.raises(ValueError, match=said):
        v4.generate(model, [1, 2], 2, **({"invariant": True} | options))


def test_a_model_that_the_loops_cannot_read_is_refused_in_the_name_of_the_option():
    with pytest.raises(ValueError, match="^invariant: embed.weight is torch.bfloat16; the loops know float32 or float"):
        v4.generate(small_model(dtype=torch.bfloat16), [1], 2, invariant=True)
    with pytest.raises(ValueError, match="^invariant: .*operations unknown to the loops"):
        v4.generate(small_model().use(v4.PLAIN._replace(sinkhorn=lambda x, *_: x.softmax(-1))), [1], 2, invariant=True)


def test_without_numba_an_invariant_text_says_what_to_install(monkeypatch, model):
    monkeypatch.setitem(sys.modules, "minidsv4.fast.compiled.row_loops", None)
    with pytest.raises(ValueError, match="^invariant: numba is not installed; `pip install 'minidsv4"):
        v4.generate(model, [1], 2, invariant=True)


# --- the caches ---


def test_the_pass_and_the_model_take_turns_in_a_cache():
    model = small_model()
    ids_T, cache, compiled = token_ids(1, 60)[0], model.new_cache(), FusedPass(model)
    found = [compiled.forward_each([ids_T[:17]], [cache], last=60)[0], model(ids_T[None, 17:30], cache=cache)[0]]
    found += compiled.forward_each([ids_T[30:]], [cache], last=60)
    plain = model.new_cache()
    assert off(torch.cat(found), model(ids_T[None], cache=plain)[0]) < EXACT
    assert off(remembered(cache), remembered(plain)) < EXACT and cache.report() == plain.report()


def test_if_a_pass_fails_all_caches_are_as_they_were(model, compiled, monkeypatch):
    ids = [token_ids(1, n, seed=n)[0] for n in (13, 35)]
    caches = [model.new_cache() for _ in ids]
    compiled.forward_each(ids, caches)
    before = [remembered(cache) for cache in caches]
    monkeypatch.setattr(step_module, "TOKENS", 4)  # the second pass fails, when the first has filled the caches
    calls, streams = [], FusedPass.streams

    def fails(self, parts):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return streams(self, parts)

    monkeypatch.setattr(FusedPass, "streams", fails)
    with pytest.raises(MemoryError):
        compiled.forward_each([ids_T[:3] for ids_T in ids], caches)
    assert len(calls) == 2 and [cache.n_tokens for cache in caches] == [13, 35]
    assert all(torch.equal(remembered(cache), old) for cache, old in zip(caches, before))


def test_what_cannot_be_run_is_refused_before_any_cache_is_touched(model, compiled):
    ids_T, cache = token_ids(1, 3)[0], model.new_cache()
    other = model.new_cache(precision="released")
    refused = [
        ([], [], "0 sequences and 0 caches"),
        ([ids_T], [cache, model.new_cache()], "1 sequences and 2 caches"),
        ([ids_T, ids_T], [cache, cache], "give each a cache of its own"),
        ([ids_T, ids_T], [cache, other], "precision = 'released' packs"),
        ([ids_T, ids_T[:0]], [cache, model.new_cache()], "token"),
        ([ids_T, ids_T + 61], [cache, model.new_cache()], "is no token id"),
        ([ids_T, ids_T], [cache, model.new_cache(2)], "batch_size = 2"),
    ]
    for ids, caches, said in refused:
        with pytest.raises(ValueError, match=said):
            compiled.forward_each(ids, caches)
    with pytest.raises(ValueError, match="last = 0"):
        compiled.forward_each([ids_T], [cache], last=0)
    assert cache.n_tokens == 0 and v4.Config.tiny() == TINY
