"""Writing to the streams and Sinkhorn in compiled loops: any number of threads, and what the loops do not know."""

import importlib

import pytest
import torch
from small import EXACT, normal, off_all
from test_fast_equals_plain import output_and_gradients

import minidsv4 as v4

module = importlib.import_module("minidsv4.fast.compiled.streams")
shares = importlib.import_module("minidsv4.fast.compiled.top_entries")
B, T, N, D = 2, 67, 3, 5  # tokens that fill no whole tile
STREAMS = (normal(B, T, N, D), normal(B, T, D, seed=1), normal(B, T, N, seed=2), normal(B, T, N, N, seed=3))
GIVEN = {"write": STREAMS, "sinkhorn": (STREAMS[3], 7, 1e-6)}
each = pytest.mark.parametrize("name", GIVEN)


@each
@pytest.mark.parametrize("n_threads", [1, 3])
def test_shares_of_the_tokens_give_the_same_output_and_gradients(name, n_threads, monkeypatch):
    monkeypatch.setattr(shares.torch, "get_num_threads", lambda: n_threads)
    plain, fast = (output_and_gradients(getattr(table, name), GIVEN[name]) for table in (v4.PLAIN, v4.COMPILED))
    assert off_all(fast, plain) < EXACT


@each
def test_streams_that_lie_in_memory_in_another_order_give_the_same(name):
    given = [x.transpose(0, 1).contiguous().transpose(0, 1) if torch.is_tensor(x) else x for x in GIVEN[name]]
    plain, fast = (getattr(table, name)(*given) for table in (v4.PLAIN, v4.COMPILED))
    assert off_all((fast,), (plain,)) < EXACT


@each
def test_sixteen_bits_go_the_way_of_fast(name, monkeypatch):
    monkeypatch.setattr(module, "with_threads", lambda *_: pytest.fail("the loops ran"))
    widths = (torch.bfloat16, torch.bfloat16, torch.float32, torch.float32)  # of streams and of coefficients
    tensors = [x for x in GIVEN[name] if torch.is_tensor(x)]
    given = [x.to(width) for x, width in zip(tensors, widths)] + list(GIVEN[name][len(tensors) :])
    found, expected = (getattr(table, name)(*given) for table in (v4.COMPILED, v4.FAST))
    assert torch.equal(found, expected)
