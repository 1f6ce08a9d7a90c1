"""Any call of a model with ids, a cache, a snapshot and document starts gives its numbers, or a `ValueError`.

Kind: what stands in any argument. A refusal is a sentence that names the argument, and leaves the cache as it was.
"""

import copy
import functools
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import EXACT, TINY, off, small_model, token_ids

import minidsv4 as v4

FUZZ = settings(max_examples=200, derandomize=True, deadline=None)
SENTENCE = re.compile(r"^(ids|cache|last|prefill: chunk|document_BT|loss)\b.+[;,] \w+", re.DOTALL)
NEXT = token_ids(2, 5, seed=1)  # what every call takes in, unless something strange stands there
STRANGE = [
    *(None, True, False, "", "text", b"bytes", object(), int, len, ..., 1j, -1, 0, 1, 3, 2.5, float("nan"), 1 << 70),
    *([], (), {}, set(), [[1, 2]], [None], range(3), iter([1]), np.array([[1, 2]]), np.int64(2), np.array(2)),
    *(torch.tensor(3), torch.tensor([1, 2]), torch.zeros(2, 0).long(), torch.zeros(0, 3).long(), torch.zeros(2, 3)),
    *(torch.zeros(2, 3, 1).long(), torch.ones(2, 3) > 0, torch.zeros(2, 3).to(torch.int16), torch.zeros(2, 3) * 1j),
    *(torch.zeros(2, 3).int(), torch.zeros(3, 2).long(), torch.full((2, 3), 61), torch.full((2, 3), -1)),
    *(torch.full((2, 3), 1 << 62), torch.zeros(2, 3).long().to_sparse(), torch.empty(2, 3).long().to("meta")),
    *(torch.zeros(2, 5).long(), torch.arange(5).repeat(2, 1), torch.full((2, 5), 9), torch.arange(5).flip(0)[None]),
    *(torch.nn.Linear(1, 1), TINY, v4.LayerKind.CSA, list(v4.LayerKind), ["CSA"], [v4.LayerKind.CSA, 3]),
]


@functools.cache
def model():
    return small_model().requires_grad_(False)


@functools.cache
def other_model():
    return small_model(TINY.replace(index_topk=5)).requires_grad_(False)


def filled(cache, n_tokens=13):
    """The cache after a prompt, which every case starts with."""
    model()(token_ids(2, n_tokens), cache)
    return cache


CACHES = {
    "none": lambda: None,
    "empty": lambda: model().new_cache(2),
    "filled": lambda: filled(model().new_cache(2)),
    "copied": lambda: copy.deepcopy(filled(model().new_cache(2))),
    "another batch": lambda: model().new_cache(3),
    "of drafts": lambda: model().new_draft_cache(2),
    "of other kinds": lambda: model().new_cache(2, [v4.LayerKind.CSA] * 4),
    "of another config": lambda: other_model().new_cache(2),
    "of another dtype": lambda: v4.model.cache.Cache(TINY, 2, torch.float32, torch.device("cpu")),
}


def snapshots(cache):
    """Snapshots that are there to be restored: one's own, a void one, another's, a copy."""
    early = cache.snapshot()
    late = cache.snapshot()
    cache.restore(early)
    return {"own": early, "void": late, "another's": CACHES["filled"]().snapshot(), "copied": copy.deepcopy(early)}


CALLS = {
    "forward": lambda ids, cache, last, **_: model()(ids, cache, last),
    "prefill": lambda ids, cache, chunk, **_: model().prefill(ids, cache, chunk),
    "loss": lambda ids, document, mtp_weight, **_: model().loss(ids, document, mtp_weight).total,
    "streams": lambda ids, cache, document, **_: model().streams(ids, cache, document),
    "new_cache": lambda batch_size, kinds, **_: model().new_cache(batch_size, kinds),
    "restore": lambda cache, snapshot, **_: cache.restore(snapshot),
}
USUAL = {
    "ids": [NEXT],
    "last": [None, 1, 2, 9],
    "chunk": [1, 2, 7],
    "document": [None, torch.zeros(2, 5).long(), torch.tensor([[0, 0, 2, 3, 4]]).repeat(2, 1)],
    "mtp_weight": [0, 0.3, 2],
    "batch_size": [1, 2],
    "kinds": [None, [v4.LayerKind.CSA]],
}
ARGUMENTS = {
    "forward": ("ids", "last"),
    "prefill": ("ids", "chunk"),
    "loss": ("ids", "document", "mtp_weight"),
    "streams": ("ids", "document"),
    "new_cache": ("batch_size", "kinds"),
    "restore": (),
}


def state(cache):
    """What a cache holds, copied."""
    return None if cache is None else (cache.n_tokens, [series.contents().clone() for series in cache.series()])


def same(one, other):
    return one is other is None or (one[0] == other[0] and all(torch.equal(*pair) for pair in zip(one[1], other[1])))


@pytest.mark.slow
@FUZZ
@given(st.data())
def test_any_call_of_a_model_gives_its_numbers_or_ends_in_a_sentence(data):
    name = data.draw(st.sampled_from(sorted(CALLS)))
    cache = CACHES[data.draw(st.sampled_from(sorted(CACHES)))]()
    arguments = {key: data.draw(st.sampled_from(USUAL[key])) for key in ARGUMENTS[name]}
    for key in data.draw(st.sampled_from([(), *((key,) for key in ARGUMENTS[name])])):
        arguments[key] = STRANGE[data.draw(st.integers(0, len(STRANGE) - 1))]
    if name == "restore":
        cache = cache or CACHES["filled"]()
        given = snapshots(cache) | {f"strange {n}": thing for n, thing in enumerate(STRANGE)}
        arguments["snapshot"] = given[data.draw(st.sampled_from(sorted(given)))]
    ids = arguments.setdefault("ids", NEXT)
    before = state(cache)
    try:
        found = CALLS[name](cache=cache, **arguments)
    except ValueError as error:
        assert SENTENCE.match(str(error)), str(error)
        assert same(state(cache), before)
        return
    check(name, arguments, ids, cache, before, found)


def check(name, arguments, ids, cache, before, found):
    """What was done is what was asked for."""
    if name in ("forward", "prefill"):
        n_before = before[0] if before else 0
        whole = model()(torch.cat([token_ids(2, 13)[:, :n_before], ids], dim=1)) if n_before else model()(ids)
        wanted = whole[:, -1] if name == "prefill" else whole[:, n_before:][:, -(arguments["last"] or 10**6) :]
        assert found.is_meta or off(found, wanted) < EXACT
        assert cache is None or cache.n_tokens == n_before + ids.shape[1]
    elif name == "new_cache":
        assert found.batch_size == arguments["batch_size"] and found.n_tokens == 0
    elif name == "restore":
        assert same(state(cache), before)
    else:
        assert found.is_meta or found.isfinite().all()


@pytest.mark.parametrize("refusal", ["shape '[1]' is invalid", "'CSA' is not a valid LayerKind", "cache: no", "ids"])
def test_words_of_others_are_no_sentence(refusal):
    assert not SENTENCE.match(refusal)
