"""The compiled choice of the indexer: the picks of `Indexer.pick`, whatever the sizes, weights, ties and borders."""

import types

import pytest
import torch
from small import EXACT, TINY, small_model, token_ids

from minidsv4.fused import indexer as fused_indexer
from minidsv4.fused.indexer import FusedPick, fuse_indexers
from minidsv4.fused.picks import pick_share
from minidsv4.model.indexer import Indexer

# U heads, Z width, k picks, C entries, T queries: odd heads, widths off a multiple of 8, tiles cut anywhere
SIZES = [(8, 16, 16, 1500, 64), (3, 20, 7, 513, 13), (1, 8, 1, 40, 5), (5, 4, 30, 512, 2), (2, 9, 3, 1100, 1)]


def plain_indexer(n_heads, n_picked):
    indexer = types.SimpleNamespace(heads=n_heads, n_picked=n_picked)
    indexer.pick = Indexer.pick.__get__(indexer)
    return indexer


def both_picks(n_heads, n_picked, *inputs):
    """Picks of both forms; those beyond what a query sees, which stand for none, as -1."""
    indexer, visible_T = plain_indexer(n_heads, n_picked), inputs[3]
    for picks_BTP in (indexer.pick(*inputs), FusedPick(indexer, pick_share)(*inputs)):
        yield picks_BTP.masked_fill(picks_BTP >= visible_T[:, None], -1)


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize(("n_heads", "width", "n_picked", "n_entries", "n_tokens"), SIZES)
def test_fused_picks_are_those_of_the_indexer(n_heads, width, n_picked, n_entries, n_tokens, n_threads, monkeypatch):
    monkeypatch.setattr(fused_indexer.torch, "get_num_threads", lambda: n_threads)
    draw = torch.Generator().manual_seed(n_heads)
    query = torch.randn(2, n_tokens, n_heads, width, generator=draw, dtype=torch.float64)
    weight = torch.randn(2, n_tokens, n_heads, generator=draw, dtype=torch.float64)
    keys = torch.randn(2, n_entries, width, generator=draw, dtype=torch.float64)
    early, late = torch.arange(1, n_tokens + 1), torch.arange(n_entries - n_tokens, n_entries) + 1
    for visible_T in (early, early + n_picked, late, (late + 3) // 4, torch.full((n_tokens,), n_entries)):
        plain, fused = both_picks(n_heads, n_picked, query, weight, keys, visible_T)
        assert torch.equal(plain, fused)


@pytest.mark.parametrize("sign", [-1.0, 0.0, 1.0])
def test_among_equal_scores_the_lower_entry_wins(sign):
    """Small whole numbers: their sums are exact in any order, and hundreds of entries tie."""
    draw = torch.Generator().manual_seed(0)
    query = torch.randint(-2, 3, (1, 9, 4, 12), generator=draw).double()
    weight = sign * torch.randint(1, 3, (1, 9, 4), generator=draw).double()
    keys = torch.randint(-1, 2, (1, 1300, 12), generator=draw).double()
    plain, fused = both_picks(4, 24, query, weight, keys, torch.full((9,), 1300))
    assert torch.equal(plain, fused)


def test_fused_picks_in_float32_miss_at_most_entries_that_score_alike():
    draw = torch.Generator().manual_seed(5)
    query, weight = torch.randn(1, 32, 8, 16, generator=draw), torch.randn(1, 32, 8, generator=draw)
    keys = torch.randn(1, 4000, 16, generator=draw)
    plain, fused = both_picks(8, 16, query, weight, keys, torch.full((32,), 4000))
    assert (plain != fused).double().mean() < 0.01  # float32 sums in another order


@torch.no_grad()
def test_a_model_with_fused_indexers_computes_the_same_logits():
    model, ids_BT = small_model(), token_ids(2, 200)
    before = model(ids_BT)
    after = fuse_indexers(model)(ids_BT)
    assert any(isinstance(m.pick, FusedPick) for m in model.modules() if isinstance(m, Indexer))
    torch.testing.assert_close(after, before, rtol=0, atol=EXACT)


def test_rows_of_several_documents_go_the_plain_way():
    indexer = types.SimpleNamespace(n_picked=2, pick=lambda *inputs: "plain")
    assert FusedPick(indexer, pick_share)(None, None, None, torch.tensor([9]), torch.zeros(1, 1, 1)) == "plain"


def test_a_model_in_16_bits_is_refused():
    with pytest.raises(ValueError, match=r"fused: embed.weight is torch.bfloat16; the loops know float32 or float64"):
        fuse_indexers(small_model(TINY, dtype=torch.bfloat16))
