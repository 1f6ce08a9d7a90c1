"""Tasks with planted dependencies: what is asked for lies where it should, and nowhere else."""

import pytest

from minidsv4.train.tasks import ASK, MARK, copy, recall

VOCABULARY = 64  # ids 4 .. 23 are keys, 24 .. 43 values, 44 .. 63 filler


@pytest.mark.parametrize("distance", [3, 4, 20, 47])
@pytest.mark.parametrize("n_pairs", [1, 5])
def test_what_is_asked_for_lies_exactly_the_distance_before_and_nowhere_else(distance, n_pairs):
    for seed in range(20):
        ids, asked = recall(seed, 50, distance, VOCABULARY, n_pairs)
        assert len(ids) == 50 and asked == [49] and ids[-3] == ASK
        key, value = ids[-2:]
        assert ids[49 - distance - 2 : 49 - distance + 1] == [MARK, key, value]
        assert ids.count(MARK) == n_pairs and ids.count(ASK) == 1 and ids.count(key) == 2
        pairs = [ids[i + 1 : i + 3] for i, token in enumerate(ids) if token == MARK]
        assert all(4 <= k < 24 <= v < 44 for k, v in pairs) and len({k for k, _ in pairs}) == n_pairs
        rest = len([token for token in ids if token >= 44])
        assert rest == 50 - 3 * n_pairs - 3 and max(ids) < VOCABULARY


@pytest.mark.parametrize(("distance", "n_copied"), [(3, 2), (30, 8), (41, 8)])
def test_a_copy_repeats_its_values_at_the_distance(distance, n_copied):
    for seed in range(20):
        ids, asked = copy(seed, 50, distance, VOCABULARY, n_copied)
        assert len(ids) == 50 and asked == list(range(50 - n_copied, 50))
        assert all(ids[place] == ids[place - distance] and 24 <= ids[place] < 44 for place in asked)
        assert ids[asked[0] - 1] == ASK and ids[asked[0] - 1 - distance] == MARK
        assert sum(token < 44 for token in ids) == 2 + 2 * n_copied


def test_tasks_are_the_same_for_a_seed_and_differ_between_seeds():
    for task in (recall, copy):
        assert task(1, 60, 30, VOCABULARY) == task(1, 60, 30, VOCABULARY) != task(2, 60, 30, VOCABULARY)
    keys = {tuple(recall(seed, 60, 30, VOCABULARY).ids[-2:]) for seed in range(50)}
    assert len(keys) > 40
    assert recall(0, 9, 5, VOCABULARY).ids == [57, 2, 13, 30, 57, 48, 3, 13, 30]


def test_tasks_that_do_not_fit_are_refused_with_a_sentence():
    for distance, n_pairs in ((2, 1), (48, 1), (20, 0), (20, 17), (20, 21)):
        with pytest.raises(ValueError, match=f"distance = {distance} and n_pairs = {n_pairs}"):
            recall(0, 50, distance, VOCABULARY, n_pairs)
    for distance, n_copied in ((8, 8), (42, 8), (9, 0)):
        with pytest.raises(ValueError, match=f"distance = {distance} and n_copied = {n_copied}"):
            copy(0, 50, distance, VOCABULARY, n_copied)
