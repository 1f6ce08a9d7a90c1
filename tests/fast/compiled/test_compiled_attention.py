"""Compiled attention: any number of heads, float32 and threads, picked entries and many dense ones."""

import importlib

import numpy as np
import pytest
import torch
from op_cases import attend_case
from small import EXACT, normal, off, off_all, one_document
from test_fast_equals_plain import output_and_gradients

from minidsv4.ops import PLAIN

compiled = importlib.import_module("minidsv4.fast.compiled.attention")
B, T, WINDOW, K = 2, 37, 7, 20


def example(n_heads=3, n_entries=9, n_picked=None, n_past=6, width=K):
    """Arguments of `attend`: entries of 4 tokens after a past of some tokens, and picks."""
    sees = one_document(T, n_past, window=WINDOW, ratio=4, n_entries=n_entries)
    if n_picked is not None:
        order_BTC = normal(B, T, n_entries, seed=4).argsort(-1)
        sees = sees._replace(picks_BTP=order_BTC[..., :n_picked].sort(-1).values)
    query_BTHK, window_BSK = normal(B, T, n_heads, width), normal(B, n_past + T, width, seed=1)
    return query_BTHK, window_BSK, normal(B, n_entries, width, seed=2), sees, normal(n_heads, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize("n_picked", [None, 5], ids=["all entries", "picked entries"])
@pytest.mark.parametrize("n_heads", [1, 4, 5, 9])
def test_any_number_of_heads_attends_as_the_page_says(n_heads, n_picked):
    given = example(n_heads, n_picked=n_picked)
    assert off_all(*(output_and_gradients(attend, given) for attend in (compiled.attend, PLAIN.attend))) < EXACT


@pytest.mark.slow
def test_dense_entries_and_picks_of_the_same_arrays_are_read_by_their_own_loops():
    """The two loops take arguments of the same types, and one of them looks at no picks."""
    dense, picked = example(n_entries=300, n_past=1200), example(n_entries=300, n_past=1200, n_picked=5)
    for given in (dense, picked, dense, picked):
        assert off(compiled.attend(*given), PLAIN.attend(*given)) < EXACT


def test_scores_far_apart_keep_their_weights_and_large_ones_do_not_overflow():
    query_BTHK, *given = example(n_picked=5)
    for scale in (1e-3, 30.0, 1e4):
        assert off(compiled.attend(scale * query_BTHK, *given), PLAIN.attend(scale * query_BTHK, *given)) < EXACT


def output_and_gradients_of_squares(attend, given, dtype):
    """The output in this type, and the gradients of the sum of its squares."""
    given = [x.to(dtype).requires_grad_() if torch.is_tensor(x) else x for x in given]
    output = attend(*given)
    return output, *torch.autograd.grad(output.square().sum(), [x for x in given if torch.is_tensor(x)])


@pytest.mark.slow
def test_float32_is_as_near_to_float64_as_the_page_is():
    wanted, ours, page = (
        output_and_gradients_of_squares(attend, example(n_picked=5), dtype)
        for attend, dtype in [
            (PLAIN.attend, torch.float64),
            (compiled.attend, torch.float32),
            (PLAIN.attend, torch.float32),
        ]
    )
    for exact, one, other in zip(wanted, ours, page, strict=True):
        assert 0 < off(one.double(), exact) < max(2 * off(other.double(), exact), 2e-6)  # float32 rounds at 6e-8


def test_two_threads_give_the_bits_of_one(monkeypatch):
    given = example(n_picked=5)
    alone = compiled.attend(*given)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(compiled.attend(*given), alone)


def test_gradients_are_summed_over_the_shares_of_three_threads_in_the_same_order_each_time(monkeypatch):
    given = example(n_picked=5)
    alone = output_and_gradients(compiled.attend, given)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    once, again = (output_and_gradients(compiled.attend, given) for _ in range(2))
    assert off_all(once, alone) < EXACT and all(map(torch.equal, once, again))


def test_gradients_of_tensors_that_lie_in_another_order_are_the_same():
    given = example(n_picked=5)
    turned = tuple(x.mT.contiguous().mT if torch.is_tensor(x) and x.ndim > 1 else x for x in given)
    assert off_all(*(output_and_gradients(compiled.attend, each) for each in (turned, given))) < EXACT


def test_nan_stays_in_its_own_query():
    given = example(n_picked=5)
    given[0][0, 4, 1] = torch.nan
    out_BTHK = compiled.attend(*given)
    assert out_BTHK[0, 4, 1].isnan().all() and out_BTHK.isnan().sum() == K


def test_room_is_made_for_what_a_query_picks_and_not_for_all_that_it_sees():
    loops = importlib.import_module("minidsv4.fast.compiled.attention_loops")
    query_THK = normal(1, 3, K).float().numpy()
    read_SK, row_S = loops.room(query_THK, 30, 100_000, 5)  # 31 rows of the window, 5 picks
    assert len(read_SK) == len(row_S) == 48 and len(loops.room(query_THK, 30, 50, 0)[1]) == 96


# --- many dense entries, a strip of 64 at a time ---


@pytest.fixture
def together(monkeypatch):
    """Queries read dense entries together, however few these are."""
    monkeypatch.setattr(compiled, "MOST_ENTRIES", 0)
    monkeypatch.setattr(compiled, "FEWEST_QUERIES", 1)


def many(n_heads=3, width=K):
    """Arguments of `attend` that fill two strips and a part of the third; the last entries are finished on the way."""
    return example(n_heads, n_entries=150, n_past=572, width=width)


@pytest.mark.parametrize("seed", range(40))
def test_dense_entries_read_together_give_what_the_page_says(seed, together):
    query, window, entries, sees, sinks = attend_case(np.random.default_rng(seed))
    given = query, window, entries, sees._replace(picks_BTP=None), sinks
    assert off(compiled.attend(*given), PLAIN.attend(*given)) < EXACT


@pytest.mark.parametrize("n_heads", [1, 4, 5, 9])
def test_any_number_of_heads_reads_many_entries(n_heads, together):
    given = many(n_heads)
    assert off(compiled.attend(*given), PLAIN.attend(*given)) < EXACT


def test_a_document_that_begins_in_the_middle_of_a_strip_reads_none_of_the_entries_before_it(together):
    query_BTHK, window_BSK, entries_BCK, sees, sinks_H = many()
    begins_BT = torch.where(torch.arange(T) < 20, torch.tensor([[0], [100]]), torch.tensor([[80], [592]]))
    given = query_BTHK, window_BSK, entries_BCK, sees._replace(document_BT=begins_BT), sinks_H
    assert off(compiled.attend(*given), PLAIN.attend(*given)) < EXACT


@pytest.mark.parametrize("scale", [1e-3, 30.0, 1e4])
def test_a_largest_score_that_comes_late_keeps_its_weight(scale, together):
    query_BTHK, window_BSK, entries_BCK, *rest = many()
    given = scale * query_BTHK, window_BSK, entries_BCK * torch.linspace(0.1, 3, 150)[:, None], *rest
    assert off(compiled.attend(*given), PLAIN.attend(*given)) < EXACT


@pytest.mark.slow
def test_many_entries_in_float32_are_as_near_to_float64_as_the_page_is(together):
    given = many()
    rounded = tuple(x.float() if isinstance(x, torch.Tensor) else x for x in given)
    wanted = PLAIN.attend(*given)
    ours, page = (off(table_attend(*rounded).double(), wanted) for table_attend in (compiled.attend, PLAIN.attend))
    assert 0 < ours < max(2 * page, 1e-6)  # float32 rounds at 6e-8


def test_of_wide_heads_a_few_queries_at_a_time_pass_over_the_entries(together):
    given = many(n_heads=64, width=512)  # sums of 8 queries are 2^18 numbers, as many as are held at once
    assert off(compiled.attend(*given), PLAIN.attend(*given)) < EXACT


def test_many_entries_give_the_same_bits_on_any_number_of_threads(together, monkeypatch):
    given = many(n_heads=9)
    alone = compiled.attend(*given)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(compiled.attend(*given), alone)


def test_nan_stays_in_its_own_query_and_that_of_an_entry_in_those_that_see_it(together):
    given = many()
    given[0][0, 4, 1] = torch.nan
    given[2][1, 149] = torch.nan  # finished by token 599, the tenth from the end
    out_BTHK, seen_T = compiled.attend(*given), given[3].visible_counts() == 150
    assert out_BTHK[0, 4, 1].isnan().all() and out_BTHK[0].isnan().sum() == K
    assert torch.equal(out_BTHK[1].isnan().all(-1).all(-1), seen_T) and 0 < seen_T.sum() < T
    assert not out_BTHK[1, ~seen_T].isnan().any()


def test_few_queries_of_many_dense_entries_go_the_way_of_fast(monkeypatch):
    given = many()
    monkeypatch.setattr(compiled, "MOST_ENTRIES", 8)
    monkeypatch.setattr(compiled, "FEWEST_QUERIES", T + 1)
    monkeypatch.setattr(compiled, "CompiledAttend", None)
    assert off(compiled.attend(*given), PLAIN.attend(*given)) < EXACT
