"""Core attention: blocks of queries against band, entries and sink, equal to the loop over one query at a time."""

import pytest
import torch
from small import EXACT, normal

from minidsv4 import paper
from minidsv4.model import attend
from minidsv4.model.attend import Attend, Far, Near, weights

B, H, K, WINDOW = 2, 3, 6, 7


def example(n_tokens, n_past=0, n_entries=5, n_picked=None, seed=0):
    """Queries, window entries with `n_past` older ones, entries of which query t sees t // 4, picks, sinks."""
    query_BTHK, near_BSK = normal(B, n_tokens, H, K, seed=seed), normal(B, n_past + n_tokens, K, seed=seed + 1)
    entries_BCK, sinks_H = normal(B, n_entries, K, seed=seed + 2), normal(H, seed=seed + 3)
    visible_T = (torch.arange(n_tokens) // 4).clamp(max=n_entries)
    picks_BTP = None
    if n_picked is not None:
        score = normal(B, n_tokens, n_entries, seed=seed + 4)
        hidden = torch.arange(n_entries) >= visible_T[:, None]  # picked last, as the indexer does
        picks_BTP = score.masked_fill(hidden, -torch.inf).argsort(-1, descending=True)[..., :n_picked].sort(-1).values
    return query_BTHK, Near(near_BSK, WINDOW), Far(entries_BCK, visible_T, picks_BTP), sinks_H


def by_hand(query_BTHK, near, far, sinks_H):
    """The same by the loops of the paper, query by query; queries come scaled, so the loop's scale is taken out."""
    out, n_past = torch.zeros_like(query_BTHK), near.entries_BSK.shape[1] - query_BTHK.shape[1]
    for b in range(len(query_BTHK)):
        for t in range(query_BTHK.shape[1]):
            seen = [near.entries_BSK[b, s] for s in paper.window_tokens(t + n_past, near.window)]
            picked = range(len(far.entries_BCK[b])) if far.picks_BTP is None else far.picks_BTP[b, t].tolist()
            seen += [far.entries_BCK[b, c] for c in picked if c < far.visible_T[t]]
            query_HK = (query_BTHK[b, t] * query_BTHK.shape[-1] ** 0.5).numpy()
            out[b, t] = torch.from_numpy(paper.core_attention(query_HK, torch.stack(seen).numpy(), sinks_H.numpy()))
    return out


@pytest.mark.parametrize("n_picked", [None, 4], ids=["all entries", "picked entries"])
@pytest.mark.parametrize(("n_tokens", "n_past"), [(1, 0), (1, 6), (9, 3), (23, 0)])
def test_attention_agrees_with_the_loops_of_the_paper(n_tokens, n_past, n_picked):
    case = example(n_tokens, n_past, n_picked=n_picked)
    assert (Attend()(*case) - by_hand(*case)).abs().max() < EXACT


@pytest.mark.parametrize("n_picked", [None, 4], ids=["all entries", "picked entries"])
@pytest.mark.parametrize("block", [1, 5, 7, 8])
def test_how_queries_are_cut_into_blocks_changes_nothing(block, n_picked, monkeypatch):
    case = example(23, n_past=6, n_picked=n_picked)
    whole = Attend()(*case)
    monkeypatch.setattr(attend, "BLOCK", block)
    assert (Attend()(*case) - whole).abs().max() < EXACT


@pytest.mark.parametrize("n_tokens", [63, 64, 65, 129])
def test_lengths_around_a_block_agree_with_the_loops(n_tokens):
    case = example(n_tokens, n_past=2, n_entries=9, n_picked=3)
    assert (Attend()(*case) - by_hand(*case)).abs().max() < EXACT


@pytest.mark.parametrize("block", [1, 64])
def test_a_pick_that_is_not_yet_visible_stands_for_none_whatever_else_is_picked(block, monkeypatch):
    query, near, far, sinks = example(23)
    far = far._replace(picks_BTP=normal(B, 23, 5, seed=4).argsort(-1)[..., :3].sort(-1).values)  # no look at visible_T
    expected = by_hand(query, near, far, sinks)
    monkeypatch.setattr(attend, "BLOCK", block)
    assert (Attend()(query, near, far, sinks) - expected).abs().max() < EXACT


def test_where_every_query_reads_much_fewer_are_taken_at_a_time(monkeypatch):
    case, taken, right = example(23, n_past=6), [], attend.weights
    monkeypatch.setattr(attend, "SCORES_AT_ONCE", 1)
    monkeypatch.setattr(attend, "weights", lambda query, *rest: taken.append(query.shape[1]) or right(query, *rest))
    assert (Attend()(*case) - by_hand(*case)).abs().max() < EXACT
    assert taken == [8, 8, 7]


def test_a_query_sees_its_window_its_own_token_included_and_nothing_else():
    query, near, far, sinks = example(23, n_past=4)
    before = Attend()(query, near, far._replace(visible_T=far.visible_T * 0), sinks)
    for s in range(27):
        changed = near.entries_BSK.clone()
        changed[:, s] += 1
        moved = (
            Attend()(query, Near(changed, WINDOW), far._replace(visible_T=far.visible_T * 0), sinks) - before
        ).abs()
        assert [t + 4 for t in range(23) if moved[:, t].max() > 0] == [t for t in range(s, s + WINDOW) if 4 <= t < 27]


def test_no_score_outside_the_band_of_a_block_is_computed(monkeypatch):
    sizes, right = [], attend.weights

    def watched(query, near, seen, far, sinks):
        sizes.append((near.shape[1], far.entries_BCK.shape[1]))
        return right(query, near, seen, far, sinks)

    monkeypatch.setattr(attend, "weights", watched)
    Attend()(*example(200, n_entries=50))
    assert [n_near for n_near, _ in sizes] == [64, 70, 70, 14]  # a block of 64 and the 6 tokens before it
    assert [n_far for _, n_far in sizes] == [15, 31, 47, 49]  # dense entries: what the block's last query sees


def test_weights_and_the_share_of_the_sink_sum_to_one():
    query, near, far, sinks = example(9, n_picked=3)
    cut = attend.cut_block(query, near, far, 0)
    p_near, p_far = weights(*cut[:2], cut[2], cut[3], sinks)
    scores = torch.einsum("bthk,bsk->bths", query, near.entries_BSK).masked_fill(~cut[2][:, None], -torch.inf)
    hidden = (far.picks_BTP >= far.visible_T[:, None])[:, :, None]
    far_scores = torch.einsum("bthk,btpk->bthp", query, cut[3].entries_BCK).masked_fill(hidden, -torch.inf)
    sink = sinks.exp() / (sinks.exp() + scores.exp().sum(-1) + far_scores.exp().sum(-1))
    assert (p_near.sum(-1) + p_far.sum(-1) + sink - 1).abs().max() < EXACT
    assert (p_near >= 0).all() and (p_far >= 0).all()


def test_a_sink_at_minus_infinity_is_ordinary_softmax():
    query, near, far, sinks = example(9)
    out = Attend()(query, near, far, torch.full_like(sinks, -torch.inf))
    every = torch.cat([near.entries_BSK, far.entries_BCK], dim=1)
    age = torch.arange(9)[:, None] - torch.arange(9)
    seen = torch.cat([(age >= 0) & (age < WINDOW), torch.arange(5) < far.visible_T[:, None]], dim=1)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query.transpose(1, 2), *[every[:, None].expand(-1, H, -1, -1)] * 2, attn_mask=seen, scale=1.0
    )
    assert (out - expected.transpose(1, 2)).abs().max() < EXACT


