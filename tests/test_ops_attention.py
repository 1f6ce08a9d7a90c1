"""Core attention and the indexer's loss, plain and fast: equal to loops over single queries, and what they mean."""

import numpy as np
import pytest
import torch
from op_cases import CASES
from small import CPU, EXACT, both_tables, normal

from minidsv4 import paper
from minidsv4.ops import attention_weights, teacher
from minidsv4.visibility import Visibility

B, H, K, WINDOW, RATIO = 2, 3, 6, 7, 4
picked_or_all = pytest.mark.parametrize("n_picked", [None, 4], ids=["all entries", "picked entries"])


def example(n_tokens, n_past=0, n_entries=5, n_picked=None, seed=0, window=WINDOW):
    """Arguments of `attend`: `n_past` older tokens in the window, entries of 4 tokens, picks, sinks.

    Positions are counted so that the first query sees no entry: the past lies before the row's beginning.
    """
    query_BTHK, window_BSK = normal(B, n_tokens, H, K, seed=seed), normal(B, n_past + n_tokens, K, seed=seed + 1)
    entries_BCK, sinks_H = normal(B, n_entries, K, seed=seed + 2), normal(H, seed=seed + 3)
    sees = Visibility(n_past, n_tokens, window, n_past + n_tokens, CPU, ratio=RATIO, n_entries=n_entries)
    if n_picked is not None:
        hidden = ~sees.entry_map()  # picked last, as the indexer does
        score = normal(B, n_tokens, n_entries, seed=seed + 4).masked_fill(hidden, -torch.inf)
        sees = sees._replace(picks_BTP=score.argsort(-1, descending=True)[..., :n_picked].sort(-1).values)
    return query_BTHK, window_BSK, entries_BCK, sees, sinks_H


def seen_by_hand(sees, b, t):
    """Places in the window, and entries, that one query reads."""
    position, oldest = sees.start + t, sees.start + sees.n_queries - sees.n_window
    document = 0 if sees.document_BT is None else int(sees.document_BT[b, t])
    tokens = [s - oldest for s in paper.window_tokens(position, sees.window) if s >= max(oldest, document)]
    picks = range(sees.n_entries) if sees.picks_BTP is None else sees.picks_BTP[b, t].tolist()
    n_visible = paper.visible_entries(position, sees.ratio)
    return tokens, [c for c in picks if c < n_visible and c * sees.ratio >= document]


def attend_by_hand(query_BTHK, window_BSK, entries_BCK, sees, sinks_H):
    """The same by the loops of the paper, query by query."""
    out = torch.zeros_like(query_BTHK)
    for b, t in np.ndindex(query_BTHK.shape[:2]):
        tokens, entries = seen_by_hand(sees, b, t)
        read_SK = torch.cat([window_BSK[b, tokens], entries_BCK[b, entries]])
        found = paper.core_attention(query_BTHK[b, t].numpy(), read_SK.numpy(), sinks_H.numpy())
        out[b, t] = torch.from_numpy(found)
    return out


# ---- attention ----


@both_tables
@picked_or_all
@pytest.mark.parametrize(("n_tokens", "n_past"), [(1, 0), (1, 6), (9, 3), (23, 0)])
def test_attention_agrees_with_the_loops_of_the_paper(n_tokens, n_past, n_picked, table):
    case = example(n_tokens, n_past, n_picked=n_picked)
    assert (table.attend(*case) - attend_by_hand(*case)).abs().max() < EXACT


@both_tables
@pytest.mark.parametrize("n_tokens", [63, 64, 65, 129])
def test_lengths_around_a_block_agree_with_the_loops(n_tokens, table):
    case = example(n_tokens, n_past=2, n_entries=9, n_picked=3)
    assert (table.attend(*case) - attend_by_hand(*case)).abs().max() < EXACT


