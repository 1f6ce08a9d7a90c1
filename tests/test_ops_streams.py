"""Residual streams, plain and fast: what each site reads, carries and writes, and Sinkhorn, by the paper's loops."""

import pytest
import torch
from small import EXACT, both_tables, normal, off

from minidsv4 import paper
from minidsv4.ops import PLAIN

B, T, N, D = 2, 5, 4, 24


def logits(n_tokens, std, seed=0):
    """Carry logits [1, T, i, j]."""
    return std * normal(1, n_tokens, N, N, seed=seed)


def example():
    """Streams, an output, and a site's coefficients, none of them special."""
    return normal(B, T, N, D), normal(B, T, D, seed=1), normal(B, T, N, seed=2), normal(B, T, N, N, seed=3)


# ---- reading and writing ----


@both_tables
def test_logits_of_a_site_agree_with_the_loops_of_the_paper(table):
    streams_BTND, fn = normal(B, T, N, D), normal((2 + N) * N, N * D, seed=1)
    ours = table.stream_logits(streams_BTND, fn, 1e-3)
    for b, t in [(0, 0), (1, 3)]:
        expected = fn.numpy() @ paper.rms_norm(streams_BTND[b, t].numpy().reshape(-1), eps=1e-3)
        assert off(ours[b, t], expected) < EXACT


@both_tables
def test_reading_a_layer_and_writing_back_agree_with_the_loops_of_the_paper(table):
    streams_BTND, _, pre_BTN, carry_BTij = example()
    post_BTN = normal(B, T, N, seed=9)
    y_BTD = torch.sin(table.collapse(streams_BTND, pre_BTN))
    ours = table.write(streams_BTND, y_BTD, post_BTN, carry_BTij)
    for b in range(B):
        maps = [(pre_BTN[b, t].numpy(), post_BTN[b, t].numpy(), carry_BTij[b, t].numpy()) for t in range(T)]
        expected = paper.hyper_connection(streams_BTND[b].numpy(), maps, lambda x: torch.sin(torch.from_numpy(x)))
        assert (ours[b] - torch.from_numpy(expected)).abs().max() < EXACT


@both_tables
def test_the_carry_goes_from_its_first_index_to_its_second(table):
    streams_BTND, y_BTD, post_BTN, carry_BTij = example()
    carry_BTij = torch.zeros_like(carry_BTij)
    carry_BTij[..., 1, 3] = 1.0  # old stream 1 becomes new stream 3
    new = table.write(streams_BTND, torch.zeros_like(y_BTD), post_BTN, carry_BTij)
    assert torch.equal(new[:, :, 3], streams_BTND[:, :, 1]) and (new[:, :, :3] == 0).all()


@both_tables
def test_permuting_streams_with_their_coefficients_permutes_what_is_written(table):
    (streams_BTND, y_BTD, post_BTN, carry_BTij), order = example(), torch.tensor([2, 0, 3, 1])
    shuffled = table.write(
        streams_BTND[:, :, order], y_BTD, post_BTN[..., order], carry_BTij[..., order, :][..., order]
    )
    assert (shuffled - table.write(streams_BTND, y_BTD, post_BTN, carry_BTij)[:, :, order]).abs().max() < EXACT
    collapsed = table.collapse(streams_BTND[:, :, order], post_BTN[..., order])
    assert (collapsed - table.collapse(streams_BTND, post_BTN)).abs().max() < EXACT


@both_tables
def test_gradients_of_reading_and_writing_are_right(table):
    streams_BTND, y_BTD, post_BTN, carry_BTij = normal(1, 2, 3, 4), normal(1, 2, 4), normal(1, 2, 3), normal(1, 2, 3, 3)
    tensors = [part.requires_grad_() for part in (streams_BTND, y_BTD, post_BTN, carry_BTij)]
    assert torch.autograd.gradcheck(table.write, tensors)
    assert torch.autograd.gradcheck(table.collapse, (tensors[0], tensors[2]))
    fn = normal(5, 12).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: table.stream_logits(x, w, 1e-3), (tensors[0], fn))


