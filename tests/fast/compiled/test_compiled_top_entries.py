"""The compiled choice of the indexer: the picks of `Indexer.pick`, whatever the sizes, weights, ties and borders."""

import importlib

import pytest
import torch
from small import CPU, EXACT, small_model, token_ids

import minidsv4 as v4
from minidsv4.visibility import Visibility

module = importlib.import_module("minidsv4.fast.compiled.top_entries")

# U heads, Z width, k picks, C entries, T queries: odd heads, widths off a multiple of 8, tiles cut anywhere
SIZES = [(8, 16, 16, 1500, 64), (3, 20, 7, 513, 13), (1, 8, 1, 40, 5), (5, 4, 30, 512, 2), (2, 9, 3, 1100, 1)]


def both_picks(n_picked, query, weight, keys, first):
    """What each form lets the queries read, the first of which stands at position `first`."""
    sees = Visibility(first, query.shape[1], 1, 1, CPU, ratio=1, n_entries=keys.shape[1])
    for table in (v4.FAST, v4.COMPILED):
        picks_BTP = table.top_entries(query, weight, keys, sees, n_picked)
        yield sees._replace(picks_BTP=picks_BTP).entry_map()


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize(("n_heads", "width", "n_picked", "n_entries", "n_tokens"), SIZES)
def test_fused_picks_are_those_of_the_indexer(n_heads, width, n_picked, n_entries, n_tokens, n_threads, monkeypatch):
    monkeypatch.setattr(module.torch, "get_num_threads", lambda: n_threads)
    draw = torch.Generator().manual_seed(n_heads)
    query = torch.randn(2, n_tokens, n_heads, width, generator=draw, dtype=torch.float64)
    weight = torch.randn(2, n_tokens, n_heads, generator=draw, dtype=torch.float64)
    keys = torch.randn(2, n_entries, width, generator=draw, dtype=torch.float64)
    for first in (0, n_picked, n_entries - n_tokens, n_entries):
        plain, fused = both_picks(n_picked, query, weight, keys, first)
        assert torch.equal(plain, fused)


@pytest.mark.parametrize("sign", [-1.0, 0.0, 1.0])
def test_among_equal_scores_the_lower_entry_wins(sign):
    """Small whole numbers: their sums are exact in any order, and hundreds of entries tie."""
    draw = torch.Generator().manual_seed(0)
    query = torch.randint(-2, 3, (1, 9, 4, 12), generator=draw).double()
    weight = sign * torch.randint(1, 3, (1, 9, 4), generator=draw).double()
    keys = torch.randint(-1, 2, (1, 1300, 12), generator=draw).double()
    plain, fused = both_picks(24, query, weight, keys, 1300)
    assert torch.equal(plain, fused)


@pytest.mark.slow
def test_fused_picks_in_float32_miss_at_most_entries_that_score_alike():
    draw = torch.Generator().manual_seed(5)
    query, weight = torch.randn(1, 32, 8, 16, generator=draw), torch.randn(1, 32, 8, generator=draw)
    keys = torch.randn(1, 4000, 16, generator=draw)
    plain, fused = both_picks(16, query, weight, keys, 4000)
    assert (plain != fused).double().mean() < 0.01  # float32 sums in another order


@torch.no_grad()
def test_a_model_with_compiled_indexers_computes_the_same_logits():
    model, ids_BT = small_model(), token_ids(2, 200)
    before = model(ids_BT)
    after = model.use(v4.COMPILED)(ids_BT)
    assert model.layers[1].attn.indexer.ops.top_entries is module.top_entries
    torch.testing.assert_close(after, before, rtol=0, atol=EXACT)


def test_16_bits_go_the_way_of_fast(monkeypatch):
    monkeypatch.setattr(module, "with_threads", lambda *_: pytest.fail("the loops ran"))
    query, weight, keys = torch.ones(1, 2, 1, 4).bfloat16(), torch.ones(1, 2, 1), torch.ones(1, 9, 4).bfloat16()
    sees = Visibility(9, 2, 1, 1, CPU, ratio=1, n_entries=9)
    assert v4.COMPILED.top_entries(query, weight, keys, sees, 2).tolist() == [[[0, 1], [0, 1]]]


@pytest.mark.parametrize("sick", [torch.nan, torch.inf, -torch.inf])
def test_picks_among_documents_and_sick_keys_are_those_of_plain_hidden_ones_included(sick):
    draw = torch.Generator().manual_seed(3)
    query, weight = torch.randn(2, 300, 4, 6, generator=draw).double(), torch.rand(2, 300, 4, generator=draw).double()
    keys = torch.randn(2, 300, 6, generator=draw).double()
    keys[1, 40:300:9, 2] = sick
    document_BT = torch.tensor([[0], [1]]) * (torch.arange(300) // 150 * 150)
    sees = Visibility(0, 300, 1, 1, CPU, ratio=1, n_entries=300, document_BT=document_BT)
    plain, compiled = (table.top_entries(query, weight, keys, sees, 7) for table in (v4.PLAIN, v4.COMPILED))
    assert torch.equal(plain, compiled)
