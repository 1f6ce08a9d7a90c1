"""Plain HC and the lone residual are what their definitions say, and depth does to each what the notebook shows."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from minidsv4 import paper
from minidsv4.config import Config
from minidsv4.course.record import record
from minidsv4.experiments.streams import (
    PlainHyperConnection,
    Residual,
    Stack,
    alike,
    changed_carries,
    composite_gains,
    flow,
)
from minidsv4.model.hyper_connection import HyperConnection
from minidsv4.model.model import Model
from minidsv4.ops import collapse, write

N, D = 4, 6


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def stack(kind, n_layers=5, **changes):
    return Stack(kind, n_layers, D, N, **changes)


def plain_site(place=0, seed=None):
    """A site of plain HC; with a seed all its numbers are drawn."""
    site = PlainHyperConnection(N, D, place).double()
    with torch.no_grad():
        for parameter in site.parameters() if seed is not None else ():
            parameter.copy_(draw(*parameter.shape, seed=seed))
    return site


def maps_by_hand(site, streams_ND):
    """(pre, post, carry) of one token in loops: static part plus gate times tanh(theta . normed stream)."""
    fn, base, scale = (parameter.detach().numpy() for parameter in (site.fn, site.base, site.scale))
    pre, post, carry = np.zeros(N), np.zeros(N), np.zeros((N, N))
    for i in range(N):
        normed = paper.rms_norm(streams_ND[i])
        pre[i] = base[i] + scale[0] * math.tanh(fn[0] @ normed)
        post[i] = base[N + i] + scale[1] * math.tanh(fn[1] @ normed)
        for j in range(N):
            carry[i, j] = base[2 * N + N * i + j] + scale[2] * math.tanh(fn[2 + j] @ normed)
    return pre, post, carry


def test_plain_hc_agrees_with_its_definition_in_loops_and_with_equation_1():
    site, streams, weight = plain_site(seed=1), draw(2, 5, N, D, seed=2), draw(D, D, seed=3)
    mix = site(streams)
    after = write(streams, collapse(streams, mix.pre_BTN) @ weight.T, mix.post_BTN, mix.carry_BTij)
    for b in range(2):
        maps = [maps_by_hand(site, streams_ND) for streams_ND in streams[b].numpy()]
        wanted = paper.hyper_connection(streams[b].numpy(), maps, lambda x_TD: x_TD @ weight.numpy().T)
        assert torch.allclose(after[b], torch.from_numpy(wanted), rtol=0, atol=1e-12)


@pytest.mark.parametrize("place", [0, 2, 7])
def test_at_the_start_plain_hc_reads_one_stream_in_turn_writes_to_all_and_carries_each_whole(place):
    mix = plain_site(place)(draw(2, 5, N, D))
    assert torch.equal(mix.pre_BTN, F.one_hot(torch.tensor(place % N), N).double().expand(2, 5, N))
    assert torch.equal(mix.post_BTN, torch.ones(2, 5, N).double())
    assert torch.equal(mix.carry_BTij, torch.eye(N).double().expand(2, 5, N, N))


def test_with_theta_drawn_each_stream_alone_decides_its_row_of_the_mix():
    site, streams = plain_site(seed=1), draw(1, 1, N, D)
    other = streams.clone()
    other[0, 0, 2] = draw(D, seed=9)
    changed = (site(streams).carry_BTij != site(other).carry_BTij)[0, 0]
    assert changed.any(dim=1).tolist() == [False, False, True, False]


def test_the_lone_residual_adds():
    x, y = draw(2, 5, 1, D), draw(2, 5, D, seed=1)
    mix = Residual()(x)
    assert torch.equal(collapse(x, mix.pre_BTN), x[:, :, 0])
    assert torch.equal(write(x, y, mix.post_BTN, mix.carry_BTij), x + y[:, :, None])


def test_the_stack_holds_the_released_site_with_the_same_maps_and_the_same_noise_as_plain_hc():
    plain, ours = (stack(kind, moved=0.3, seed=4) for kind in ("HC", "mHC"))
    settled, ours_settled = (stack(kind, seed=4) for kind in ("HC", "mHC"))
    assert all(type(site) is HyperConnection for site in ours.sites) and len(ours.sites) == 10
    assert torch.equal(plain.maps, ours.maps)
    shifts = [[a.base - b.base for a, b in zip(x.sites, y.sites)] for x, y in ((plain, settled), (ours, ours_settled))]
    # Adding and subtracting 4.0 costs a few last bits of float64.
    assert all(torch.allclose(hc, mhc, rtol=0, atol=1e-14) and hc.std() > 0.1 for hc, mhc in zip(*shifts))


def test_a_fresh_stack_of_mhc_reads_and_carries_equal_streams_as_one_residual():
    alone, four = (list(stack(kind, seed=2)(draw(1, 3, D)))[-1][0] for kind in ("residual", "mHC"))
    # The read is 1/4 + 1e-6 of each of 4 streams, and a column misses 1 by 2e-6, at 10 sites.
    assert torch.allclose(four, alone.expand_as(four), rtol=0, atol=1e-4)


def test_a_strange_kind_is_refused():
    with pytest.raises(ValueError, match="kind = 'hc' is not known"):
        stack("hc")


def test_gains_of_two_mixes_are_those_worked_out_by_hand():
    first = torch.tensor([[[[1.0, 2.0], [0.0, -1.0]]]])
    second = torch.tensor([[[[0.5, 0.0], [1.0, 1.0]]]])
    forward, backward = composite_gains([first, second])  # product [[2.5, 2], [-1, -1]]
    assert forward.tolist() == [1, 3, 3.5] and backward.tolist() == [1, 3, 4.5]


def test_the_measured_gradient_is_the_derivative_of_the_loss():
    deep, x, step = stack("HC", n_layers=2, moved=0.3), draw(1, 3, D), 1e-6
    towards = draw(1, 3, D, seed=7)
    away = draw(*x.shape)[:, :, None]
    losses = [(list(deep(x + sign * step * towards))[-1][0] * away).sum() for sign in (1, -1)]
    streams, _ = next(iter(deep(x.requires_grad_())))
    gradient = torch.autograd.grad((list(deep(x))[-1][0] * away).sum(), x)[0]
    assert (gradient * towards).sum().item() == pytest.approx(((losses[0] - losses[1]) / (2 * step)).item(), rel=1e-6)
    # Entry streams are 4 equal copies of x: their gradients add up to its gradient.
    passed = list(deep(x.detach().requires_grad_()))
    entry = torch.autograd.grad((passed[-1][0] * away).sum(), passed[0][0])[0]
    assert torch.allclose(entry.sum(dim=2), gradient, rtol=0, atol=1e-12)
    assert flow(deep, x.detach()).gradient[0].item() == pytest.approx(entry.square().mean().sqrt().item(), rel=1e-12)
    assert torch.equal(streams, x[:, :, None].expand_as(streams))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_over_64_layers_the_gain_of_moved_hc_grows_by_orders_of_magnitude_and_that_of_mhc_stays_under_two(seed):
    x = draw(1, 2, D, seed=seed)
    hc, mhc = (flow(stack(kind, n_layers=64, moved=0.3, seed=seed), x) for kind in ("HC", "mHC"))
    assert hc.forward[-1] > 1000 and hc.backward[-1] > 1000
    assert max(mhc.forward.max(), mhc.backward.max()) < 2
    # The sub-layers alone make the signal grow by sqrt(2) or so, and with few channels by a little more or less.
    assert mhc.signal.max() < 4 * mhc.signal[0] and mhc.gradient.max() < 4 * mhc.gradient[-1]


def test_before_anything_has_moved_all_three_are_equally_tame():
    gains = [flow(stack(kind, n_layers=64), draw(1, 2, D)) for kind in ("residual", "HC", "mHC")]
    assert all(abs(part[-1] - 1) < 1e-3 for gain in gains for part in (gain.forward, gain.backward))


def test_the_likeness_of_streams_and_what_sites_keep_are_those_of_a_loop_over_tokens():
    torch.manual_seed(0)
    model = Model(Config.tiny()).double()
    ids_BT = torch.randint(60, (1, 9))
    found = alike(model, ids_BT)
    with record(model) as rec:
        model(ids_BT)
    for layer in range(len(model.layers)):
        streams_TND = rec[layer].streams_BTND[0]
        pairs = [(t, i, j) for t in range(9) for i in range(4) for j in range(4) if i != j]
        cosines = [F.cosine_similarity(streams_TND[t, i], streams_TND[t, j], dim=0) for t, i, j in pairs]
        assert abs(found.cosine_L[layer] - sum(cosines) / len(cosines)) < 1e-12
        for site, mix in enumerate(rec[layer].mixes):
            kept = [mix.carry_BTij[0, t, i, i] for t in range(9) for i in range(4)]
            assert abs(found.kept[2 * layer + site] - sum(kept) / len(kept)) < 1e-12


def test_changed_carries_reach_every_site_and_are_gone_afterwards():
    torch.manual_seed(0)
    model = Model(Config.tiny()).double()
    ids_BT = torch.randint(60, (1, 9))
    before = model(ids_BT)
    with changed_carries(model, lambda carry_BTij: torch.eye(4).double().expand_as(carry_BTij)):
        assert torch.equal(alike(model, ids_BT).kept, torch.ones(2 * len(model.layers)).double())
        assert not torch.allclose(model(ids_BT), before)
    assert torch.equal(model(ids_BT), before)