@both_tables
def test_16_bit_streams_are_mixed_in_float32_and_keep_their_dtype(table):
    streams_BTND, y_BTD, post_BTN, carry_BTij = (part.float() for part in example())
    narrow, y = streams_BTND.bfloat16(), y_BTD.bfloat16()
    written = table.write(narrow, y, post_BTN, carry_BTij)
    assert written.dtype == torch.bfloat16
    assert torch.equal(written, table.write(narrow.float(), y.float(), post_BTN, carry_BTij).bfloat16())
    read = table.collapse(narrow, post_BTN)
    assert read.dtype == torch.bfloat16
    assert torch.equal(read, table.collapse(narrow.float(), post_BTN).bfloat16())
    fn = normal(3, N * D).float()
    found = table.stream_logits(narrow, fn, 1e-3)
    assert found.dtype == torch.float32 and torch.equal(found, table.stream_logits(narrow.float(), fn, 1e-3))


# ---- Sinkhorn ----


@both_tables
@pytest.mark.parametrize("n_tokens", [1, 64, 65, 300])
@pytest.mark.parametrize("iterations", [1, 2, 20])
def test_sinkhorn_agrees_with_the_loops_of_the_paper_for_few_and_for_many_tokens(n_tokens, iterations, table):
    raw = logits(n_tokens, 3.0)
    ours = table.sinkhorn(raw, iterations, 1e-6)
    for t in (0, n_tokens // 2, n_tokens - 1):
        expected = torch.from_numpy(paper.sinkhorn(raw[0, t].numpy(), iterations, 1e-6))
        assert (ours[0, t] - expected).abs().max() < 1e-14  # 40 divisions of numbers below 1


@both_tables
@pytest.mark.parametrize("std", [0.1, 1.0, 3.0, 10.0])
def test_new_streams_are_means_of_old_ones_tightly_and_old_ones_are_kept_loosely(std, table):
    carry = table.sinkhorn(logits(2000, std), 20, 1e-6)
    assert (carry >= 0).all()
    assert (carry.sum(2) - 1).abs().max() < 2e-6  # the columns come last: eps, once in a divisor and once in a sum
    rows = {0.1: 2e-6, 1.0: 1e-2, 3.0: 0.15, 10.0: 0.3}[std]  # 20 rounds do not reach the limit for large logits
    assert (carry.sum(3) - 1).abs().max() < rows
    assert std == 0.1 or (carry.sum(3) - 1).abs().max() > 2e-6


@both_tables
def test_a_product_of_many_carries_does_not_grow(table):
    product, carry = torch.eye(N, dtype=torch.float64), table.sinkhorn(logits(64, 1.0), 20, 1e-6)[0]
    for t in range(64):
        product = carry[t].T @ product  # B = carry transposed
        assert torch.linalg.matrix_norm(product, 2) < 1.01  # 1 for a doubly stochastic matrix; rows miss 1 by 1e-3


@both_tables
@pytest.mark.parametrize("strength", [0.1, 2.0], ids=["settles early", "does not settle"])
def test_the_gradient_of_sinkhorn_is_right(strength, table):
    raw = logits(3, strength).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: table.sinkhorn(z, 20, 1e-3), (raw,))


@both_tables
def test_sinkhorn_keeps_its_input_and_survives_large_logits(table):
    raw = logits(70, 300.0)
    before = raw.clone()
    carry = table.sinkhorn(raw, 20, 1e-6)
    assert torch.equal(raw, before)
    assert carry.isfinite().all() and (carry.sum(2) - 1).abs().max() < 2e-6


@both_tables
@pytest.mark.parametrize("std", [1.0, 30.0, 1000.0])
def test_large_gradients_through_large_logits_stay_finite_and_are_those_of_plain(std, table):
    raw, pull = logits(9, std).requires_grad_(), 1e4 * normal(1, 9, N, N, seed=5)
    gradient = torch.autograd.grad(table.sinkhorn(raw, 20, 1e-6), raw, pull)[0]
    expected = torch.autograd.grad(PLAIN.sinkhorn(raw, 20, 1e-6), raw, pull)[0]
    assert gradient.isfinite().all()
    assert (gradient - expected).abs().max() < EXACT * 1e4  # in units of the pull: most of it cancels


@both_tables
def test_a_single_stream_is_carried_whole(table):
    carry = table.sinkhorn(normal(B, T, 1, 1), 20, 1e-6)
    assert (carry - 1).abs().max() < 2e-6  # eps
