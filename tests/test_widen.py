"""Compiled loops that write FP4 and FP8 out: bit for bit what the plain formulas give."""

import pytest
import torch

from minidsv4.lowbit import fp8, mxfp4, widen

SHAPES = [(1, 32), (3, 64), (130, 96), (257, 160)]


def stored(kind, rows, columns, seed=0):
    """Every byte and every scale that can stand in a file, by lot: zeros, denormals, NaN, overflowing products."""
    draw = torch.Generator().manual_seed(seed)

    def some(*shape):
        return torch.randint(256, shape, dtype=torch.uint8, generator=draw)

    if kind == "fp4":
        return some(rows, columns // 2).view(torch.int8), some(rows, columns // 32).view(torch.float8_e8m0fnu)
    blocks = (-(-rows // 128), -(-columns // 128))
    return some(rows, columns).view(torch.float8_e4m3fn), some(*blocks).view(torch.float8_e8m0fnu)


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize(("rows", "columns"), [*SHAPES, (5, 7)])
@pytest.mark.parametrize("kind", ["fp4", "fp8"])
def test_the_bits_are_those_of_dequantise(kind, rows, columns, n_threads, monkeypatch):
    columns = columns if kind == "fp8" else 32 * max(1, columns // 32)
    monkeypatch.setattr(widen.torch, "get_num_threads", lambda: n_threads)
    monkeypatch.setattr(widen, "SHARE", 100)
    data, scale = stored(kind, rows, columns)
    out = torch.full((rows, columns), 3.0)
    widen.fill(out, kind, data, scale)
    expected = (mxfp4 if kind == "fp4" else fp8).dequantise(data, scale)
    assert torch.equal(out.view(torch.int32)[~expected.isnan()], expected.view(torch.int32)[~expected.isnan()])
    assert torch.equal(out.isnan(), expected.isnan())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_go_the_plain_way(dtype, monkeypatch):
    monkeypatch.setattr(widen, "fill_compiled", None)
    data, scale = mxfp4.quantise(torch.randn(6, 64, generator=torch.Generator().manual_seed(1)))
    out = torch.empty(6, 64, dtype=dtype)
    widen.fill(out, "fp4", data, scale)
    assert torch.equal(out, mxfp4.dequantise(data, scale, dtype))


@pytest.mark.parametrize("kind", ["fp4", "fp8"])
def test_a_scale_of_another_shape_is_refused(kind):
    data, scale = stored(kind, 130, 64)
    with pytest.raises(ValueError, match=rf"{kind}: scale has shape .*needs"):
        widen.fill(torch.empty(130, 64), kind, data, scale[:-1])
