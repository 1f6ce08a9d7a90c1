"""Readers of one tensor that hand it on: gradients are those of PLAIN in any order, and nothing outlives its tensor."""

import gc

import pytest
import torch
from small import EXACT, normal, off_all, small_model, token_ids

import minidsv4 as v4
from minidsv4.fast import readers

B, T, N, D = 2, 5, 3, 4
LEAF, FN, PRE = normal(B, T, N, D), normal((2 + N) * N, N * D, seed=1), normal(B, T, N, seed=2)
Y, POST, CARRY = normal(B, T, D, seed=3), normal(B, T, N, seed=4), normal(B, T, N, N, seed=5)
READERS = {
    "stream_logits": lambda ops, x: ops.stream_logits(x, FN, 1e-6),
    "collapse": lambda ops, x: ops.collapse(x, PRE),
    "write": lambda ops, x: ops.write(x, Y, POST, CARRY),
    "another": lambda ops, x: x * x,
}
tables = pytest.mark.parametrize("table", [v4.FAST, v4.COMPILED], ids=["fast", "compiled"])


def leaf():
    return LEAF.clone().requires_grad_()


def gradient(table, names, pulled, streams=lambda leaf: leaf * 2):
    """The gradient that some of these readers of the streams, one after another, give together."""
    start = leaf()
    read = streams(start)
    outputs = [READERS[name](table, read) for name in names]
    sum((outputs[number] ** 2).sum() for number in pulled).backward()
    return start.grad


@tables
@pytest.mark.parametrize(
    "names",
    [
        ("stream_logits", "collapse", "write"),
        ("write", "collapse", "stream_logits"),
        ("collapse", "collapse", "stream_logits", "write", "write"),
        ("stream_logits", "another", "collapse", "another", "write"),
        ("collapse",),
    ],
    ids="-".join,
)
def test_readers_in_any_order_give_together_the_gradient_of_plain(names, table):
    """Each alone as well, where the others have been read and nothing is pulled on."""
    everyone = tuple(range(len(names)))
    for pulled in (everyone, *((number,) for number in everyone)):
        fast, plain = (gradient(each, names, pulled) for each in (table, v4.PLAIN))
        assert off_all((fast,), (plain,)) < EXACT


@tables
def test_a_leaf_and_streams_that_learn_nothing_are_read_as_they_are(table):
    names = ("stream_logits", "collapse", "write")
    for streams in (lambda leaf: leaf, lambda leaf: leaf[:, :, :1].expand(-1, -1, N, -1)):
        fast, plain = (gradient(each, names, (0, 1, 2), streams) for each in (table, v4.PLAIN))
        assert off_all((fast,), (plain,)) < EXACT
    fn = FN.clone().requires_grad_()
    logits = table.stream_logits(LEAF, fn, 1e-6)
    read = table.collapse(LEAF, PRE)
    assert logits.requires_grad and not read.requires_grad and LEAF not in readers._handed_on


@tables
def test_a_site_hands_its_streams_from_reader_to_reader(table):
    """So that one gradient comes back to them, where three would have to be added."""
    streams = leaf() * 2
    logits, read, written = (READERS[name](table, streams) for name in ("stream_logits", "collapse", "write"))
    assert read.grad_fn.next_functions[0][0] is logits.grad_fn
    assert written.grad_fn.next_functions[0][0] is read.grad_fn


@tables
def test_a_reader_after_a_backward_that_is_done_needs_nothing_of_it(table):
    streams = leaf().requires_grad_() * 2
    first = table.stream_logits(streams, FN, 1e-6)
    torch.autograd.grad(first.sum(), streams)
    (found,) = torch.autograd.grad(table.collapse(streams, PRE).sum(), streams)
    (expected,) = torch.autograd.grad(v4.PLAIN.collapse(streams, PRE).sum(), streams)
    assert off_all((found,), (expected,)) < EXACT


@tables
def test_what_was_handed_on_goes_with_the_tensor_that_was_read(table):
    """Also where no backward ever runs."""
    gc.collect()
    before, model = len(readers._handed_on), small_model().use(table)
    streams = model.streams(token_ids(2, 9), model.new_cache(2))
    read = table.collapse(streams, torch.ones(*streams.shape[:3], dtype=streams.dtype))
    assert len(readers._handed_on) == before + 1 and read.requires_grad
    del streams, read
    assert len(readers._handed_on) == before


@tables
def test_the_gradient_of_streams_in_16_bits_is_near_that_of_plain(table):
    def gradient_in_16_bits(ops):
        start = leaf()
        streams = start.bfloat16()
        logits, read = ops.stream_logits(streams, FN.float(), 1e-6), ops.collapse(streams, PRE.float())
        (logits.sum() + read.float().sum()).backward()
        return start.grad

    fast, plain = (gradient_in_16_bits(each) for each in (table, v4.PLAIN))
    assert off_all((fast,), (plain,)) < 2**-6  # a bfloat16 has 8 bits, and three gradients are rounded one by one