@pytest.mark.slow
@both_tables
@pytest.mark.parametrize("seed", range(12))
def test_random_shapes_windows_and_documents_agree_with_the_loops(seed, table):
    case = CASES["attend"](np.random.default_rng(seed))
    expected = attend_by_hand(*case)
    assert (table.attend(*case) - expected).abs().max() < EXACT * max(1, expected.abs().max())


@both_tables
def test_a_pick_that_is_not_yet_visible_stands_for_none_whatever_else_is_picked(table):
    query, window, entries, sees, sinks = example(23)
    picks_BTP = normal(B, 23, 5, seed=4).argsort(-1)[..., :3].sort(-1).values  # no look at what is visible
    case = query, window, entries, sees._replace(picks_BTP=picks_BTP), sinks
    assert (table.attend(*case) - attend_by_hand(*case)).abs().max() < EXACT


@both_tables
def test_a_changed_token_moves_the_queries_whose_window_holds_it_and_no_other(table):
    query, window, entries, sees, sinks = example(23, n_past=4, n_entries=0)
    before = table.attend(query, window, entries, sees, sinks)
    for s in range(27):
        changed = window.clone()
        changed[:, s] += 1
        moved = (table.attend(query, changed, entries, sees, sinks) - before).abs()
        assert [t + 4 for t in range(23) if moved[:, t].max() > 0] == [t for t in range(s, s + WINDOW) if 4 <= t < 27]


def test_weights_and_the_share_of_the_sink_sum_to_one():
    query, window, entries, sees, sinks = example(9, n_picked=3)
    weight_BTHS = attention_weights(query, window, entries, sees, sinks)
    scores = torch.einsum("bthk,bsk->bths", query, torch.cat([window, entries], dim=1)) * K**-0.5
    scores = scores.masked_fill(~sees.map()[:, :, None], -torch.inf)
    sink = sinks.exp() / (sinks.exp() + scores.exp().sum(-1))
    assert (weight_BTHS.sum(-1) + sink - 1).abs().max() < EXACT
    assert (weight_BTHS >= 0).all() and (weight_BTHS[(~sees.map())[:, :, None].expand_as(weight_BTHS)] == 0).all()


def test_weights_are_the_softmax_with_a_sink_of_the_paper():
    query, window, entries, sees, sinks = example(13, n_picked=3)
    weight_BTHS = attention_weights(query, window, entries, sees, sinks)
    for b, t, h in [(0, 0, 1), (1, 7, 0), (1, 12, 2)]:
        tokens, picks = seen_by_hand(sees, b, t)
        read = torch.cat([window[b, tokens], entries[b, picks]])
        expected = paper.sink_softmax((read @ query[b, t, h] * K**-0.5).numpy(), sinks[h].item())
        places = tokens + [sees.n_window + c for c in picks]
        assert (weight_BTHS[b, t, h, places] - torch.from_numpy(expected)).abs().max() < EXACT


@both_tables
def test_a_sink_at_minus_infinity_is_ordinary_softmax(table):
    query, window, entries, sees, sinks = example(9)
    out = table.attend(query, window, entries, sees, torch.full_like(sinks, -torch.inf))
    every = torch.cat([window, entries], dim=1)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query.transpose(1, 2), *[every[:, None].expand(-1, H, -1, -1)] * 2, attn_mask=sees.map()[:, None]
    )
    assert (out - expected.transpose(1, 2)).abs().max() < EXACT


@both_tables
def test_a_large_sink_takes_everything(table):
    query, window, entries, sees, sinks = example(9)
    assert table.attend(query, window, entries, sees, torch.full_like(sinks, 1e4)).abs().max() == 0


@both_tables
def test_large_scores_stay_finite(table):
    query, window, entries, sees, sinks = example(9, n_picked=3)
    case = [part.requires_grad_() for part in (query * 1e5, window, entries, sinks)]
    out = table.attend(*case[:3], sees, case[3])
    assert out.isfinite().all() and out.abs().max() > 0.1
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out.sum(), case))


