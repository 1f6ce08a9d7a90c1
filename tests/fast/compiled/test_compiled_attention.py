"""Compiled attention: any number of heads, float32 and threads; long dense entries go the way of FAST."""

import importlib

import pytest
import torch
from small import EXACT, normal, off, one_document

from minidsv4.ops import PLAIN

compiled = importlib.import_module("minidsv4.fast.compiled.attention")
B, T, WINDOW, K = 2, 37, 7, 20


def example(n_heads=3, n_entries=9, n_picked=None):
    """Arguments of `attend`: entries of 4 tokens after a past of 6 tokens, and picks."""
    sees = one_document(T, 6, window=WINDOW, ratio=4, n_entries=n_entries)
    if n_picked is not None:
        order_BTC = normal(B, T, n_entries, seed=4).argsort(-1)
        sees = sees._replace(picks_BTP=order_BTC[..., :n_picked].sort(-1).values)
    query_BTHK, window_BSK = normal(B, T, n_heads, K), normal(B, 6 + T, K, seed=1)
    return query_BTHK, window_BSK, normal(B, n_entries, K, seed=2), sees, normal(n_heads, seed=3)


@pytest.mark.parametrize("n_picked", [None, 5], ids=["all entries", "picked entries"])
@pytest.mark.parametrize("n_heads", [1, 4, 5, 9])
def test_any_number_of_heads_attends_as_the_page_says(n_heads, n_picked):
    given = example(n_heads, n_picked=n_picked)
    assert off(compiled.attend(*given), PLAIN.attend(*given)) < EXACT


def test_scores_far_apart_keep_their_weights_and_large_ones_do_not_overflow():
    query_BTHK, *given = example(n_picked=5)
    for scale in (1e-3, 30.0, 1e4):
        assert off(compiled.attend(scale * query_BTHK, *given), PLAIN.attend(scale * query_BTHK, *given)) < EXACT


def test_float32_is_as_near_to_float64_as_the_page_is():
    given = example(n_picked=5)
    rounded = tuple(x.float() if isinstance(x, torch.Tensor) else x for x in given)
    wanted = PLAIN.attend(*given)
    ours, page = (off(table_attend(*rounded).double(), wanted) for table_attend in (compiled.attend, PLAIN.attend))
    assert 0 < ours < max(2 * page, 1e-6)  # float32 rounds at 6e-8


def test_two_threads_give_the_bits_of_one(monkeypatch):
    given = example(n_picked=5)
    alone = compiled.attend(*given)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(compiled.attend(*given), alone)


def test_nan_stays_in_its_own_query():
    given = example(n_picked=5)
    given[0][0, 4, 1] = torch.nan
    out_BTHK = compiled.attend(*given)
    assert out_BTHK[0, 4, 1].isnan().all() and out_BTHK.isnan().sum() == K


def test_many_dense_entries_go_the_way_of_fast(monkeypatch):
    given = example()
    monkeypatch.setattr(compiled, "MOST_ENTRIES", 8)
    monkeypatch.setattr(compiled, "CompiledAttend", None)
    assert off(compiled.attend(*given), PLAIN.attend(*given)) < EXACT