def test_a_large_sink_takes_everything():
    query, near, far, sinks = example(9)
    assert Attend()(query, near, far, torch.full_like(sinks, 1e4)).abs().max() == 0


def test_large_scores_stay_finite():
    query, near, far, sinks = example(9, n_picked=3)
    out = Attend()(query * 1e5, near, far, sinks)
    assert out.isfinite().all() and out.abs().max() > 0.1


def test_the_order_of_the_entries_does_not_matter():
    query, near, far, sinks = example(9, n_picked=5)
    everything = far._replace(visible_T=torch.full((9,), 5))
    mixed = torch.tensor([3, 0, 4, 1, 2])
    shuffled = everything._replace(entries_BCK=far.entries_BCK[:, mixed])
    assert (Attend()(query, near, shuffled, sinks) - Attend()(query, near, everything, sinks)).abs().max() < EXACT
    turned = everything._replace(picks_BTP=far.picks_BTP.flip(-1))
    assert (Attend()(query, near, turned, sinks) - Attend()(query, near, everything, sinks)).abs().max() < EXACT


def test_picking_every_entry_is_reading_all_of_them():
    query, near, far, sinks = example(23)
    picked = far._replace(picks_BTP=torch.arange(5).expand(B, 23, 5))
    assert (Attend()(query, near, picked, sinks) - Attend()(query, near, far, sinks)).abs().max() < EXACT


@pytest.mark.parametrize("n_picked", [None, 2], ids=["all entries", "picked entries"])
def test_the_gradient_is_right(n_picked):
    query, near, far, sinks = example(5, n_past=1, n_entries=3, n_picked=n_picked)
    tensors = [t.requires_grad_() for t in (query, near.entries_BSK, far.entries_BCK, sinks)]

    def run(query, near_entries, far_entries, sinks):
        return Attend()(query, Near(near_entries, 4), far._replace(entries_BCK=far_entries), sinks)

    assert torch.autograd.gradcheck(run, tensors)


def test_16_bit_queries_are_scored_in_float32_and_keep_their_dtype():
    query, near, far, sinks = example(9)
    query, sinks, far = query.bfloat16(), sinks.bfloat16(), far._replace(entries_BCK=far.entries_BCK.bfloat16())
    near = Near(near.entries_BSK.bfloat16(), WINDOW)
    wide = Attend()(
        query.float(),
        Near(near.entries_BSK.float(), WINDOW),
        far._replace(entries_BCK=far.entries_BCK.float()),
        sinks.float(),
    )
    assert torch.equal(Attend()(query, near, far, sinks), wide.bfloat16())
