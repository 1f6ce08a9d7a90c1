"""Anticipatory routing: old indices, current weights, the identity without a delay; and going back after a spike."""

import io

import pytest
import torch
from small import TINY, small_model, token_ids

from minidsv4.model.layer import watch
from minidsv4.model.moe import LearnedRouter
from minidsv4.train.loop import Trainer
from minidsv4.train.recipe import Recipe
from minidsv4.train.routing import Anticipation, Guard, GuardedTrainer, fixed_routing, picked_experts

# A router by table, one that learns, and the MTP block's; how a layer attends is not the point.
SHALLOW = TINY.replace(num_hidden_layers=2, compress_ratios=(0, 4, 0), hc_sinkhorn_iters=3)


def batch_at(step):
    return token_ids(2, 9, seed=step)


def new_trainer(kind=Trainer, model=None, steps=30, **more):
    return kind(model or small_model(SHALLOW), batch_at, Recipe(steps=steps, rate=3e-2, warm_up=1), **more)


def weights(trainer):
    return [tensor.clone() for tensor in trainer.model.state_dict().values()]


def same(some, others):
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def learn(trainer, n):
    for _ in range(n):
        trainer.learn(trainer.batch_at(trainer.step))
    return trainer


@pytest.fixture(scope="module")
def plain():
    """The weights after 0 to 20 steps of a trainer without a guard or anticipation."""
    trainer = new_trainer()
    after = [weights(trainer)]
    for _ in range(20):
        after.append(weights(learn(trainer, 1)))
    return after


# --- fixed indices ---


def test_fixing_the_routing_to_what_the_model_picks_changes_no_bit():
    model, ids = small_model(), token_ids(2, 9)
    plain = model.loss(ids).total
    picks = picked_experts(model, ids)
    assert len(picks) == 4  # three layers after the hashed one, and the MTP block
    with fixed_routing(model, picks):
        assert torch.equal(model.loss(ids).total, plain)
    assert "pick" not in vars(model.layers[1].ffn.gate)


def test_fixed_indices_are_those_of_the_older_model_and_their_weights_are_current_with_gradients():
    old, new, ids = small_model(seed=0), small_model(seed=1), token_ids(2, 9)
    picks = picked_experts(old, ids)
    with watch(new, LearnedRouter) as calls, fixed_routing(new, picks):
        new.loss(ids).total.backward()
    for (router, _, routed), picked_BTA in zip(calls, picks, strict=True):
        assert torch.equal(routed.picked_BTA, picked_BTA)
        chosen = routed.score_BTE.gather(-1, picked_BTA)  # scores of the new model
        assert torch.allclose(routed.weight_BTA, router.route_scale * chosen / chosen.sum(-1, keepdim=True), rtol=1e-12)
        assert router.weight.grad.abs().max() > 0
    assert not torch.equal(picked_experts(new, ids)[0], picks[0])


def test_picks_that_do_not_fit_are_refused_with_a_sentence():
    model, picks = small_model(), picked_experts(small_model(), token_ids(2, 9))
    for wrong, words in ((picks[:2], "none"), ([*picks, picks[0]], "1 picks are left over")):
        with pytest.raises(ValueError, match=words), fixed_routing(model, wrong):
            model.loss(token_ids(2, 9))
    with pytest.raises(ValueError, match="do not fit"), fixed_routing(model, picks):
        model.loss(token_ids(2, 8))
    assert torch.isfinite(model.loss(token_ids(2, 8)).total)


# --- anticipation ---


@pytest.mark.slow
def test_without_a_delay_training_is_the_same_to_the_last_bit(plain):
    anticipated = new_trainer()
    anticipated.anticipation = Anticipation(0)
    assert same(plain[5], weights(learn(anticipated, 5)))


@pytest.mark.slow
def test_a_step_uses_the_picks_that_the_parameters_of_delay_steps_ago_make():
    trainer, used = new_trainer(), []
    trainer.anticipation = Anticipation(3)
    made = {}  # with the parameters before a step: what they pick for the batch three steps on
    for step in range(7):
        made[step] = picked_experts(trainer.model, batch_at(step + 3))
        with watch(trainer.model, LearnedRouter) as calls:
            learn(trainer, 1)
        used.append([routed.picked_BTA for _, _, routed in calls][-2:])  # after those of looking ahead
    for step in range(3, 7):
        assert same(used[step], made[step - 3])
    fresh = learn(new_trainer(), 6)
    assert not same(picked_experts(fresh.model, batch_at(6)), made[3])  # the delay made a difference


def test_anticipation_still_balances_by_the_loads_that_were_really_served():
    trainer = new_trainer()
    trainer.anticipation = Anticipation(2)
    record = learn(trainer, 3).learn(batch_at(3))
    assert record["max_violation"] > 0 and trainer.model.layers[1].ffn.gate.bias.abs().max() > 0


def test_a_look_into_the_future_is_refused():
    with pytest.raises(ValueError, match="delay = -1"):
        Anticipation(-1)


# --- the guard ---


def shaken(trainer, at):
    """At one step, once, the head grows a hundredfold: a fault that no loss overlooks."""
    learn_once = trainer.learn

    def learn(batch):
        if trainer.step == at and not trainer.rollbacks:
            trainer.model.head.weight.data.mul_(100)
        return learn_once(batch)

    trainer.learn = learn
    return trainer


GUARD = Guard(jump=0.5, span=4, every=4, delay=2, lasts=6)


@pytest.mark.slow
def test_a_spike_takes_the_run_back_to_a_kept_state_and_anticipates_for_a_while():
    trainer = shaken(new_trainer(GuardedTrainer, guard=GUARD), at=10)
    records, modes = [], []
    while trainer.step < 16:
        records.append(trainer.learn(batch_at(trainer.step)))
        modes.append(trainer.anticipation is not None)
    back = [i for i, record in enumerate(records) if "rolled_back_to" in record]
    assert back == [10] and records[10]["rolled_back_to"] == 4 and trainer.rollbacks == [4]
    assert modes == [False] * 10 + [True] * 7 + [False] * 6  # the spike, six steps, then off
    assert len(trainer.losses) == 16 and max(trainer.losses) < records[10]["main"]


@pytest.mark.slow
def test_going_back_restores_the_state_to_the_bit(plain):
    trainer = shaken(new_trainer(GuardedTrainer, guard=Guard(jump=0.5, span=4, every=4, lasts=0)), at=10)
    learn(trainer, 11)
    assert trainer.step == 4 and same(weights(trainer), plain[4])
    assert same(weights(learn(trainer, 3)), plain[7])  # without anticipation: as if unshaken


@pytest.mark.slow
def test_a_guard_that_sees_no_spike_changes_nothing(plain):
    assert same(weights(learn(new_trainer(GuardedTrainer), 20)), plain[20])


@pytest.mark.slow
def test_a_guarded_run_goes_on_to_the_bit_in_the_middle_of_anticipation():
    straight = shaken(new_trainer(GuardedTrainer, guard=GUARD), at=10)
    learn(straight, 13)
    file = io.BytesIO()
    torch.save({"model": straight.model.state_dict(), "trainer": straight.state_dict()}, file)
    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    resumed = new_trainer(GuardedTrainer, guard=GUARD)
    resumed.model.load_state_dict(state["model"])
    resumed.load_state_dict(state["trainer"])
    assert resumed.anticipation is not None
    assert same(weights(learn(resumed, 7)), weights(learn(straight, 7)))
