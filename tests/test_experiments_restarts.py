"""Lengths of finished texts under kills: against the closed form, and undisturbed."""

import numpy as np
import pytest

from minidsv4.experiments.restarts import begin_again, expected_lengths, go_on

LENGTHS = np.array([3, 3, 10, 40, 41])


def shares(lengths):
    return np.array([(lengths == value).mean() for value in np.unique(LENGTHS)])


def test_texts_that_begin_again_have_the_lengths_of_the_closed_form():
    n_texts = 20_000
    values, right = expected_lengths(LENGTHS, 0.05)
    found = shares(begin_again(LENGTHS, 0.05, n_texts).lengths)
    spread = np.sqrt(right * (1 - right) / n_texts)
    assert list(values) == [3, 10, 40, 41]
    assert (np.abs(found - right) < 4.5 * spread).all()  # 4.5 standard deviations: 1 in 36,000 for each of 4 shares
    assert right[0] > 1.5 * 0.4 and right[-1] < 0.5 * 0.2  # the short ones crowd the long ones out


def test_texts_that_go_on_have_the_lengths_that_the_model_writes():
    n_texts = 20_000
    finished = go_on(LENGTHS, 0.05, n_texts)
    right = np.array([0.4, 0.2, 0.2, 0.2])
    assert (np.abs(shares(finished.lengths) - right) < 4.5 * np.sqrt(right * (1 - right) / n_texts)).all()
    a_token = finished.n_computed / finished.lengths.sum()
    assert a_token == pytest.approx(1 / 0.95, abs=0.002)  # each token is computed until no kill comes: 4 deviations


@pytest.mark.parametrize("way", [begin_again, go_on])
def test_without_kills_both_are_the_same(way):
    finished = way(LENGTHS, 0.0, 5_000)
    assert finished.n_computed == finished.lengths.sum()
    assert finished.lengths.mean() == pytest.approx(LENGTHS.mean(), abs=4 * LENGTHS.std() / 5_000**0.5)
