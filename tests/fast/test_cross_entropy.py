"""What the vocabulary loss costs: the logits of a few tokens at a time."""

import importlib

import pytest
import torch
from small import EXACT, normal

from minidsv4.ops import NO_TARGET, PLAIN

cross_entropy = importlib.import_module("minidsv4.fast.cross_entropy")


def example(n_tokens):
    target_T = torch.randint(7, (n_tokens,), generator=torch.Generator().manual_seed(0))
    target_T[2:5] = NO_TARGET
    return normal(n_tokens, 5).requires_grad_(), normal(7, 5, seed=1).requires_grad_(), target_T


@pytest.mark.parametrize("tokens", [1, 4, 14, 100])  # the last of 14 tokens are no whole part, or are
def test_how_tokens_are_cut_changes_neither_loss_nor_gradients(tokens, monkeypatch):
    monkeypatch.setattr(cross_entropy, "TOKENS", tokens)
    found = []
    for form in (cross_entropy.cross_entropy, PLAIN.cross_entropy):
        hidden_TD, head_VD, target_T = example(14)
        loss = form(hidden_TD, head_VD, target_T)
        found.append([loss, *torch.autograd.grad(3 * loss, (hidden_TD, head_VD))])
    for ours, expected in zip(*found):
        assert (ours - expected).abs().max() < EXACT * expected.abs().max()


def test_no_more_logits_exist_than_those_of_a_part(monkeypatch):
    sizes, right = [], torch.Tensor.log_softmax
    monkeypatch.setattr(torch.Tensor, "log_softmax", lambda x, *rest: sizes.append(x.shape) or right(x, *rest))
    cross_entropy.cross_entropy(*example(600))
    assert sizes == [(256, 7), (256, 7), (88, 7)]


def test_the_gradient_keeps_no_logits():
    hidden_TD, head_VD, target_T = example(600)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        cross_entropy.cross_entropy(hidden_TD, head_VD, target_T)
    assert sum(kept) == hidden_TD.numel() + head_VD.numel()
