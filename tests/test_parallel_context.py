"""One row cut over real ranks against the same row on one: logits, gradients, bytes; and what must not be left out."""

import functools
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import EXACT, TINY, assert_same_gradients, normal, off, small_model, token_ids
from test_packing import pack

from minidsv4.model.model import Model
from minidsv4.parallel import context, run_ranks, sum_gradients
from minidsv4.parallel.context import Partition, raw_reach, select_and_pad, sent_bytes, window_reach
from minidsv4.parallel.transport import Transport

CONFIGS = (  # window and ratios that divide nothing; a window of the query alone; a row of one doubly wide window
    TINY,
    TINY.replace(sliding_window=1, index_topk=2),
    TINY.replace(compress_ratios=(0, 4, 8, 4, 0), sliding_window=11),
    TINY.replace(compress_ratios=(0, 6, 24, 6, 0), layer_types=TINY.layer_types),  # longer than the row
)
LONG, SHORT = (5, 40, 1, 13, 12, 2), (3, 1, 2, 1, 29, 3)  # documents; with 3 tokens an entry, most of SHORT have none


def draw(seed, low, high, n=1):
    return torch.randint(low, high, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def cut_at_random(n_tokens, n_ranks, seed):
    """Lengths from 1 that add up, many of them short."""
    order = torch.randperm(n_tokens - 1, generator=torch.Generator().manual_seed(seed))[: n_ranks - 1] + 1
    edges = [0, *sorted(order.tolist()), n_tokens]
    return tuple(b - a for a, b in zip(edges, edges[1:]))


def random_case(n_ranks, seed):
    """(config, ids, first, lengths): one document or two rows of documents, begun on the grid of entries."""
    config = CONFIGS[seed % 3]
    if seed % 4 == 0:
        ids_BT, document_BT = token_ids(1, draw(seed, 40, 80)[0], seed), None
    else:
        rows = [pack(draw(seed + row, 1, 30, n=5), config.document_grid, seed + row) for row in (0, 50)]
        n_tokens = min(ids_BT.shape[1] for ids_BT, *_ in rows)
        ids_BT, document_BT = (torch.cat([row[part][:, :n_tokens] for row in rows]) for part in (0, 1))
    return config, ids_BT, document_BT, cut_at_random(ids_BT.shape[1], n_ranks, seed)


def chosen_cases(n_ranks):
    """Short documents; borders where documents end, on and off the grid; ranks with less than any window."""
    long, short = pack(LONG), pack(SHORT)
    ends = [5, 12, 59, 77][: n_ranks - 1]  # where documents of LONG end or begin
    edges = [0, *ends, long[0].shape[1]]
    return [
        (TINY, *long[:2], tuple(b - a for a, b in zip(edges, edges[1:]))),
        (TINY, *short[:2], cut_at_random(short[0].shape[1], n_ranks, seed=3)),
        (TINY, token_ids(2, 67), None, {1: (67,), 2: (2, 65), 4: (40, 1, 2, 24)}[n_ranks]),
        (TINY, token_ids(2, 68), None, (68 // n_ranks,) * n_ranks),  # 17 tokens a rank: no multiple of 3 or 12
        (TINY, token_ids(2, 8), None, {1: (8,), 2: (3, 5), 4: (2, 1, 4, 1)}[n_ranks]),  # no entry of 12 anywhere
        (CONFIGS[3], token_ids(1, 5), None, {1: (5,), 2: (2, 3), 4: (1, 2, 1, 1)}[n_ranks]),
    ]


def all_cases(n_ranks):
    return chosen_cases(n_ranks) + [random_case(n_ranks, seed) for seed in range(6)]


def stretch_of(lengths, rank):
    return slice(*Partition(lengths).stretch(rank))


def model_of(config):
    """One model for all cases of a config: making it costs more than running it."""
    return numbered_model(CONFIGS.index(config))


@functools.cache
def numbered_model(number):
    return small_model(CONFIGS[number])


def on_rank(group, config, ids_BT, document_BT, lengths):
    """This rank's logits, gradients of all parameters, and bytes sent forwards and backwards."""
    part, model, transport = stretch_of(lengths, group.rank()), model_of(config), Transport(group)
    first = None if document_BT is None else document_BT[:, part]
    model.zero_grad()
    logits = context.context_parallel_logits(model, ids_BT[:, part], group, first, transport=transport)
    forwards = transport.sent_bytes
    (logits * upstream(ids_BT, config)[:, part]).sum().backward()
    backwards = transport.sent_bytes - forwards
    sum_gradients(model, group)
    return logits.detach(), gradients(model), forwards, backwards


def upstream(ids_BT, config):
    """The gradient that comes from above."""
    return normal(*ids_BT.shape, config.vocab_size, seed=3)


def gradients(model):
    """Of all parameters, None included."""
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


# --- mutants: what a rank could leave out ---


def blanked(before, n_missing):
    """Raw series whose first tokens say nothing: value 0 and a gate of -inf."""
    values, gates = before.chunk(2, dim=-1)
    known = (torch.arange(before.shape[1]) >= n_missing)[:, None]
    return torch.cat([values.where(known, 0), gates.where(known, -torch.inf)], dim=-1)


def only_m_raw_tokens(communicator, new, reach, right=context.Communicator.halo):
    before = right(communicator, new, reach)
    overlapped = reach(1002) == 3  # in TINY a window needs 6 tokens there, and a window of 12 tokens as many
    return blanked(before, before.shape[1] - 3) if overlapped else before


def no_window_before(series, new, right=context.RawHaloSeries.append):
    out = right(series, new)
    series.memory.previous.drop(len(series.memory.previous))
    return out


def nothing_from_further_back(communicator, new, reach, right=context.Communicator.halo):
    before = right(communicator, new, reach)
    rank = communicator.transport.rank
    partition = communicator.partition
    n_near = partition.lengths[rank - 1] if rank else 0
    far = torch.arange(before.shape[1])[:, None] < before.shape[1] - n_near
    return before.masked_fill(far, 0)


def own_positions(model, *stretch, right=Model.positions):
    kinds = right(model, *stretch)
    for positions in {id(positions): positions for positions in kinds.values()}.values():
        positions.turn_TR = positions.turn_TR / positions.turn_TR[:1]
    return kinds


MUTANTS = {
    "the overlap's window before is forgotten": (context.RawHaloSeries, "append", no_window_before),
    "only m raw tokens instead of 2m - 1": (context.Communicator, "halo", only_m_raw_tokens),
    "a window entry too few": (context, "window_reach", lambda start, window: min(start, window - 2)),
    "nothing from further back than the neighbour": (context.Communicator, "halo", nothing_from_further_back),
    "padding stays where it is": (context, "select_and_pad", lambda every, _, n: every.flatten(0, 1)[:n]),
    "positions count from the rank's own start": (Model, "positions", own_positions),
}
OFF_GRID, ON_GRID = (20, 2, 3, 42), (24, 12, 3, 28)  # borders inside of entries, and between them (m = 3)
ENOUGH_ON_GRID = "only m raw tokens instead of 2m - 1"


def with_mutants(group, lengths, names):
    """This rank's logits with each of these mutants in place; "none" leaves everything as it is."""
    part, model, ids_BT = stretch_of(lengths, group.rank()), model_of(TINY), token_ids(1, sum(lengths))
    changes = {"none": (context, "Partition", Partition), **MUTANTS}
    found = {}
    with torch.no_grad():
        for name in names:
            with patch.object(*changes[name]):
                found[name] = context.context_parallel_logits(model, ids_BT[:, part], group)
    return found


# --- mistakes ---


def refusals(group):
    """What a rank is told for each mistake that one rank or all make."""
    rank, model, ids_BT = group.rank(), model_of(TINY), token_ids(1, 6)
    document_BT, start = torch.zeros_like(ids_BT), 6 * group.rank()
    one = {
        "no tokens": (ids_BT[:, :0] if rank == 1 else ids_BT, None),
        "no token id": (ids_BT + 61 if rank == 2 else ids_BT, None),
        "batch": (ids_BT.repeat(2, 1) if rank == 3 else ids_BT, None),
        "documents": (ids_BT, document_BT if rank == 0 else None),
        "all wrong": (ids_BT + 61, None),
        "shape": (ids_BT, document_BT[:, 1:]),
        "place": (ids_BT, document_BT + (start + 3 if rank == 1 else start)),
    }
    return {name: refusal(model, group, *tokens) for name, tokens in one.items()}


def refusal(model, group, ids_BT, document_BT):
    try:
        context.context_parallel_streams(model, ids_BT, group, document_BT)
    except ValueError as error:
        return str(error)


# --- everything in one start of the ranks ---


def mtp_case(n_ranks):
    ids_BT, document_BT, _ = pack((30, 2, 13))
    return TINY, ids_BT, document_BT, cut_at_random(ids_BT.shape[1] - 1, n_ranks, seed=7)


def mtp_on_rank(group):
    """The MTP block's logits for this rank's positions i, from its tokens i and i + 1; and summed gradients."""
    config, ids_BT, document_BT, lengths = mtp_case(group.size())
    part, model = stretch_of(lengths, group.rank()), model_of(config)
    first, now, later = document_BT[:, part], ids_BT[:, :-1][:, part], ids_BT[:, 1:][:, part]
    model.zero_grad()
    streams_BTND = context.context_parallel_streams(model, now, group, first)
    logits = context.context_parallel_mtp_logits(model, streams_BTND, later, group, first)
    both = model.logits(streams_BTND) + 2 * logits
    (both * upstream(ids_BT[:, :-1], config)[:, part]).sum().backward()
    sum_gradients(model, group)
    return logits.detach(), gradients(model)


def work(group):
    found = {"cases": [on_rank(group, *case) for case in all_cases(group.size())], "mtp": mtp_on_rank(group)}
    if group.size() == 4:
        found["off grid"] = with_mutants(group, OFF_GRID, ["none", *MUTANTS])
        found["on grid"] = with_mutants(group, ON_GRID, [ENOUGH_ON_GRID])
        found["refusals"] = refusals(group)
    return found


@functools.cache
def started(n_ranks):
    """What each of so many ranks found."""
    return run_ranks(work, n_ranks, timeout=120)


@functools.cache
def expected(n_ranks):
    """Logits and gradients of one process, case by case."""
    found = []
    for config, ids_BT, document_BT, _ in all_cases(n_ranks):
        model = model_of(config)
        model.zero_grad()
        logits = model.logits(model.streams(ids_BT, model.new_cache(len(ids_BT)), document_BT))
        (logits * upstream(ids_BT, config)).sum().backward()
        found.append((logits.detach(), gradients(model)))
    return found


N_RANKS = pytest.mark.parametrize("n_ranks", [1, 2, pytest.param(4, marks=pytest.mark.slow)])


@pytest.mark.slow
@N_RANKS
def test_logits_are_those_of_one_process_for_all_packings_and_cuts(n_ranks):
    for number, (logits, _) in enumerate(expected(n_ranks)):
        ours = torch.cat([found["cases"][number][0] for found in started(n_ranks)], dim=1)
        assert off(ours, logits) < EXACT, (number, all_cases(n_ranks)[number][3])


@pytest.mark.slow
@N_RANKS
def test_gradients_summed_over_ranks_are_those_of_one_process_for_every_parameter(n_ranks):
    """Kind: parameters without a gradient on some ranks, where ranks would wait for each other or disagree."""
    for number, (_, gradients) in enumerate(expected(n_ranks)):
        for found in started(n_ranks):
            assert_same_gradients(found["cases"][number][1], gradients)


def test_the_cases_hold_what_is_hard():
    """Entries beyond the picks, documents without an entry, borders on document ends, stretches below m and window."""
    cases = [case for n_ranks in (2, 4) for case in all_cases(n_ranks)]
    assert any(ids_BT.shape[1] // 3 > 2 * config.index_topk for config, ids_BT, *_ in cases)
    starts = [set(Partition(lengths).stretch(rank)[0] for rank in range(1, len(lengths))) for *_, lengths in cases]
    begins = [set() if document_BT is None else set(document_BT.flatten().tolist()) for _, _, document_BT, _ in cases]
    assert sum(bool(border & begin) for border, begin in zip(starts, begins)) > 2
    assert any(start % 3 and start % 12 for border in starts for start in border)
    assert any(min(lengths) < 3 for *_, lengths in cases) and any(sum(lengths) % 12 for *_, lengths in cases)


@pytest.mark.slow
@N_RANKS
def test_the_mtp_block_is_cut_like_the_model_and_takes_the_next_ranks_first_token(n_ranks):
    config, ids_BT, document_BT, _ = mtp_case(n_ranks)
    model = model_of(config)
    model.zero_grad()
    streams_BTND = model.streams(ids_BT, model.new_cache(), document_BT)[:, :-1]
    logits = model.mtp_logits(streams_BTND, ids_BT[:, 1:], document_BT[:, :-1])
    both = model.logits(streams_BTND) + 2 * logits
    (both * upstream(ids_BT[:, :-1], config)).sum().backward()
    assert off(torch.cat([found["mtp"][0] for found in started(n_ranks)], dim=1), logits.detach()) < EXACT
    for found in started(n_ranks):
        assert_same_gradients(found["mtp"][1], gradients(model))


@N_RANKS
def test_bytes_sent_are_those_of_the_closed_form_and_in_backward_the_same_without_the_indexers(n_ranks):
    for number, (config, ids_BT, _, lengths) in enumerate(all_cases(n_ranks)):
        sent = [found["cases"][number][2:] for found in started(n_ranks)]
        forwards, backwards = (sum(part) for part in zip(*sent))
        wide = config.replace(index_head_dim=2 * config.index_head_dim)
        n_bytes, of_wide = (sum(sent_bytes(c, lengths, 8, len(ids_BT)).values()) for c in (config, wide))
        assert forwards == n_bytes
        if all(ids_BT.shape[1] >= ratio for ratio in config.compress_ratios):
            assert backwards == forwards - (of_wide - n_bytes)
        else:  # raw series that no entry is made of have no gradient either
            assert backwards < forwards - (of_wide - n_bytes) or len(lengths) == 1


def test_the_closed_form_for_two_ranks_of_20_tokens_by_hand():
    """TINY: 1 window, 2 CSA (m = 3, 20 % 3 = 2 raw tokens and 3 more) and 1 HCA layer (20 % 12 = 8); K = 20, Z = 16."""
    by_hand = {"window": 4 * 6 * 20, "raw series": 2 * 5 * 4 * (20 + 16) + 8 * 2 * 20}
    by_hand["entries"] = 2 * 2 * (20 // 3 + 1) * (20 + 16) + 2 * (20 // 12 + 1) * 20
    assert sent_bytes(TINY, (20, 20), number_bytes=1) == by_hand


# --- what must not be left out ---


def logits_of(lengths):
    with torch.no_grad():
        return model_of(TINY)(token_ids(1, sum(lengths)))


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_whatever_is_left_out_is_noticed(name):
    found, logits = started(4), logits_of(OFF_GRID)
    right, wrong = (torch.cat([rank["off grid"][key] for rank in found], dim=1) for key in ("none", name))
    assert off(right, logits) < EXACT and not off(wrong, logits) < 1e-4


@pytest.mark.slow
def test_m_raw_tokens_are_enough_where_every_border_lies_between_entries():
    ours = [rank["on grid"][ENOUGH_ON_GRID] for rank in started(4)]
    assert off(torch.cat(ours, dim=1), logits_of(ON_GRID)) < EXACT


@pytest.mark.slow
def test_a_mistake_on_one_rank_or_all_is_told_on_every_rank():
    for found in (rank["refusals"] for rank in started(4)):
        assert found["no tokens"].startswith("what is wrong differs between ranks: 'ids: shape (1, 0) is no batch")
        assert "is no token id; vocab_size allows 0 .. 60' on rank 2" in found["no token id"]
        assert found["batch"].startswith("batch size differs between ranks: 2 on rank 3, 1 on ranks 0, 1, 2")
        assert found["documents"].startswith("document_BT given differs between ranks: True on rank 0")
        assert "is no token id" in found["all wrong"] and "differs" not in found["all wrong"]
        assert found["shape"] == "document_BT: shape (1, 5); it goes with ids_BT, whose shape is (1, 6)"
        assert "document_BT = 9 for position 6 of row 0; it is from 0 to its position' on rank 1" in found["place"]


# --- counting alone ---

REPEATABLE = settings(max_examples=80, deadline=None, derandomize=True)
CUTS = st.lists(st.integers(1, 20), min_size=1, max_size=7)


@REPEATABLE
@given(CUTS, st.integers(1, 30), st.sampled_from([(3, 2), (4, 2), (12, 1)]))
def test_tails_hold_exactly_the_tokens_that_each_rank_needs(lengths, window, sizes):
    partition = Partition(tuple(lengths))
    position_T = torch.arange(sum(lengths))
    stretches = [position_T[slice(*partition.stretch(rank))].tolist() for rank in range(len(lengths))]
    for reach in (lambda start: window_reach(start, window), lambda start: raw_reach(start, *sizes)):
        tails = partition.tails(reach)
        for to, (start, *_) in enumerate(stretches):
            came = [p for rank, mine in enumerate(stretches) for p in mine[len(mine) - tails[rank][to] :]]
            assert came == list(range(start - reach(start), start))


@REPEATABLE
@given(st.integers(0, 200), st.integers(1, 9))
def test_an_overlapped_entry_needs_from_m_to_2m_less_1_tokens_before_the_border(start, ratio):
    reach = raw_reach(start, ratio, 2)
    first_entry = start // ratio  # the first whose last token lies at or behind the border
    assert start - reach == max(0, (first_entry - 1) * ratio)
    assert start < ratio or ratio <= reach <= 2 * ratio - 1


@REPEATABLE
@given(CUTS, st.integers(1, 9))
def test_select_and_pad_lists_all_entries_in_order_and_then_padding(lengths, ratio):
    partition = Partition(tuple(lengths))
    counts = partition.n_entries(ratio)
    n_emitted = partition.n_emitted(ratio)
    length = len(lengths) * max(lengths) // ratio
    emitted, entry = torch.full((len(lengths), n_emitted), -1), 0
    for rank, count in enumerate(counts):
        emitted[rank, :count] = torch.arange(entry, entry + count)
        entry += count
    n_entries = sum(lengths) // ratio
    assert select_and_pad(emitted, counts, length).tolist() == [*range(n_entries), *[-1] * (length - n_entries)]
