"""What the hand-written gradients keep from forward to backward, and that parts of any size give the same."""

import importlib

import pytest
import torch
from op_cases import CASES
from small import EXACT, normal, off_all
from test_fast_equals_plain import arguments, output_and_gradients

from minidsv4.fast import FAST
from minidsv4.ops import PLAIN

parts = importlib.import_module("minidsv4.fast.parts")
B, T, N, D = 2, 5, 4, 6
STREAMS = (normal(B, T, N, D), normal(B, T, D, seed=1), normal(B, T, N, seed=2), normal(B, T, N, N, seed=3))
GIVEN = {  # the arguments, and how many numbers are kept beyond them
    "rms_norm": ((normal(B, T, D), normal(D, seed=1), 1e-6), B * T),
    "swiglu": ((normal(B, T, D), normal(B, T, D, seed=1), 0.7), 0),
    "stream_logits": ((STREAMS[0], normal(7, N * D, seed=1), 1e-6), B * T * (7 + 1)),
    "collapse": ((STREAMS[0], STREAMS[2]), 0),
    "write": (STREAMS, 0),
}


@pytest.mark.parametrize("name", GIVEN)
def test_a_gradient_keeps_what_the_operation_is_given_and_little_more(name):
    given, n_more = GIVEN[name]
    given = [part.clone().requires_grad_() if isinstance(part, torch.Tensor) else part for part in given]
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.setdefault(x.data_ptr(), x), lambda x: x):
        getattr(FAST, name)(*given)
    n_given = sum(part.numel() for part in given if isinstance(part, torch.Tensor))
    assert sum(x.numel() for x in kept.values()) <= n_given + n_more


@pytest.mark.parametrize("numbers", [1, 30, 1000])
@pytest.mark.parametrize("name", GIVEN)
def test_how_rows_are_cut_changes_no_gradient(name, numbers, monkeypatch):
    monkeypatch.setattr(parts, "NUMBERS", numbers)
    assert name in CASES
    for seed in range(3):
        given = arguments(name, seed)
        plain, fast = (output_and_gradients(getattr(each, name), given) for each in (PLAIN, FAST))
        assert off_all(fast, plain) < EXACT


def test_a_gate_or_up_at_its_limit_learns_and_one_above_does_not():
    """Kind: what autograd gives at the clamps, of PLAIN; a derivative that is right but at one point."""
    edge = torch.tensor([0.7, torch.nextafter(torch.tensor(0.7), torch.tensor(1.0)).item(), -0.7, -0.8])
    given = edge.clone(), edge.clone(), 0.7
    plain, fast = (gradients_at(each.swiglu, given) for each in (PLAIN, FAST))
    assert all((ours == 0).equal(expected == 0) for ours, expected in zip(fast, plain))
    assert (fast[0] == 0).tolist() == [False, True, False, False]
    assert (fast[1] == 0).tolist() == [False, True, False, True]


def gradients_at(operation, given):
    gate, up = (part.requires_grad_() for part in given[:2])
    return torch.autograd.grad(operation(gate, up, given[2]).sum(), (gate, up))


@pytest.mark.parametrize("smallest", [1.0, 1e-3, 1e-12, 0.0])
def test_a_norm_with_weights_down_to_0_has_the_gradients_of_plain(smallest):
    """Kind: a norm that keeps its output and divides by the weight, which a weight of 0 does not allow."""
    weight = normal(D, seed=1)
    weight[2] = smallest
    plain, fast = (output_and_gradients(each.rms_norm, (normal(B, T, D), weight, 1e-6)) for each in (PLAIN, FAST))
    assert off_all(fast, plain) < EXACT
