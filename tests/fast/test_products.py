"""Products by oneDNN are those of `F.linear`, of any shape and order of memory; small ones do not go there."""

import pytest
import torch
from small import normal, off

from minidsv4.fast import products

ROUNDED = 1e-6  # float32 rounds at 6e-8, and a sum of 64 products is 8 times as large as one


@pytest.fixture
def calls(monkeypatch):
    """The shapes that oneDNN multiplies, which here takes every product."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # another torch: the rows are filled all the same
        monkeypatch.setattr(products, "onednn", torch.nn.functional.linear)
    monkeypatch.setattr(products, "has_onednn", lambda: True)
    seen, right = [], products.onednn
    monkeypatch.setattr(products, "MANY", 0)
    monkeypatch.setattr(products, "onednn", lambda x, weight: seen.append((*x.shape, len(weight))) or right(x, weight))
    return seen


@pytest.mark.parametrize("n_rows", [1, 31, 32, 33, 100])
def test_a_product_is_that_of_linear(n_rows, calls):
    x_TD, weight = normal(n_rows, 64), normal(24, 64, seed=1)
    assert off(products.linear(x_TD.float(), weight.float()).double(), x_TD @ weight.T) < ROUNDED
    assert calls == [(-(-n_rows // 32) * 32, 64, 24)]  # a new shape is dear, so rows are filled up


@pytest.mark.parametrize(
    "cut", [lambda x: x[3:40], lambda x: x[:, :48], lambda x: x[:64].T], ids=["rows", "columns", "T"]
)
def test_factors_may_lie_in_memory_in_any_order(cut, calls):
    x_TD = cut(normal(70, 64))
    for weight in (normal(24, x_TD.shape[1], seed=1), normal(x_TD.shape[1], 24, seed=1).T):
        assert off(products.linear(x_TD.float(), weight.float()).double(), x_TD @ weight.T) < ROUNDED
    assert len(calls) == 2


def test_what_onednn_cannot_do_goes_the_usual_way(calls):
    x_TD, weight = normal(40, 64), normal(24, 64, seed=1)
    assert torch.equal(products.linear(x_TD, weight), torch.nn.functional.linear(x_TD, weight))  # float64
    products.linear(x_TD.bfloat16(), weight.bfloat16())
    with torch.enable_grad():
        learned = weight.float().requires_grad_()
        assert products.linear(x_TD.float(), learned).requires_grad
    assert calls == []


def test_a_small_product_is_not_worth_the_call(calls, monkeypatch):
    monkeypatch.setattr(products, "MANY", 40 * 64 * 24 + 1)
    products.linear(normal(40, 64).float(), normal(24, 64).float())
    assert calls == []


@pytest.mark.parametrize("beta", [0, 1])
@pytest.mark.parametrize("n_rows", [1, 33, 64])
def test_a_product_over_rows_is_that_of_the_transpose_and_its_rows_are_filled_up(n_rows, beta, calls):
    left_TF, right_TD, before_FD = normal(n_rows, 24), normal(n_rows, 64, seed=1), normal(24, 64, seed=2)
    out_FD = before_FD.float() if beta else torch.full((24, 64), torch.nan)  # of room that is new nothing is read
    products.put_over_rows(out_FD, left_TF.float(), right_TD.float(), beta)
    assert off(out_FD.double(), beta * before_FD + left_TF.T @ right_TD) < ROUNDED
    assert calls == [(32, -(-n_rows // 32) * 32, 64)]


def test_only_processors_of_amd_go_to_onednn(tmp_path, monkeypatch):
    described, missing = tmp_path / "cpuinfo", tmp_path / "none"
    for vendor, name in (("AuthenticAMD", "AMD64 Family 25, GenuineIntel"), ("GenuineIntel", "AuthenticAMD")):
        described.write_text(f"processor : 0\nvendor_id : {vendor}\n")
        monkeypatch.setattr("platform.processor", lambda name=name: name)
        assert products.is_of_amd(described) == (vendor == "AuthenticAMD")
        assert products.is_of_amd(missing) == ("AuthenticAMD" in name)
