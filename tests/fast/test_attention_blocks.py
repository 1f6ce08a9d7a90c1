"""What attention in blocks costs: no score outside a block's band, few queries at a time where each reads much."""

import importlib

import pytest
import torch
from small import EXACT, normal, one_document

from minidsv4.ops import PLAIN

attention = importlib.import_module("minidsv4.fast.attention")

B, H, K, WINDOW = 2, 3, 6, 7


def example(n_tokens, n_past=0, n_entries=5, n_picked=None):
    """Arguments of `attend`: entries of 4 tokens, and picks."""
    sees = one_document(n_tokens, n_past, window=WINDOW, ratio=4, n_entries=n_entries)
    if n_picked is not None:
        sees = sees._replace(
            picks_BTP=normal(B, n_tokens, n_entries, seed=4).argsort(-1)[..., :n_picked].sort(-1).values
        )
    query_BTHK, window_BSK = normal(B, n_tokens, H, K), normal(B, n_past + n_tokens, K, seed=1)
    return query_BTHK, window_BSK, normal(B, n_entries, K, seed=2), sees, normal(H, seed=3)


@pytest.fixture
def blocks(monkeypatch):
    """The blocks whose weights are computed, in order."""
    seen, right = [], attention.weights
    monkeypatch.setattr(attention, "weights", lambda block, sinks: seen.append(block) or right(block, sinks))
    return seen


@pytest.mark.parametrize("n_picked", [None, 4], ids=["all entries", "picked entries"])
@pytest.mark.parametrize("block", [1, 5, 7, 8])
def test_how_queries_are_cut_into_blocks_changes_nothing(block, n_picked, monkeypatch):
    case = example(23, n_past=6, n_picked=n_picked)
    learn = [part.requires_grad_() for part in (*case[:3], case[4])]
    found = []
    for size in (64, block):
        monkeypatch.setattr(attention, "BLOCK", size)
        out = attention.attend(*case)
        found.append([out, *torch.autograd.grad(out.square().sum(), learn)])
    for ours, expected in zip(*found):
        assert (ours - expected).abs().max() < EXACT * expected.abs().max()


@pytest.mark.parametrize("block", [1, 64])
def test_a_pick_that_is_not_yet_visible_stands_for_none_in_blocks_of_any_size(block, monkeypatch):
    case = example(23, n_picked=3)
    monkeypatch.setattr(attention, "BLOCK", block)
    assert (attention.attend(*case) - PLAIN.attend(*case)).abs().max() < EXACT


def test_where_every_query_reads_much_fewer_are_taken_at_a_time(monkeypatch, blocks):
    case = example(23, n_past=6)
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", 1)
    assert (attention.attend(*case) - PLAIN.attend(*case)).abs().max() < EXACT
    assert [block.query_BTHK.shape[1] for block in blocks] == [8, 8, 7]


def test_no_score_outside_the_band_of_a_block_is_computed(blocks):
    attention.attend(*example(200, n_entries=50))
    assert [block.near_BSK.shape[1] for block in blocks] == [64, 70, 70, 14]  # a block of 64 and the 6 tokens before it
    assert [block.far.shape[1] for block in blocks] == [
        16,
        32,
        48,
        50,
    ]  # dense entries: what the block's last query sees


def test_of_picked_entries_only_the_picks_are_scored(blocks):
    attention.attend(*example(200, n_entries=50, n_picked=3))
    assert {block.far.shape[1:3] for block in blocks} == {(64, 3), (8, 3)}


def test_picks_that_name_every_entry_are_not_gathered(blocks):
    attention.attend(*example(23, n_entries=5, n_picked=5))
    assert [block.far.ndim for block in blocks] == [3]


def test_the_index_loss_scores_no_more_than_the_picks_either(blocks):
    case = example(200, n_entries=50, n_picked=3)
    attention.index_loss(case, (normal(B, 200, 2, 4), normal(B, 200, 2), normal(B, 50, 4)))
    assert {block.far.shape[1:3] for block in blocks} == {(64, 3), (8, 3)}


def test_nothing_but_what_attention_is_given_is_kept_for_the_gradient():
    case, kept = example(200, n_entries=50), []
    learn = [part.requires_grad_() for part in (*case[:3], case[4])]
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        attention.attend(*case)
    assert sum(kept) == sum(part.numel() for part in learn)
