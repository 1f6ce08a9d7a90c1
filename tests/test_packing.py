"""Several documents in one row: each computes as if it stood alone, whatever lies beside it."""

import pytest
import torch
from small import EXACT, TINY, both_tables, normal, off, small_model, token_ids

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


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [2, 13])
def test_a_packed_row_in_chunks_equals_one_pass(chunk):
    model, (ids_BT, document_BT, _) = small_model(TINY), pack((17, 2, 29, 20))
    cache, pieces = model.new_cache(), zip(ids_BT.split(chunk, dim=1), document_BT.split(chunk, dim=1))
    with torch.no_grad():
        whole = model.streams(ids_BT, model.new_cache(), document_BT)
        assert off(torch.cat([model.streams(ids, cache, first) for ids, first in pieces], dim=1), whole) < EXACT


def test_nothing_of_another_document_is_seen():
    model = small_model(TINY)
    ids_BT, document_BT, places = pack((17, 29, 20))
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
    """Kind: a mean over queries that cannot learn; it was divided by those that see no entry of their document."""
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


# ---- document starts that cannot be ----

MISPLACED = {
    "negative": ([0] * 12 + [-12] * 12, "document_BT = -12 for position 12 of row 0; it is from 0 to its position"),
    "in the future": ([0] * 12 + [24] * 12, "document_BT = 24 for position 12 of row 0; it is from 0 to its position"),
    "the first token's": ([1, *[0] * 23], "document_BT = 1 for position 0 of row 0; it is from 0 to its position"),
    "decreasing": ([0] * 12 + [12] * 6 + [0] * 6, "= 0 for position 18 of row 0; it is that of the token before, or"),
    "begun before": ([0] * 18 + [12] * 6, "= 12 for position 18 of row 0; it is that of the token before, or its own"),
    "off the grid": (
        [0] * 9 + [9] * 15,
        "= 9 for position 10 of row 0; it is a multiple of 12, unless",
    ),
}
WRONG_KIND = {
    "floats": (
        torch.zeros(1, 24),
        "document_BT: torch.float32 holds no positions; give a tensor of int64 or int32 integers",
    ),
    "booleans": (torch.zeros(1, 24, dtype=torch.bool), "document_BT: torch.bool holds no positions"),
    "a list": ([[0] * 24], "document_BT: list holds no positions; give a tensor of int64 or int32 integers"),
    "too short": (torch.zeros(1, 23, dtype=torch.int64), r"document_BT: shape \(1, 23\); .* shape is \(1, 24\)"),
    "one row for all": (torch.zeros(24, dtype=torch.int64), r"document_BT: shape \(24,\); .* shape is \(1, 24\)"),
    "two rows": (torch.zeros(2, 24, dtype=torch.int64), r"document_BT: shape \(2, 24\); .* shape is \(1, 24\)"),
}
REFUSED = {name: (torch.tensor([starts]), words) for name, (starts, words) in MISPLACED.items()} | WRONG_KIND


@pytest.mark.parametrize("name", REFUSED)
def test_document_starts_that_cannot_be_are_refused_wherever_a_model_takes_them(name):
    """Kind: a refusal names field, value and what is right; before, all of these ran, some into losses of NaN."""
    (document_BT, words), model, ids_BT = REFUSED[name], small_model(TINY), token_ids(1, 24)
    streams_BTND, cache = model.streams(ids_BT, model.new_cache()).detach(), model.new_cache()
    drafts = model.new_draft_cache()
    for call in (
        lambda: model.loss(ids_BT, document_BT),
        lambda: model.streams(ids_BT, cache, document_BT),
        lambda: model.mtp_logits(streams_BTND, ids_BT, document_BT),
        lambda: model.draft(streams_BTND, ids_BT, drafts, document_BT),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    assert cache.n_tokens == drafts.n_tokens == 0


def test_later_chunks_are_checked_at_their_own_positions():
    """Kind: a refusal; the row that is refused in one piece is refused in two, and a right one passes in both."""
    model, ids_BT = small_model(TINY), token_ids(2, 48)
    right_BT = torch.tensor([[0] * 24 + [24] * 24, [0] * 48])
    cache = model.new_cache(2)
    model.streams(ids_BT[:, :30], cache, right_BT[:, :30])
    with pytest.raises(ValueError, match="document_BT = 31 for position 30 of row 1; it is from 0 to its position"):
        model.streams(ids_BT[:, 30:], cache, torch.tensor([[24] * 18, [31] * 18]))
    with pytest.raises(ValueError, match="document_BT = 25 for position 30 of row 0; it is a multiple of 12"):
        model.streams(ids_BT[:, 30:], cache, torch.tensor([[25] * 18, [0] * 18]))
    assert cache.n_tokens == 30
    model.streams(ids_BT[:, 30:], cache, right_BT[:, 30:])
    assert cache.n_tokens == 48


@pytest.mark.slow
@both_tables
def test_what_the_check_lets_through_has_finite_losses_and_gradients(table):
    """Kind: random packings, of one-token documents alone as well, whose losses are 0: nothing has a target there."""
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        lengths = torch.randint(1, 2 if seed % 4 == 0 else 30, (5,), generator=draw).tolist()
        ids_BT, document_BT, _ = pack(lengths, seed=seed)
        model = small_model(TINY).use(table)
        losses = model.loss(ids_BT, document_BT)
        losses.total.backward()
        assert losses.total.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        if max(lengths) == 1:
            assert losses.main == losses.mtp == losses.indexer == 0
