"""The plan of routing, by properties: a post office in plain Python delivers by it, and everything must arrive."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minidsv4.parallel.layout import Layout, plan


@st.composite
def offices(draw):
    """A layout and the picks of every rank's tokens; -1 and empty ranks included."""
    n_ranks, n_local, n_active = draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 3))
    n_experts, waves = n_ranks * n_local, draw(st.integers(1, n_local))
    seats = tuple(draw(st.permutations(range(n_experts)))) if draw(st.booleans()) else ()
    pick = st.integers(-1, n_experts - 1)
    token = st.lists(pick, min_size=n_active, max_size=n_active)
    picked = [draw(st.lists(token, max_size=7)) for _ in range(n_ranks)]
    return Layout(n_experts, n_ranks, waves, seats), [torch.tensor(rows).view(-1, n_active).long() for rows in picked]


def where(layout, expert):
    """(wave, rank, place) of an expert, the slow way."""
    seat = layout.seats[expert] if layout.seats else expert
    rank, place = divmod(seat, layout.n_local)
    return next(w for w in range(layout.waves) if place < layout.bounds[w + 1]), rank, place


@given(offices())
def test_every_pair_leaves_once_sorted_by_wave_rank_place_and_token(office):
    layout, picked = office
    for picked_TA in picked:
        ours, flat = plan(picked_TA, layout), picked_TA.flatten().tolist()
        expected = sorted((pair for pair, e in enumerate(flat) if e >= 0), key=lambda p: (*where(layout, flat[p]), p))
        assert ours.slots.tolist() == expected
        assert ours.by_expert.tolist() == sorted(expected, key=lambda pair: (flat[pair], pair))


@given(offices())
def test_counts_are_those_of_counting_one_by_one(office):
    layout, picked = office
    for picked_TA in picked:
        counts = torch.zeros(layout.n_ranks, layout.n_local, dtype=torch.long)
        for expert in picked_TA.flatten().tolist():
            if expert >= 0:
                counts[where(layout, expert)[1:]] += 1
        assert torch.equal(plan(picked_TA, layout).counts, counts)
        assert torch.equal(torch.cat(layout.wave_counts(counts), dim=1), counts)


@given(offices())
def test_delivered_rows_meet_their_expert_in_the_order_of_all_tokens(office):
    layout, picked = office
    plans = [plan(picked_TA, layout) for picked_TA in picked]
    letters = [[(rank, pair) for pair in ours.slots.tolist()] for rank, ours in enumerate(plans)]
    met = {}
    for wave in range(layout.waves):
        counts = torch.stack([layout.wave_counts(ours.counts)[wave] for ours in plans])  # [from, to, place]
        bags = [[[letters[s].pop(0) for _ in range(n)] for n in counts[s].sum(1).tolist()] for s in range(len(plans))]
        for rank in range(layout.n_ranks):
            rows = [letter for sender in bags for letter in sender[rank]]
            place = torch.arange(counts.shape[2]).repeat(len(plans)).repeat_interleave(counts[:, rank].flatten())
            rows = [rows[i] for i in place.argsort(stable=True).tolist()]  # as experts sort what comes to them
            for place, n in enumerate(counts[:, rank].sum(0).tolist()):
                met[rank, layout.bounds[wave] + place] = [rows.pop(0) for _ in range(n)]
    for rank in range(layout.n_ranks):
        for place, expert in enumerate(layout.experts_of(rank).tolist()):
            pairs = [(s, p) for s, rows in enumerate(picked) for p in range(rows.numel())]
            assert met[rank, place] == [(s, p) for s, p in pairs if picked[s].flatten()[p] == expert]
    assert not any(letters)


def test_waves_are_of_about_equal_size_and_cover_the_experts_of_a_rank():
    assert Layout(14, 2, 3).bounds == [0, 2, 4, 7]
    assert Layout(8, 2, 4).bounds == [0, 1, 2, 3, 4]


def test_experts_of_a_rank_are_those_whose_seats_it_has():
    assert Layout(6, 2, seats=(3, 0, 4, 1, 5, 2)).experts_of(0).tolist() == [1, 3, 5]
    assert Layout(6, 3).experts_of(2).tolist() == [4, 5]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((9, 2), "9 cannot be shared out evenly to 2 ranks"),
        ((8, 2, 5), "waves = 5: a rank has 4 experts, so 1 .. 4"),
        ((8, 2, 0), "waves = 0"),
        ((4, 2, 1, (0, 1, 1, 2)), "seats: 4 experts sit on the seats 0 .. 3, one on each"),
    ],
)
def test_layouts_that_cannot_be_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Layout(*arguments)


@pytest.mark.parametrize("wrong", [8, -2])
def test_a_pick_of_an_expert_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match=f"picked: {wrong} is no expert; they are 0 .. 7"):
        plan(torch.tensor([[0, wrong]]), Layout(8, 2))
