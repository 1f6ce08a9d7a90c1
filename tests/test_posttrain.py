"""GRPO and distillation: closed forms, gradients, padding, and runs that a kill does not change."""

import itertools

import pytest
import torch
from small import EXACT, normal, off, small_model

from minidsv4 import paper
from minidsv4.posttrain import distill
from minidsv4.posttrain.grpo import Rewards, advantages, surrogate
from minidsv4.posttrain.rows import log_probs, rows_of
from minidsv4.posttrain.tasks import Verdict

GRADIENT = 1e-6  # central differences with steps of 1e-5 leave 1e-10 of the function, over 1e-5


# --- advantages and rewards ---


def test_advantages_are_zscores_within_each_group_and_zero_where_all_are_worth_the_same():
    reward_B = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.3, 0.3, 0.3, 0.3], dtype=torch.float64)
    three = 3**0.5  # mean 1/4, std sqrt(3)/4
    expected = [three, -1 / three, -1 / three, -1 / three, 0, 0, 0, 0]
    assert off(advantages(reward_B, 4), expected) < 1e-5  # the smallest std of 1e-6 beside one of 0.43


def test_advantages_do_not_change_with_the_scale_or_origin_of_rewards():
    reward_B = normal(12)
    assert off(advantages(5 * reward_B + 3, 4), advantages(reward_B, 4)) < 1e-5


def test_thinking_costs_its_price_in_its_mode_and_a_wrong_answer_is_worth_nothing_however_short():
    rewards = Rewards(price={"none": 0.0, "high": 0.1, "max": 0.01})
    assert rewards.of("high", Verdict(True, 4)) == pytest.approx(0.6)
    assert rewards.of("max", Verdict(True, 4)) == pytest.approx(0.96)
    assert rewards.of("high", Verdict(True, 40)) == 0
    assert rewards.of("high", Verdict(False, 0)) == 0


# --- the surrogate ---


@pytest.mark.parametrize(("ratio", "advantage"), [*itertools.product([0.5, 0.9, 1.1, 1.5], [-2.0, 2.0])])
def test_the_surrogate_is_the_lower_of_ratio_and_clipped_ratio_and_its_gradient_stops_at_the_clip(ratio, advantage):
    log_prob_T = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    old_T, one = (
        log_prob_T.detach() - torch.tensor(ratio, dtype=torch.float64).log(),
        torch.ones(1, dtype=torch.float64),
    )
    parts = surrogate(log_prob_T, old_T, log_prob_T.detach(), advantage * one, one, clip=0.2)
    bounded = min(1.2, max(0.8, ratio))
    assert parts.policy.item() == pytest.approx(-min(ratio * advantage, bounded * advantage), abs=1e-12)
    parts.policy.backward()
    stopped = (advantage > 0 and ratio > 1.2) or (advantage < 0 and ratio < 0.8)
    assert log_prob_T.grad.item() == pytest.approx(0.0 if stopped else -ratio * advantage, abs=1e-12)
    assert parts.clipped.item() == float(stopped)


def test_the_mean_of_the_kl_estimate_over_the_policys_own_tokens_is_the_kl_and_none_is_below_zero():
    policy_V, reference_V = normal(7, seed=1).log_softmax(-1), normal(7, seed=2).log_softmax(-1)
    parts = surrogate(policy_V, policy_V, reference_V, torch.zeros(7), policy_V.exp(), clip=0.2)
    assert off(parts.kl, (policy_V.exp() * (policy_V - reference_V)).sum()) < EXACT
    each = [surrogate(p, p, q, p * 0, torch.ones(()), clip=0.2).kl for p, q in zip(policy_V, reference_V)]
    assert min(each) >= 0


def test_grpos_gradient_on_a_two_armed_bandit_is_the_exact_policy_gradient_over_the_rewards_spread():
    """All groups of 2 over arms with rewards 1 and 0, weighed by their probability.

    Arm 1 is right with probability p. A group with one of each has advantages 1 and -1, others have 0, so the mean
    gradient of the loss in the logit is `-2 p (1 - p) (1 - p + p) / 2 = -p (1 - p)`: the policy gradient of the
    expected reward p, whose derivative in the logit is p (1 - p).
    """
    logit = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    both = torch.stack([logit * 0, logit]).log_softmax(0)
    loss = 0
    for arms in itertools.product([0, 1], repeat=2):
        chosen = both[list(arms)]
        reward_B = torch.tensor(arms, dtype=torch.float64)
        parts = surrogate(chosen, chosen.detach(), chosen.detach(), advantages(reward_B, 2), torch.full((2,), 0.5), 0.2)
        loss = loss + chosen.detach().sum().exp() * parts.policy
    loss.backward()
    p = logit.detach().sigmoid()
    assert logit.grad.item() == pytest.approx(-(p * (1 - p)).item(), rel=1e-5)  # smallest std 1e-6 beside 0.5