@both_tables
def test_the_order_of_the_entries_does_not_matter(table):
    query, window, entries, sees, sinks = example(9, n_past=20)
    assert sees.entry_map().all()
    mixed, whole = torch.tensor([3, 0, 4, 1, 2]), table.attend(query, window, entries, sees, sinks)
    assert (table.attend(query, window, entries[:, mixed], sees, sinks) - whole).abs().max() < EXACT
    picks_BTP = normal(B, 9, 5).argsort(-1)[..., :3]
    some, turned = (sees._replace(picks_BTP=picks) for picks in (picks_BTP, picks_BTP.flip(-1)))
    found = [table.attend(query, window, entries, part, sinks) for part in (some, turned)]
    assert (found[0] - found[1]).abs().max() < EXACT < (found[0] - whole).abs().max()


@both_tables
def test_picking_every_entry_is_reading_all_of_them(table):
    query, window, entries, sees, sinks = example(23)
    picked = sees._replace(picks_BTP=torch.arange(5).expand(B, 23, 5))
    difference = table.attend(query, window, entries, picked, sinks) - table.attend(query, window, entries, sees, sinks)
    assert difference.abs().max() < EXACT


@pytest.mark.slow
@both_tables
@pytest.mark.parametrize("n_picked", [None, 2], ids=["all entries", "picked entries"])
def test_the_gradient_of_attention_is_right(n_picked, table):
    query, window, entries, sees, sinks = example(7, n_past=1, n_entries=2, n_picked=n_picked, window=4)
    tensors = [part.requires_grad_() for part in (query, window, entries, sinks)]
    assert torch.autograd.gradcheck(lambda q, w, e, s: table.attend(q, w, e, sees, s), tensors)


@both_tables
def test_16_bit_queries_are_scored_in_float32_and_keep_their_dtype(table):
    query, window, entries, sees, sinks = example(9)
    narrow = [part.bfloat16() for part in (query, window, entries, sinks)]
    out = table.attend(*narrow[:3], sees, narrow[3])
    wide = [part.float() for part in narrow]
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, table.attend(*wide[:3], sees, wide[3]).bfloat16())


# ---- the indexer's loss ----


def index_example(n_tokens, n_past=0, n_picked=None, document_BT=None):
    """Arguments of `index_loss`: entries of 4 tokens of a row that begins with its first token."""
    n_entries = (n_past + n_tokens) // RATIO
    attended = example(n_tokens, n_past, n_entries, n_picked)
    sees = attended[3]._replace(document_BT=document_BT)
    indexed = normal(B, n_tokens, 5, 8, seed=7), normal(B, n_tokens, 5, seed=8), normal(B, n_entries, 8, seed=9)
    return (*attended[:3], sees, attended[4]), indexed


def index_losses_by_hand(attended, indexed):
    """`paper.index_loss` of each query that reads an entry."""
    query_BTHK, window_BSK, entries_BCK, sees, sinks_H = attended
    nats = []
    for b, t in np.ndindex(query_BTHK.shape[:2]):
        tokens, read = seen_by_hand(sees, b, t)
        if not read:
            continue
        keys_SK = torch.cat([window_BSK[b, tokens], entries_BCK[b, read]]).numpy()
        logits_HS = query_BTHK[b, t].numpy() @ keys_SK.T * query_BTHK.shape[-1] ** -0.5
        weight_HC = [paper.sink_softmax(row, sink)[len(tokens) :] for row, sink in zip(logits_HS, sinks_H.tolist())]
        score_C = paper.index_scores(*(part[b, t].numpy() for part in indexed[:2]), indexed[2][b].numpy())
        nats.append(paper.index_loss(score_C[read], np.array(weight_HC)))
    return nats


