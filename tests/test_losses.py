"""Losses: next token, the token after it, balance, and how they add up; against the loops."""

import pytest
import torch
from small import EXACT, TINY, numpy_of, small_model, token_ids
from torch.nn import functional as F

import minidsv4 as v4
from minidsv4 import paper
from minidsv4.model.layer import watch
from minidsv4.model.losses import balance_loss, text_loss
from minidsv4.model.moe import HashRouter, LearnedRouter, Routed
from minidsv4.ops import NO_TARGET


def nats(logits_TV, targets):
    """Mean cross-entropy by the loops of the paper."""
    return -sum(paper.log_softmax(row)[token] for row, token in zip(logits_TV, targets, strict=True)) / len(targets)


@pytest.fixture(scope="module")
def case():
    model, ids_BT = small_model(), token_ids(2, 14)
    return model, ids_BT, model.loss(ids_BT), numpy_of(model)


def test_the_main_loss_compares_each_position_with_the_next_token(case):
    model, ids_BT, losses, params = case
    expected = [nats(paper.model_logits(params, TINY, ids)[:-1], ids[1:]) for ids in ids_BT.tolist()]
    assert abs(losses.main.item() - sum(expected) / 2) < EXACT


def test_the_mtp_loss_compares_each_position_with_the_token_after_the_next(case):
    model, ids_BT, losses, params = case
    expected = [nats(paper.mtp_logits(params, TINY, ids)[:-1], ids[2:]) for ids in ids_BT.tolist()]
    assert abs(losses.mtp.item() - sum(expected) / 2) < EXACT


def test_the_balance_loss_is_that_of_the_learned_routers_summed_over_layers_and_averaged_over_sequences(case):
    model, ids_BT, losses, _ = case
    with watch(model, LearnedRouter) as seen:
        model.loss(ids_BT)
    assert len(seen) == 4  # of 4 layers the first has a table; the MTP block has a learned router
    expected = 0.0
    for _, _, routed in seen:
        for score_TE, picked_TA in zip(routed.score_BTE, routed.picked_BTA):
            expected += paper.balance_loss(score_TE.detach().numpy(), picked_TA.numpy()) / 2
    assert abs(losses.balance.item() - expected) < EXACT


def test_the_total_weighs_mtp_with_0_3_and_balance_with_a_ten_thousandth(case):
    losses = case[2]
    expected = losses.main + 0.3 * losses.mtp + 1e-4 * losses.balance + losses.indexer
    assert abs(losses.total.item() - expected.item()) < 1e-15 * abs(expected.item()) * 4  # the order of three sums
    assert losses.main > 0 and losses.mtp > 0 and losses.balance > 0


def test_the_weight_of_the_mtp_loss_can_be_lowered_as_at_the_decay(case):
    model, ids_BT, before, _ = case
    losses = model.loss(ids_BT, mtp_weight=0.1)
    assert losses[1:] == before[1:]
    assert abs(losses.total.item() - (before.total - 0.2 * before.mtp).item()) < EXACT


ALL_REAL = torch.ones(1, 6, dtype=torch.bool)


def test_the_balance_loss_is_1_when_experts_share_the_load_and_e_over_a_when_one_group_has_it_all():
    even = Routed(torch.tensor([[[0, 1], [2, 3]] * 3]), torch.ones(1, 6, 2), torch.ones(1, 6, 4).double())
    assert abs(balance_loss(even, ALL_REAL).item() - 1) < 1e-15
    lopsided = Routed(torch.tensor([[[0, 1]] * 6]), torch.ones(1, 6, 2), torch.tensor([[[1.0, 1, 0, 0]] * 6]).double())
    assert abs(balance_loss(lopsided, ALL_REAL).item() - 2) < 1e-15


def test_the_balance_loss_pushes_scores_of_busy_experts_down():
    score = torch.ones(1, 6, 4, dtype=torch.float64, requires_grad=True)
    balance_loss(Routed(torch.tensor([[[0, 1]] * 6]), torch.ones(1, 6, 2), score), ALL_REAL).backward()
    assert (score.grad[..., :2] > 0).all() and (score.grad[..., 2:] < 0).all()


