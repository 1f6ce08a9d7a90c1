"""Several documents in one row: each computes as if it stood alone, whatever lies beside it."""

import pytest
import torch
from small import EXACT, TINY, normal, off, small_model, token_ids

from minidsv4.model.losses import NO_TARGET, targets

ALIGN = 12  # lcm of the ratios 3 and 12 of the tiny config


def pack(lengths, align=ALIGN, seed=0):
    """Documents of these lengths in one row each at a multiple of `align`: ids [1, T], first [1, T], their places."""
    places, stop = [], 0
    for length in lengths:
        start = -(-stop // align) * align
        stop = start + length
        places.append(slice(start, stop))
    ids_BT, document_BT = token_ids(1, stop, seed), torch.arange(stop)[None].clone()  # padding: documents of one token
    for place in places:
        document_BT[:, place] = place.start
    return ids_BT, document_BT, places


@pytest.mark.parametrize("lengths", [(12, 24), (5, 40, 1, 13), (61, 2, 37), (3, 11, 12, 13, 70)])
def test_a_document_has_the_same_logits_alone_and_packed(lengths):
    model = small_model(TINY)
    ids_BT, document_BT, places = pack(lengths)
    with torch.no_grad():
        packed = model.logits(model.streams(ids_BT, model.new_cache(), document_BT))
        for place in places:
            assert off(packed[:, place], model(ids_BT[:, place])) < EXACT


def test_rows_of_a_batch_may_be_packed_differently():
    model = small_model(TINY)
    rows = [pack((5, 40, 13), seed=1), pack((30, 37), seed=2)]
    n_tokens = min(ids_BT.shape[1] for ids_BT, *_ in rows)
    ids_BT, document_BT = (torch.cat([row[part][:, :n_tokens] for row in rows]) for part in (0, 1))
    with torch.no_grad():
        both = model.streams(ids_BT, model.new_cache(2), document_BT)
        for b in range(2):
            alone = model.streams(ids_BT[b : b + 1], model.new_cache(), document_BT[b : b + 1])
            assert off(both[b : b + 1], alone) < EXACT


@pytest.mark.parametrize("align", [1, 5, ALIGN], ids=["begins anywhere", "begins off the entries", "aligned"])
@pytest.mark.parametrize("chunk", [2, 13])
def test_a_packed_row_in_chunks_equals_one_pass(align, chunk):
    model, (ids_BT, document_BT, _) = small_model(TINY), pack((17, 2, 29, 20), align)
    cache, pieces = model.new_cache(), zip(ids_BT.split(chunk, dim=1), document_BT.split(chunk, dim=1))
    with torch.no_grad():
        whole = model.streams(ids_BT, model.new_cache(), document_BT)
        assert off(torch.cat([model.streams(ids, cache, first) for ids, first in pieces], dim=1), whole) < EXACT


@pytest.mark.parametrize("align", [1, 5, ALIGN], ids=["begins anywhere", "begins off the entries", "aligned"])
def test_nothing_of_another_document_is_seen(align):
    model = small_model(TINY)
    ids_BT, document_BT, places = pack((17, 29, 20), align)
    changed = ids_BT.clone()
    changed[:, places[1]] = token_ids(1, 29, seed=9)
    with torch.no_grad():
        before, after = (model.streams(ids, model.new_cache(), document_BT) for ids in (ids_BT, changed))
    for place, same in zip(places, (True, False, True)):
        assert ((before - after)[:, place].abs().max() < EXACT) == same


def test_losses_of_a_packed_row_are_those_of_its_documents():
    model, lengths = small_model(TINY), (24, 36)  # no padding
    ids_BT, document_BT, places = pack(lengths)
    packed, alone = model.loss(ids_BT, document_BT), [model.loss(ids_BT[:, place]) for place in places]
    for name, ahead in (("main", 1), ("mtp", 2)):
        n_targets = [length - ahead for length in lengths]
        wanted = sum(n * getattr(loss, name) for n, loss in zip(n_targets, alone)) / sum(n_targets)
        assert off(getattr(packed, name), wanted.detach()) < EXACT


def test_the_indexers_loss_of_a_packed_row_is_that_of_its_documents():
    model, lengths, ratio = small_model(TINY), (24, 36), 3
    ids_BT, document_BT, places = pack(lengths)
    packed, alone = model.loss(ids_BT, document_BT).indexer, [model.loss(ids_BT[:, place]).indexer for place in places]
    seeing = [length - (ratio - 1) for length in lengths]  # a document's first queries see no entry, and have no loss
    summed = sum(n * loss for n, loss in zip(seeing, alone))
    assert off(packed, (summed / sum(seeing)).detach()) < EXACT  # the mean of the queries that see an entry of theirs


def test_gradients_of_a_packed_row_are_those_of_its_documents():
    model, lengths = small_model(TINY), (24, 36)
    ids_BT, document_BT, places = pack(lengths)
    pull_BTV = normal(1, sum(lengths), TINY.vocab_size, seed=3)

    def gradients(rows):
        model.zero_grad()
        for place, first in rows:
            logits_BTV = model.logits(model.streams(ids_BT[:, place], model.new_cache(), first))
            (logits_BTV * pull_BTV[:, place]).sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    packed, alone = gradients([(slice(None), document_BT)]), gradients([(place, None) for place in places])
    assert packed.keys() == alone.keys() and max(off(packed[name], alone[name]) for name in alone) < EXACT


def test_no_token_is_predicted_from_another_document():
    ids_BT, document_BT = torch.arange(10, 16)[None], torch.tensor([[0, 0, 0, 3, 3, 3]])
    assert targets(ids_BT, document_BT, 1).tolist() == [[11, 12, NO_TARGET, 14, 15]]
    assert targets(ids_BT, document_BT, 2).tolist() == [[12, NO_TARGET, NO_TARGET, 15]]
    assert torch.equal(targets(ids_BT, None, 2), ids_BT[:, 2:])
