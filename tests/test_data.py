"""Batches: the same on every run, nothing lost on the way, each document whole and apart from the others."""

import pytest
import torch

from minidsv4.train.data import Batch, Batches, Mixture, Packed, counted, drawn, eval_rows, n_targets

# --- batches ---

DOCUMENTS = [list(range(10 * i, 10 * i + 3 + i)) for i in range(1, 12)]  # of pairwise different lengths and tokens


def test_rows_hold_every_document_whole_between_bos_and_eos_until_the_last_row_is_full():
    batches = Batches(DOCUMENTS, batch_size=2, length=6, seed=0)
    stream = batches.rows.flatten().tolist()
    n_tokens = sum(len(ids) + 2 for ids in DOCUMENTS)
    assert batches.rows.shape == (n_tokens // 7, 7)
    text = " ".join(map(str, [*stream, 0]))
    whole = [" ".join(map(str, [0, *ids, 1])) in text for ids in DOCUMENTS]
    assert whole.count(False) <= 1  # the last one is cut


@pytest.mark.parametrize("batch_size", [4, 5, 7])
def test_every_row_of_batches_is_drawn_once_before_any_is_drawn_again(batch_size):
    """Kind: nothing is left out; before, the last rows of an epoch that filled no batch were."""
    batches = Batches(DOCUMENTS, batch_size, length=4, seed=0)
    wanted, n = sorted(batches.rows.tolist()), len(batches.rows)
    drawn = torch.cat([batches.at(step) for step in range(n)]).tolist()
    epochs = [drawn[number * n : (number + 1) * n] for number in range(batch_size)]
    assert n == 24 and all(sorted(epoch) == wanted for epoch in epochs) and epochs[0] != epochs[1]


def test_a_step_has_the_same_batch_whenever_it_is_asked_for_and_the_seed_changes_it():
    one, two = (Batches(DOCUMENTS, batch_size=2, length=6, seed=4) for _ in range(2))
    later = [two.at(step) for step in range(20)]
    assert torch.equal(one.at(17), later[17]) and one.at(17).shape == (2, 7)
    assert any(not torch.equal(Batches(DOCUMENTS, 2, 6, seed=5).at(step), later[step]) for step in range(3))


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, None])
def test_sizes_and_steps_that_count_nothing_are_refused(wrong):
    """Kind: a count that divides by 0, gives no rows, or takes them from the end in silence."""
    for name, sizes in {"batch_size": (wrong, 6), "length": (2, wrong)}.items():
        with pytest.raises(ValueError, match=rf"batches: {name} = {wrong} cannot be; .*from 1"):
            Batches(DOCUMENTS, *sizes, seed=0)
    packed = Packed(DOCUMENTS, 6, seed=0)
    with pytest.raises(ValueError, match=rf"mixture: batch_size = {wrong} cannot be; .*from 1"):
        Mixture([packed], (1,), wrong, seed=0)
    with pytest.raises(ValueError, match=rf"eval_rows: length = {wrong} cannot be; .*from 1"):
        next(eval_rows(DOCUMENTS, wrong))
    for batches in (Batches(DOCUMENTS, 2, 6, seed=0), Mixture([packed], (1,), 2, seed=0)):
        with pytest.raises(ValueError, match="step = -1 cannot be; .*from 0"):
            batches.at(-1)


def test_too_few_tokens_for_a_batch_are_refused_with_a_sentence():
    with pytest.raises(ValueError, match="batch_size = 50 needs 350 tokens"):
        Batches(DOCUMENTS, batch_size=50, length=6, seed=0)


def test_rows_for_measuring_predict_every_token_once_and_in_order():
    rows = list(eval_rows([[5, 6, 7, 8, 9], [], [4], [2, 3]], length=2))
    assert rows == [[0, 5, 6], [6, 7, 8], [8, 9], [0, 4], [0, 2, 3]]


# --- rows of several documents, and mixtures ---


@pytest.mark.parametrize("align", [1, 4, 12])
def test_packed_documents_begin_at_multiples_and_come_back_whole(align):
    packed = Packed(DOCUMENTS, length=24, seed=0, align=align)
    ids_BT, document_BT = packed.rows
    assert ids_BT.shape == document_BT.shape == (len(packed), 25)
    found = [[]]
    for ids, first in zip(ids_BT.tolist(), document_BT.tolist()):
        for place, token in enumerate(ids):
            if token == 0:
                assert first[place] == place and place % align == 0
                found.append([])
            found[-1].append(token)
    whole = [ids[1 : ids.index(1)] for ids in found if 1 in ids and ids[0] == 0]
    assert len(whole) >= len(DOCUMENTS) - 4 and all(ids in DOCUMENTS for ids in whole)


