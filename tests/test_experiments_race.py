"""The race of Muon and AdamW: both run on the same data from the same start, and its measure is read off as it says."""

import pytest
import torch

from minidsv4 import Model
from minidsv4.experiments import race


def test_steps_to_reach_are_read_between_the_points():
    assert race.steps_to_reach([5.0, 3.0, 2.0], wanted=2.5, every=10) == 15
    assert race.steps_to_reach([5.0, 3.0, 2.0], wanted=3.0, every=10) == 10
    assert race.steps_to_reach([5.0, 3.0, 2.0], wanted=1.0) == float("inf")
    assert race.steps_to_reach([5.0, 3.0], wanted=6.0) == 0


@pytest.mark.slow
def test_both_runners_learn_from_the_same_start_and_repeat_themselves():
    curves = {kind: race.learn(seed=0, kind=kind, n_steps=4, every=2) for kind in race.RATES}
    assert curves["Muon"][0] == curves["AdamW"][0] and curves["Muon"][1] != curves["AdamW"][1]
    assert all(curve[2] < curve[0] for curve in curves.values())
    assert race.learn(seed=0, kind="Muon", n_steps=4, every=2) == curves["Muon"]


def test_the_adamw_runner_has_no_matrix_that_is_orthogonalised():
    model = Model(race.small_config())
    groups = {kind: race.optimizer(model, kind, rate=0.1).param_groups for kind in race.RATES}
    assert [group["parts"] for group in groups["AdamW"]] == [None] and len(groups["Muon"]) > 1
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    assert all(sum(p.numel() for g in found for p in g["params"]) == n_parameters for found in groups.values())


def test_an_unknown_runner_is_refused():
    with pytest.raises(ValueError, match="'SGD' is not known; it is one of Muon, AdamW"):
        race.optimizer(torch.nn.Linear(2, 2), "SGD", rate=0.1)
