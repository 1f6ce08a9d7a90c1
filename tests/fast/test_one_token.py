"""One token of one sequence, as decoding asks for it: forms of their own, which are those of PLAIN, in few calls."""

import importlib
from operator import attrgetter

import numpy as np
import op_cases
import pytest
import torch
from small import EXACT, TINY, off, small_model, token_ids

from minidsv4.bench.limits import Calls
from minidsv4.fast import FAST
from minidsv4.fast.function import only_numbers
from minidsv4.ops import PLAIN

one_token = importlib.import_module("minidsv4.fast.one_token")
GENERAL = {  # the forms for many tokens, which take what is left
    "rms_norm": "rms_norm_of_many",
    "stable_topk": "topk_of_many",
    "top_entries": "best_of_many",
    "attend": "attention.attend",
    "stream_logits": "streams.stream_logits",
    "collapse": "streams.collapse",
    "write": "streams.write",
    "sinkhorn": "streams.sinkhorn",
    "experts": "sorted_experts",
}


def cases(monkeypatch, name):
    """Random arguments of one token of one sequence."""
    monkeypatch.setattr(op_cases, "LENGTHS", (1,))
    for seed in range(60):
        first, *rest = op_cases.CASES[name](np.random.default_rng([seed, *name.encode()]))
        if name == "experts":
            first, rest = first[None], [rest[0][None], rest[1][None], *rest[2:]]
        if first.shape[:2] == (1, 1) or name == "stable_topk":
            yield first, *rest


def test_every_form_for_one_token_stands_in_the_table():
    assert all(getattr(FAST, name) is getattr(one_token, name) for name in GENERAL)


@pytest.mark.parametrize("name", GENERAL)
@torch.no_grad()
def test_one_token_gives_what_plain_gives_and_mostly_by_its_own_form(name, monkeypatch):
    drawn = list(cases(monkeypatch, name))
    passed_on = []
    general = attrgetter(GENERAL[name])(one_token)
    for given in drawn:
        plain = getattr(PLAIN, name)(*given)
        with monkeypatch.context() as patched:
            path = f"minidsv4.fast.one_token.{GENERAL[name]}"
            patched.setattr(path, lambda *arguments: passed_on.append(1) or general(*arguments))
            ours = getattr(FAST, name)(*given)
        assert ours.shape == plain.shape and ours.dtype == plain.dtype
        assert torch.equal(ours, plain) if name in ("top_entries", "stable_topk") else off(ours, plain) < EXACT
    own = len(drawn) - len(passed_on)
    assert own >= 4, f"{own} of {len(drawn)} by the form for one token"


@torch.no_grad()
def test_a_token_of_a_decoding_step_takes_few_calls():
    """1,128 here; the forms for many tokens take 2,000, and a call costs more than what it computes."""
    model = small_model(TINY, dtype=torch.float32)
    cache = model.new_cache()
    model(token_ids(1, 40), cache=cache)
    with Calls() as calls:
        model(token_ids(1, 1), cache=cache)
    assert calls.n < 1300


def test_what_is_more_than_numbers_goes_another_way():
    x, seen = torch.ones(1, 1, 3), []
    assert not one_token.alone(x)  # gradients may be asked for
    with torch.no_grad():
        assert one_token.alone(x) and not one_token.alone(torch.ones(1, 2, 3)) and not one_token.alone(torch.ones(2, 1))
        assert not one_token.alone(x.to("meta")) and not only_numbers(torch.nn.Parameter(x))
        with torch.autograd.forward_ad.dual_level():
            assert not one_token.alone(x)
        torch.func.vmap(lambda row: seen.append(only_numbers(row)) or row)(x)
    assert seen == [False]