def test_padding_counts_for_nothing_and_every_token_of_a_document_but_its_first_does():
    packed = Packed(DOCUMENTS, length=24, seed=1, align=12)
    ids_BT, document_BT = packed.rows
    counts = counted(document_BT)
    for ids, first, count in zip(ids_BT.tolist(), document_BT.tolist(), counts.tolist()):
        inside = False
        for place, token in enumerate(ids):
            inside = token == 0 or (place == 0 and token != 0) or (inside and ids[place - 1] != 1)
            wanted = place > 0 and token != 0 and inside
            assert place == 0 or count[place - 1] == wanted, (ids, place)
            assert first[place] == place or inside
    assert 0 < int(counts.sum()) < counts.numel()


def test_targets_are_counted_without_first_tokens_and_padding():
    """Kind: counts equal those by hand; before, every position of a row but the first counted."""
    ids_BT = torch.arange(16).view(2, 8)
    document_BT = torch.tensor([[0, 0, 0, 3, 4, 4, 6, 7], [0] * 8])  # padding at 3, 6 and 7
    assert n_targets(ids_BT) == 14 and n_targets(Batch(ids_BT, document_BT)) == 2 + 1 + 7


def test_without_gaps_packed_rows_are_those_of_plain_batches():
    packed, plain = Packed(DOCUMENTS, length=6, seed=0), Batches(DOCUMENTS, batch_size=2, length=6, seed=0)
    n_tokens = sum(len(ids) + 2 for ids in DOCUMENTS)
    assert n_tokens // 7 <= len(packed) and plain.rows.flatten().tolist()[:6] == packed.rows.ids_BT[0].tolist()[:6]


def test_rows_are_drawn_once_before_any_is_drawn_again():
    packed = Packed(DOCUMENTS, length=6, seed=3)
    n = len(packed)
    rows = drawn(range(3 * n), n, seed=3)
    assert all(sorted(rows[i * n : (i + 1) * n]) == list(range(n)) for i in range(3))
    assert rows[:n] != rows[n : 2 * n] and drawn([n + 2], n, seed=3) == [rows[n + 2]]


def sources():
    small, large = DOCUMENTS[:6], [[token + 500 for token in ids] for ids in DOCUMENTS]
    return [Packed(documents, length=6, seed=0) for documents in (small, large)]


def test_a_mixture_holds_its_shares_exactly_and_draws_every_row_before_any_again():
    mixture = Mixture(sources(), (3, 2), batch_size=4, seed=0)
    rows = [mixture.row(number).ids_BT.tolist() for number in range(50)]
    second = [max(row) > 500 for row in rows]
    assert all(sum(second[i : i + 5]) == 2 for i in range(0, 50, 5))
    assert len({tuple(second[i : i + 5]) for i in range(0, 50, 5)}) > 2  # in changing rows
    n_small = len(mixture.sources[0])
    of_first = [tuple(row) for row, large in zip(rows, second) if not large]
    assert len(set(of_first[:n_small])) == n_small


def test_a_step_of_a_mixture_needs_no_earlier_call_and_holds_the_next_rows():
    one, two = (Mixture(sources(), (3, 2), batch_size=4, seed=0) for _ in range(2))
    later = [two.at(step) for step in range(9)]
    assert torch.equal(one.at(7).ids_BT, later[7].ids_BT) and torch.equal(one.at(7).document_BT, later[7].document_BT)
    assert torch.equal(later[7].ids_BT[1], one.row(29).ids_BT)
    other = Mixture(sources(), (3, 2), batch_size=4, seed=1)
    assert any(not torch.equal(other.at(step).ids_BT, later[step].ids_BT) for step in range(9))


def test_rows_and_mixtures_that_cannot_be_are_refused_with_a_sentence():
    with pytest.raises(ValueError, match="do not fill a row of 5001"):
        Packed(DOCUMENTS, length=5000, seed=0)
    with pytest.raises(ValueError, match="align = 0"):
        Packed(DOCUMENTS, length=6, seed=0, align=0)
    for shares in ((1,), (0, 0), (2, -1)):
        with pytest.raises(ValueError, match="do not fit 2 sources"):
            Mixture(sources(), shares, batch_size=2, seed=0)
