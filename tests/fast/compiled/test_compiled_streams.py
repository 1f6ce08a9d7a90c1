"""Streams and RMSNorm in compiled loops: any number of threads, and what the loops do not know."""

import importlib

import pytest
import torch
from small import EXACT, normal, off_all
from test_fast_equals_plain import output_and_gradients

import minidsv4 as v4

module = importlib.import_module("minidsv4.fast.compiled.streams")
norms = importlib.import_module("minidsv4.fast.compiled.rms_norm")
shares = importlib.import_module("minidsv4.fast.compiled.top_entries")
B, T, N, D = 2, 67, 3, 5  # tokens that fill no whole tile
STREAMS = (normal(B, T, N, D), normal(B, T, D, seed=1), normal(B, T, N, seed=2), normal(B, T, N, N, seed=3))
GIVEN = {
    "collapse": (STREAMS[0], STREAMS[2]),
    "write": STREAMS,
    "sinkhorn": (STREAMS[3], 7, 1e-6),
    "rms_norm": (STREAMS[0], normal(D, seed=4), 1e-6),
}
each = pytest.mark.parametrize("name", GIVEN)


@each
@pytest.mark.parametrize("n_threads", [1, 3])
def test_shares_of_the_tokens_give_the_same_output_and_gradients(name, n_threads, monkeypatch):
    monkeypatch.setattr(shares.torch, "get_num_threads", lambda: n_threads)
    plain, fast = (output_and_gradients(getattr(table, name), GIVEN[name]) for table in (v4.PLAIN, v4.COMPILED))
    assert off_all(fast, plain) < EXACT


@each
def test_streams_that_lie_in_memory_in_another_order_give_the_same(name):
    given = [x.mT.contiguous().mT if torch.is_tensor(x) and x.ndim > 1 else x for x in GIVEN[name]]
    plain, fast = (getattr(table, name)(*given) for table in (v4.PLAIN, v4.COMPILED))
    assert off_all((fast,), (plain,)) < EXACT


@each
def test_sixteen_bits_go_the_way_of_fast(name, monkeypatch):
    for caller in (module, norms):
        monkeypatch.setattr(caller, "with_threads", lambda *_: pytest.fail("the loops ran"))
    streams = 2 if name == "write" else 1  # tensors in 16 bits; coefficients have 32
    tensors = [x for x in GIVEN[name] if torch.is_tensor(x)]
    given = [x.bfloat16() if number < streams else x.float() for number, x in enumerate(tensors)]
    given += GIVEN[name][len(tensors) :]
    found, expected = (getattr(table, name)(*given) for table in (v4.COMPILED, v4.FAST))
    assert torch.equal(found, expected)


def test_the_gradient_of_a_norm_whose_weight_is_zero_somewhere_is_that_of_plain():
    """Its output cannot be divided by the weight; so what it was given is kept."""
    weight = normal(D, seed=4) * (torch.arange(D) % 2)
    plain, fast = (
        output_and_gradients(table.rms_norm, (STREAMS[0], weight, 1e-6)) for table in (v4.PLAIN, v4.COMPILED)
    )
    assert off_all(fast, plain) < EXACT


def test_rows_without_a_number_and_no_rows_are_normed():
    for shape in ((0, D), (2, 0, D)):
        assert v4.COMPILED.rms_norm(torch.zeros(shape), None, 1e-6).shape == shape
    nan = torch.full((3, D), torch.nan)
    assert v4.COMPILED.rms_norm(nan, None, 1e-6).isnan().all()


ONE = normal(1, T, N, D)
OTHER_SHAPES = {
    "a wide norm weight": ("rms_norm", (STREAMS[0], normal(D + 1), 1e-6)),
    "a narrow norm weight": ("rms_norm", (STREAMS[0], normal(D - 1), 1e-6)),
    "a norm weight for all": ("rms_norm", (STREAMS[0], normal(1), 1e-6)),
    "gates of other streams": ("collapse", (STREAMS[0], normal(B, T, N + 1))),
    "gates of more rows": ("collapse", (ONE, STREAMS[2])),
    "gates of fewer rows": ("collapse", (STREAMS[0], normal(1, T, N))),
    "a narrow vector to write": ("write", (STREAMS[0], normal(B, T, D - 1), *STREAMS[2:])),
    "one matrix for all rows": ("write", (*STREAMS[:3], normal(1, T, N, N))),
    "gates to write of other streams": ("write", (*STREAMS[:2], normal(B, T, N - 1), STREAMS[3])),
    "matrices that are no squares": ("sinkhorn", (normal(B, T, N, N + 1), 7, 1e-6)),
    "no iteration": ("sinkhorn", (STREAMS[3], 0, 1e-6)),
}


@pytest.mark.parametrize(("name", "given"), OTHER_SHAPES.values(), ids=OTHER_SHAPES)
def test_what_the_loops_would_read_out_of_bounds_goes_the_way_of_fast(name, given):
    """Which gives its numbers, or refuses."""
    found, expected = ([], [])
    for table, results in ((v4.COMPILED, found), (v4.FAST, expected)):
        try:
            results.append(getattr(table, name)(*given))
        except RuntimeError as error:
            results.append(str(error))
    if isinstance(expected[0], str):
        assert found == expected
    else:
        assert off_all(found, expected) < EXACT