def test_padding_and_rows_of_padding_are_no_part_of_the_balance_loss():
    """Kind: agrees with the loops on the real tokens alone; before, padding was load and moved scores."""
    model, ids_BT = small_model(), token_ids(3, 24)
    document_BT = torch.arange(24).repeat(3, 1)  # padding, token by token
    document_BT[0, :7], document_BT[0, 12:] = 0, 12
    document_BT[1, :20] = 0
    real = [[*range(7), *range(12, 24)], range(20)]
    with watch(model, LearnedRouter) as seen:
        losses = model.loss(ids_BT, document_BT)
    expected = 0.0
    for _, _, routed in seen:
        for b, places in enumerate(real):
            places = [place for place in places if place < routed.score_BTE.shape[1]]
            score_TE, picked_TA = routed.score_BTE[b, places], routed.picked_BTA[b, places]
            expected += paper.balance_loss(score_TE.detach().numpy(), picked_TA.numpy()) / 2
    assert len(seen) == 4 and abs(losses.balance.item() - expected) < EXACT
    assert model.loss(ids_BT[2:], document_BT[2:]).balance == 0


def test_a_text_loss_is_that_of_the_logits_gradients_included():
    model, ids_BT = small_model(), token_ids(2, 8)
    target_BT = ids_BT[:, 1:].clone()
    target_BT[0, 2:5] = NO_TARGET

    def from_logits(model, streams_BTND, target_BT):
        return F.cross_entropy(model.logits(streams_BTND[:, :-1]).flatten(0, 1), target_BT.flatten())

    found = []
    for way in (text_loss, from_logits):
        loss = way(model, model.streams(ids_BT, model.new_cache(2)), target_BT)
        learn = [model.head.weight, model.norm.weight, model.embed.weight, model.hc_head.fn]
        found.append([loss, *torch.autograd.grad(3 * loss, learn)])
    for ours, expected in zip(*found):
        assert (ours - expected).abs().max() < EXACT * expected.abs().max()


@pytest.mark.parametrize("n_tokens", [1, 2])
def test_sequences_of_fewer_than_3_tokens_are_refused(n_tokens):
    with pytest.raises(ValueError, match=f"{n_tokens} tokens .* at least 3"):
        small_model().loss(token_ids(2, n_tokens))


def test_3_tokens_are_enough():
    assert all(part.isfinite() for part in small_model().loss(token_ids(2, 3)))


def test_bad_ids_are_refused_like_in_a_forward():
    with pytest.raises(ValueError, match="61 is no token id"):
        small_model().loss(torch.full((2, 5), 61))


def test_without_an_mtp_block_its_loss_is_zero():
    model = small_model(TINY.replace(num_nextn_predict_layers=0))
    losses = model.loss(token_ids(2, 14))
    rest = losses.total - losses.main - 1e-4 * losses.balance - losses.indexer
    assert losses.mtp == 0 and abs(rest) < 1e-14


def test_watching_leaves_no_hook_behind_even_after_an_error():
    model = small_model()
    with pytest.raises(RuntimeError, match="halfway"):
        with watch(model, LearnedRouter, HashRouter) as seen:
            model(token_ids(2, 5))
            raise RuntimeError("halfway")
    n_seen = len(seen)
    model(token_ids(2, 5))
    assert n_seen == 4 == len(seen) and not any(module._forward_hooks for module in model.modules())


def test_the_loss_has_a_gradient_for_every_parameter_that_is_used():
    model = small_model()
    model.loss(token_ids(2, 40)).total.backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in model.parameters())


def test_a_few_steps_on_one_batch_lower_both_predictions():
    torch.manual_seed(0)
    model, ids_BT = v4.Model(TINY).double(), token_ids(2, 9)
    optimiser, first = torch.optim.Adam(model.parameters(), lr=2e-2), model.loss(ids_BT)
    for _ in range(8):
        optimiser.zero_grad()
        model.loss(ids_BT).total.backward()
        optimiser.step()
    last = model.loss(ids_BT)
    assert last.main < 0.6 * first.main and last.mtp < 0.8 * first.mtp
