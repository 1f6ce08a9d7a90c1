"""Every operation of FAST and of COMPILED is that of PLAIN: outputs and all gradients to 1e-10 in float64."""

import numpy as np
import pytest
import torch
from op_cases import CASES, LENGTHS
from small import EXACT, off_all
from torch import Tensor

from minidsv4.fast import FAST
from minidsv4.fast.compiled.table import COMPILED
from minidsv4.ops import PLAIN, Ops
from minidsv4.visibility import Visibility

N_CASES = 40  # of each operation
CHOICES = ("top_entries", "stable_topk")  # these give indices, which have no gradient
EVERY = [pytest.param(FAST, name, id=name) for name in Ops._fields]
EVERY += [
    pytest.param(COMPILED, name, id=f"{name}-compiled")
    for name in Ops._fields
    if getattr(COMPILED, name) is not getattr(FAST, name)
]
case = pytest.mark.parametrize("seed", range(N_CASES))


def arguments(name, seed):
    """Random arguments of one operation, the same for the same seed."""
    return CASES[name](np.random.default_rng([seed, *name.encode()]))


def learning(argument):
    """The argument anew, asking for a gradient where it can have one; and its tensors that do."""
    if isinstance(argument, tuple) and not isinstance(argument, Visibility):
        parts = [learning(part) for part in argument]
        return tuple(part for part, _ in parts), [tensor for _, tensors in parts for tensor in tensors]
    if isinstance(argument, Tensor) and argument.dtype == torch.float64:
        argument = argument.clone().requires_grad_()
        return argument, [argument]
    return argument, []


def output_and_gradients(operation, given):
    """The output, and what a pull on it, drawn once for all, does to every input."""
    given, tensors = learning(given)
    output = operation(*given)
    pull = torch.randn(output.shape, generator=torch.Generator().manual_seed(0), dtype=output.dtype)
    gradients = [None] * len(tensors)
    if output.requires_grad:
        gradients = torch.autograd.grad(output, tensors, pull, allow_unused=True)
    return output.detach(), *gradients


def test_every_operation_of_the_table_has_random_cases():
    assert set(CASES) == set(Ops._fields)


@pytest.mark.slow
@case
@pytest.mark.parametrize(("table", "name"), [pair for pair in EVERY if pair.values[1] not in CHOICES])
def test_outputs_and_gradients_are_those_of_plain(table, name, seed):
    given = arguments(name, seed)
    plain, fast = (output_and_gradients(getattr(each, name), given) for each in (PLAIN, table))
    assert off_all(fast, plain) < EXACT


@pytest.mark.slow
@case
@pytest.mark.parametrize(("table", "name"), [pair for pair in EVERY if pair.values[1] == "top_entries"])
def test_the_entries_picked_are_those_of_plain(table, name, seed):
    *indexed, sees, k = arguments("top_entries", seed)
    plain, fast = (sees._replace(picks_BTP=each.top_entries(*indexed, sees, k)) for each in (PLAIN, table))
    assert plain.picks_BTP.shape == fast.picks_BTP.shape
    assert torch.equal(plain.entry_map().expand(len(indexed[0]), -1, -1), fast.entry_map())


@case
def test_the_places_of_the_largest_of_fast_are_those_of_plain(seed):
    score, k = arguments("stable_topk", seed)
    assert torch.equal(PLAIN.stable_topk(score, k), FAST.stable_topk(score, k))


def test_the_random_cases_of_attention_reach_what_they_should():
    drawn = [arguments("attend", seed)[3] for seed in range(N_CASES)]
    assert {sees.n_queries for sees in drawn} >= {1, 63, 64, 65} and max(LENGTHS) > 128
    assert any(sees.n_queries == 1 and sees.start > 0 for sees in drawn)
    assert sum(sees.document_BT is not None for sees in drawn) >= 5
    assert sum(sees.picks_BTP is not None for sees in drawn) >= 5
    assert any(sees.picks_BTP is not None and sees.picks_BTP.shape[2] == sees.n_entries for sees in drawn)
    assert any(sees.picks_BTP is not None and sees.document_BT is not None for sees in drawn)
    assert any(sees.n_entries == 0 for sees in drawn)


@pytest.mark.parametrize("name", [name for name in Ops._fields if name not in CHOICES])
def test_neither_form_changes_what_it_is_given(name):
    given, tensors = learning(arguments(name, 3))
    before = [tensor.detach().clone() for tensor in tensors]
    for table in (PLAIN, FAST):
        output = getattr(table, name)(*given)
        if output.requires_grad:
            output.sum().backward()
    assert all(torch.equal(tensor.detach(), old) for tensor, old in zip(tensors, before, strict=True))
