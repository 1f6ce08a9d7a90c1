"""A compressor's gates hear what a token says, its position bias where it stands."""

import pytest
import torch

from minidsv4.experiments import gates

CHANCE = 0.8  # of a mean squared error: a guess of signs has 1


def test_the_planted_entries_are_the_signs_of_the_marked_and_of_the_last_token():
    torch.manual_seed(1)
    x_BTD, wanted_BCK = gates.planted(3)
    for tokens_TD, wanted_CK in zip(x_BTD, wanted_BCK):
        for c in range(gates.WINDOWS):
            window = tokens_TD[gates.WINDOW * c : gates.WINDOW * (c + 1)].tolist()
            marked = [token for token in window if token[0] == 3]
            assert len(marked) == 1
            assert wanted_CK[c].tolist() == marked[0][1:] + window[-1][1:]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_without_gates_the_marked_token_is_lost_and_without_bias_the_last(seed):
    whole, no_gates, no_bias = (gates.learn(without, seed) for without in (None, "gates", "bias"))
    assert max(whole) < 0.1
    assert no_gates[0] > CHANCE and no_gates[1] < 0.1
    assert no_bias[0] < 0.1 and no_bias[1] > CHANCE


def test_another_part_is_refused_by_name():
    with pytest.raises(ValueError, match="without='ape' should be None or one of gates, bias"):
        gates.learn("ape")