# --- divergences ---


def test_the_gradient_of_full_kl_is_its_closed_form_and_central_differences_agree():
    logits_TV, teacher_TV = normal(3, 5, seed=3).requires_grad_(), normal(3, 5, seed=4).log_softmax(-1)
    kl_T = distill.full_kl(logits_TV.log_softmax(-1), teacher_TV)
    kl_T.sum().backward()
    log_p_TV = logits_TV.detach().log_softmax(-1)
    closed = log_p_TV.exp() * (log_p_TV - teacher_TV - kl_T.detach().unsqueeze(-1))
    assert off(logits_TV.grad, closed) < EXACT
    assert torch.autograd.gradcheck(lambda x: distill.full_kl(x.log_softmax(-1), teacher_TV), logits_TV, atol=GRADIENT)


def test_full_kl_is_the_papers_loop_a_teacher_and_a_weight_each():
    logits_TV, *teachers = (normal(3, 6, seed=seed) for seed in (5, 6, 7))
    weights = [0.3, 0.7]
    parts = [distill.full_kl(logits_TV.log_softmax(-1), teacher_TV.log_softmax(-1)).mean() for teacher_TV in teachers]
    loop = paper.distillation_loss(logits_TV.numpy(), [teacher_TV.numpy() for teacher_TV in teachers], weights)
    assert abs(sum(weight * part for weight, part in zip(weights, parts)) - loop) < EXACT


def test_full_kl_is_zero_for_the_teacher_itself_and_above_zero_for_any_other():
    log_p_TV, log_q_TV = normal(4, 6, seed=5).log_softmax(-1), normal(4, 6, seed=6).log_softmax(-1)
    assert distill.full_kl(log_p_TV, log_p_TV).abs().max() < EXACT
    assert distill.full_kl(log_p_TV, log_q_TV).min() > 0


def test_the_sampled_estimate_has_the_value_and_the_gradient_of_full_kl_in_the_mean_over_all_tokens():
    logits_V, teacher_V = normal(6, seed=7).requires_grad_(), normal(6, seed=8).log_softmax(-1)
    log_p_V = logits_V.log_softmax(-1)
    every = distill.sampled_kl(log_p_V.expand(6, -1), teacher_V.expand(6, -1), torch.arange(6))
    mean = (log_p_V.detach().exp() * every).sum()
    (sampled,) = torch.autograd.grad(mean, logits_V, retain_graph=True)
    kl = distill.full_kl(log_p_V, teacher_V)
    (full,) = torch.autograd.grad(kl, logits_V)
    assert off(mean, kl) < EXACT
    assert off(sampled, full) < EXACT


# --- rows ---


def test_padding_and_neighbours_change_no_log_probability_and_prompts_have_none():
    model = small_model()
    prompts = [[0, 5, 6], [0, 7, 8, 9, 10], [0, 11]]
    replies = [[12, 13, 14, 15, 1], [16, 1], list(range(20, 40))]
    together = log_probs(model, rows_of(prompts, replies))
    alone = [log_probs(model, rows_of([p], [r])) for p, r in zip(prompts, replies)]
    assert list(map(len, alone)) == [5, 2, 20]
    assert off(together, torch.cat(alone)) < EXACT
    for prompt, reply, found in zip(prompts, replies, alone):
        logits_TV = model(torch.tensor([prompt + reply]))[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert off(found, logits_TV[torch.arange(len(reply)), reply]) < EXACT


def test_padding_is_not_counted_as_load_of_any_expert():
    from minidsv4.model.layer import watch
    from minidsv4.model.moe import LearnedRouter
    from minidsv4.train.balance import loads
    from minidsv4.visibility import real_tokens

    model, rows = small_model(), rows_of([[0, 5], [0, 6]], [[7, 1], list(range(8, 30))])
    with watch(model, LearnedRouter) as calls:
        log_probs(model, rows)
    counted = loads(calls, real_tokens(*rows.batch()))
    n_real = 4 + 24 - 1  # the last token of the longest row is no input, and the other row's padding is no load
    assert {int(load_E.sum()) for load_E in counted.values()} == {n_real * model.config.num_experts_per_tok}


def test_rows_of_other_numbers_of_prompts_and_replies_or_empty_ones_are_refused():
    for prompts, replies in (([[0]], []), ([], []), ([[]], [[1]]), ([[0]], [[]])):
        with pytest.raises(ValueError, match="rows: .* give one reply a prompt"):
            rows_of(prompts, replies)
