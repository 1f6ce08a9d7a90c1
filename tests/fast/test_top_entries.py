"""What the choice of entries costs: no matrix of all tokens by all entries, however it is cut the same picks."""

import importlib

import pytest
import torch
from small import normal, one_document

top_entries = importlib.import_module("minidsv4.fast.top_entries")

U, Z, P = 4, 8, 6


def example(n_tokens, seed=0):
    """Index queries, weights, keys of entries of 3 tokens, and who sees what."""
    query_BTUZ, weight_BTU = normal(2, n_tokens, U, Z, seed=seed), normal(2, n_tokens, U, seed=seed + 1)
    n_entries = n_tokens // 3
    sees = one_document(n_tokens, ratio=3, n_entries=n_entries)
    return query_BTUZ, weight_BTU, normal(2, n_entries, Z, seed=seed + 2), sees


def entries_read(case):
    """What is read by the picks [B, T, C]."""
    return case[3]._replace(picks_BTP=top_entries.top_entries(*case, P)).entry_map()


@pytest.mark.parametrize("n_tokens", [100, 300])
@pytest.mark.parametrize("at_once", [1, 100, 700, 5000])
def test_streaming_over_entries_picks_what_one_block_picks(at_once, n_tokens, monkeypatch):
    whole = entries_read(example(n_tokens))
    monkeypatch.setattr(top_entries, "SCORES_AT_ONCE", at_once)
    assert torch.equal(entries_read(example(n_tokens)), whole)


@pytest.mark.parametrize("block", [1, 7, 64])
def test_how_queries_are_cut_into_blocks_changes_no_pick(block, monkeypatch):
    whole = entries_read(example(100))
    monkeypatch.setattr(top_entries, "BLOCK", block)
    assert torch.equal(entries_read(example(100)), whole)


def test_streaming_over_equal_scores_keeps_the_lower_entries(monkeypatch):
    query, weight, keys, sees = example(100)
    monkeypatch.setattr(top_entries, "SCORES_AT_ONCE", 1)
    read = entries_read((query, torch.zeros_like(weight), keys, sees))
    for t in range(100):
        assert read[1, t].nonzero().flatten().tolist() == list(range(min(P, (t + 1) // 3)))


def test_no_matrix_of_all_tokens_by_all_entries_is_ever_whole(monkeypatch):
    sizes, right = [], top_entries.index_scores
    monkeypatch.setattr(top_entries, "SCORES_AT_ONCE", 1 << 14)
    monkeypatch.setattr(
        top_entries, "index_scores", lambda q, w, k: sizes.append(q[..., 0].numel() * k.shape[1]) or right(q, w, k)
    )
    entries_read(example(300))
    assert max(sizes) <= 1 << 14 and len(sizes) > 10


def test_no_entry_behind_a_blocks_newest_query_is_scored(monkeypatch):
    reached, right = [], top_entries.index_scores
    monkeypatch.setattr(
        top_entries, "index_scores", lambda q, w, k: reached.append((q.shape[1], k.shape[1])) or right(q, w, k)
    )
    entries_read(example(200))
    assert reached == [(64, 21), (64, 42), (64, 64), (8, 66)]


def test_while_there_are_no_more_entries_than_picks_nothing_is_scored(monkeypatch):
    monkeypatch.setattr(top_entries, "index_scores", None)
    query, weight, keys, sees = example(20)
    assert top_entries.top_entries(query, weight, keys, sees, 6).tolist() == [[[*range(6)]] * 20] * 2
    assert top_entries.top_entries(query, weight, keys, sees, 9).shape == (2, 20, 6)


def test_among_many_entries_groups_are_looked_at_first(monkeypatch):
    sizes, right = [], torch.Tensor.topk
    monkeypatch.setattr(
        torch.Tensor, "topk", lambda score, *a, **k: sizes.append(score.shape[-1]) or right(score, *a, **k)
    )
    top_entries.stable_topk(normal(3, 1000), 5)
    assert max(sizes) <= 250  # groups of four


def test_nan_at_the_edge_of_a_group_ends_in_no_exception():
    score = normal(2, 1000)
    score[0, 100:140] = torch.nan
    found = top_entries.stable_topk(score, 5)
    assert torch.equal(found[1], score[1].sort(descending=True, stable=True).indices[:5].sort().values)
