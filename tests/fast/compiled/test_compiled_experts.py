"""SwiGLU and experts in compiled loops: shapes of every kind, threads, and what the loops do not know."""

import pytest
import torch
from small import EXACT, normal, off, off_all
from test_fast_equals_plain import output_and_gradients

import minidsv4 as v4

LIMIT = 0.7  # which a third of the gates and ups pass


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("shape", [(5,), (1, 5), (2, 7, 5), (0, 5), (1, 0, 5)])
def test_gates_of_any_shape_give_what_the_page_says(shape, n_threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    given = normal(*shape), normal(*shape, seed=1), LIMIT
    assert off_all(*(output_and_gradients(table.swiglu, given) for table in (v4.PLAIN, v4.COMPILED))) < EXACT


def test_ups_of_another_shape_and_sixteen_bits_go_the_way_of_fast():
    gate, up = normal(40, 5), normal(1, 5, seed=1)
    assert off(v4.COMPILED.swiglu(gate, up, LIMIT), v4.PLAIN.swiglu(gate, up, LIMIT)) < EXACT
    half = gate.bfloat16(), gate.bfloat16()
    assert torch.equal(v4.COMPILED.swiglu(*half, LIMIT), v4.FAST.swiglu(*half, LIMIT))


@pytest.mark.parametrize("n_threads", [1, 3])
def test_experts_with_few_or_no_tokens_give_what_the_page_says(n_threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    picked = normal(1, 9, 4, seed=2).argsort(-1)[..., :2]
    matrices = normal(4, 2 * 6, 5, seed=3), normal(4, 5, 6, seed=4)
    given = normal(1, 9, 5), picked, normal(1, 9, 2, seed=1), *matrices, LIMIT
    assert off_all(*(output_and_gradients(table.experts, given) for table in (v4.PLAIN, v4.COMPILED))) < EXACT
    with torch.no_grad():
        alone = given[0][:, :1], picked[:, :1], given[2][:, :1], *matrices, LIMIT
        assert off(v4.COMPILED.experts(*alone), v4.PLAIN.experts(*alone)) < EXACT
