"""Who sees what: the maps by the loops of the paper, documents, picks, and parts that show what the whole shows."""

import numpy as np
import pytest
import torch
from op_cases import visibility, with_picks
from small import CPU, normal, one_document

from minidsv4 import paper
from minidsv4.visibility import Visibility, finished

many = pytest.mark.parametrize("seed", range(25))


def drawn(seed, n_batch=2):
    draw = np.random.default_rng(seed)
    return with_picks(draw, visibility(draw, n_batch), n_batch)


def document_start(sees, b, t):
    return 0 if sees.document_BT is None else int(sees.document_BT[b, t])


def map_by_hand(sees, n_batch=2):
    """The tokens and the entries that each query sees, one by one."""
    seen = torch.zeros(n_batch, sees.n_queries, sees.n_window + sees.n_entries, dtype=torch.bool)
    oldest = sees.start + sees.n_queries - sees.n_window
    for b in range(n_batch):
        for t in range(sees.n_queries):
            position, document = sees.start + t, document_start(sees, b, t)
            for token in paper.window_tokens(position, sees.window):
                if token >= max(document, oldest):
                    seen[b, t, token - oldest] = True
            picks = range(sees.n_entries) if sees.picks_BTP is None else sees.picks_BTP[b, t].tolist()
            for entry in picks:
                whole = entry < paper.visible_entries(position, sees.ratio)
                seen[b, t, sees.n_window + entry] = whole and entry * sees.ratio >= document
    return seen


@pytest.mark.slow
@many
def test_the_map_is_that_of_the_loops_whatever_window_past_picks_and_documents(seed):
    sees = drawn(seed)
    assert torch.equal(sees.map().expand(2, -1, -1), map_by_hand(sees))


@many
def test_a_part_shows_its_queries_what_the_whole_shows_them_and_leaves_out_what_none_of_them_sees(seed):
    sees = drawn(seed)
    first = sees.n_queries // 3
    stop = min(first + 40, sees.n_queries)
    part, whole = sees.part(first, stop), sees.map()[:, first:stop]
    end = sees.n_window - (sees.n_queries - stop)  # of the tokens up to the part's newest
    tokens = whole[..., end - part.n_window : end]
    assert torch.equal(part.map(), torch.cat([tokens, whole[..., sees.n_window :]], dim=-1))
    assert not whole[..., : end - part.n_window].any() and not whole[..., end : sees.n_window].any()


def test_a_query_sees_its_window_its_own_token_included_and_nothing_else():
    seen = one_document(23, start=4, window=7).token_map()[0]
    assert seen.shape == (23, 27)
    for s in range(27):
        assert [t + 4 for t in range(23) if seen[t, s]] == [t for t in range(s, s + 7) if 4 <= t < 27]


def test_an_entry_whose_last_token_is_the_query_itself_is_visible_to_it():
    assert [finished(position, 3) for position in range(7)] == [0, 0, 1, 1, 1, 2, 2]
    assert finished(torch.arange(10, 17), 3).tolist() == [3, 4, 4, 4, 5, 5, 5]
    for position in range(40):
        assert finished(position, 4) == paper.visible_entries(position, 4)
    sees = one_document(7, start=10, ratio=3, n_entries=5)
    assert sees.entry_map()[0].sum(-1).tolist() == [3, 4, 4, 4, 5, 5, 5]
    assert [sees.n_visible(query) for query in range(7)] == [3, 4, 4, 4, 5, 5, 5]


def test_no_more_entries_are_visible_than_there_are():
    sees = one_document(7, start=10, ratio=3, n_entries=4)
    assert [sees.n_visible(query) for query in range(7)] == sees.entry_map()[0].sum(-1).tolist() == [3, *[4] * 6]


def test_nothing_of_an_earlier_document_is_seen_nor_an_entry_that_begins_in_one():
    document_BT = torch.tensor([[0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4]])
    sees = Visibility(0, 12, window=6, n_window=12, device=CPU, ratio=3, n_entries=4, document_BT=document_BT)
    tokens, entries = sees.token_map()[0], sees.entry_map()[0]
    assert tokens.sum(-1).tolist() == [1, 2, 3, 4, 1, 2, 3, 4, 5, 6, 6, 6]
    assert [row.nonzero().flatten().tolist() for row in entries] == [[], [], [0], [0], *[[]] * 4, [2], [2], [2], [2, 3]]


def test_a_pick_that_is_hidden_stands_for_none_whatever_else_is_picked():
    picks_BTP = torch.tensor([[[0, 3], [1, 2], [0, 1]]])
    sees = one_document(3, start=3, ratio=2, n_entries=4, picks_BTP=picks_BTP)  # 2, 2 and 3 are visible
    assert sees.entry_map()[0].int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0]]


def test_whether_single_entries_are_visible_is_told_for_each_query_of_its_own():
    sees = drawn(3)
    entry = normal(2, sees.n_queries, 4).mul(9).long().clamp(0, max(sees.n_entries - 1, 0))
    every = sees._replace(picks_BTP=None).entry_map().expand(2, -1, -1)
    assert torch.equal(sees.visible(entry), every.gather(-1, entry))
