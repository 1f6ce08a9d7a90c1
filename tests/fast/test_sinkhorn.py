"""What Sinkhorn in place costs: it stops where a round changes nothing, and keeps the logits alone."""

import pytest
import torch
from small import normal

from minidsv4.fast.streams import sinkhorn


def logits(n_tokens, std, seed=0):
    """Carry logits [1, T, i, j]."""
    return std * normal(1, n_tokens, 4, 4, seed=seed)


def test_stopping_at_a_round_that_changes_nothing_changes_no_bit(monkeypatch):
    equal, never_stops = torch.equal, {}
    for strength in (0.1, 0.6, 3.0):
        raw, verdicts = logits(5, strength).float(), []
        early = sinkhorn(raw, 20, 1e-6)
        with monkeypatch.context() as patched:
            patched.setattr(torch, "equal", lambda *pair, verdicts=verdicts: verdicts.append(equal(*pair)))
            whole = sinkhorn(raw, 20, 1e-6)
        never_stops[strength] = not any(verdicts)
        assert equal(early, whole)
    assert not never_stops[0.1] and never_stops[3.0]


@pytest.mark.parametrize("strength", [0.1, 3.0], ids=["settles early", "does not settle"])
def test_the_gradient_keeps_nothing_but_the_logits(strength):
    raw, kept = logits(50, strength).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        sinkhorn(raw, 20, 1e-6)
    assert kept == [raw.numel()]