@both_tables
@picked_or_all
@pytest.mark.parametrize(("n_tokens", "n_past"), [(4, 0), (23, 0), (1, 30), (65, 3)])
def test_the_index_loss_is_the_mean_of_the_papers_over_the_queries_that_read_an_entry(
    n_tokens, n_past, n_picked, table
):
    attended, indexed = index_example(n_tokens, n_past, n_picked)
    nats = index_losses_by_hand(attended, indexed)
    assert abs(table.index_loss(attended, indexed).item() - sum(nats) / len(nats)) < EXACT


@both_tables
@picked_or_all
def test_queries_that_read_no_entry_of_their_own_document_do_not_count(n_picked, table):
    document_BT = torch.tensor([[0] * 11 + [11] * 2 + [13] * 57, [0] * 30 + [30] * 40])
    attended, indexed = index_example(70, n_picked=n_picked, document_BT=document_BT)
    nats = index_losses_by_hand(attended, indexed)
    reading = int(attended[3].entry_map().any(-1).sum())
    assert len(nats) == reading < 2 * 70 - 2 * (RATIO - 1)  # fewer than were each row one document
    assert abs(table.index_loss(attended, indexed).item() - sum(nats) / len(nats)) < EXACT


@both_tables
def test_where_no_query_reads_an_entry_the_index_loss_is_0(table):
    for n_tokens in (2, RATIO - 1):
        assert table.index_loss(*index_example(n_tokens)) == 0
    alone = torch.arange(20).expand(B, -1)  # each token a document of its own
    assert table.index_loss(*index_example(20, document_BT=alone)) == 0


@both_tables
def test_the_index_loss_teaches_the_indexer_and_not_the_attention(table):
    attended, indexed = index_example(23, n_picked=3)
    pupils = [part.requires_grad_() for part in indexed]
    teachers = [part.requires_grad_() for part in attended if isinstance(part, torch.Tensor)]
    gradients = torch.autograd.grad(table.index_loss(attended, indexed), pupils + teachers, allow_unused=True)
    assert all(gradient.abs().max() > 0 for gradient in gradients[:3])
    assert all(gradient is None for gradient in gradients[3:])


@pytest.mark.slow
@both_tables
@pytest.mark.parametrize("n_picked", [None, 2], ids=["all entries", "picked entries"])
def test_the_gradient_of_the_index_loss_is_right(n_picked, table):
    attended, indexed = index_example(5, n_past=7, n_picked=n_picked)
    tensors = [part.requires_grad_() for part in indexed]
    assert torch.autograd.gradcheck(lambda *given: table.index_loss(attended, given), tensors)


@both_tables
def test_scores_equal_to_the_log_of_the_attention_make_no_index_loss(table):
    query, window, entries, sees, sinks = example(20, n_past=20, n_entries=5)
    share_BTC = teacher(attention_weights(query, window, entries, sees, sinks)[..., 40:])
    said_BTC = share_BTC.log()
    said_BTC = said_BTC - said_BTC.amin() + 1  # positive: the ReLU lets it pass
    # One head an entry, whose key is the unit vector of that entry: the score is what the head weight says.
    unit = torch.eye(5, dtype=torch.float64)
    indexed = unit.expand(B, 20, 5, 5), said_BTC, unit.expand(B, 5, 5)
    assert abs(table.index_loss((query, window, entries, sees, sinks), indexed)) < 1e-15


def test_the_teacher_is_the_attention_of_all_heads_as_a_share_and_0_where_nothing_is_read():
    weight_BTHC = normal(2, 4, 3, 6).abs()
    weight_BTHC[1, 2] = 0
    share_BTC = teacher(weight_BTHC)
    assert (share_BTC[0, 1] - weight_BTHC[0, 1].sum(0) / weight_BTHC[0, 1].sum()).abs().max() < 1e-15
    total_BT = share_BTC.sum(-1)
    assert total_BT[1, 2] == 0 and (total_BT.flatten()[[0, 1, 2, 3, 4, 5, 7]] - 1).abs().max() < 1e-15
