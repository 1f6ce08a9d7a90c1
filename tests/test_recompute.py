"""Recomputation: the same losses and gradients from less memory, and a model that is afterwards as it was."""

from contextlib import nullcontext

import pytest
import torch
from small import TINY, small_model, token_ids

from minidsv4.model.block import Block
from minidsv4.train.loop import Trainer
from minidsv4.train.recipe import Recipe
from minidsv4.train.recompute import recomputing
from minidsv4.train.routing import Anticipation, fixed_routing, picked_experts


def gradients(model, ids_BT):
    model.zero_grad()
    losses = model.loss(ids_BT)
    losses.total.backward()
    return [losses.total.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


def test_losses_and_gradients_are_the_same_bit_for_bit():
    model, ids_BT = small_model(), token_ids(2, 40)
    plain = gradients(model, ids_BT)
    with recomputing(model):
        again = gradients(model, ids_BT)
    assert len(plain) == len(again) > 50
    assert all(torch.equal(one, other) for one, other in zip(plain, again))


def test_a_routing_that_is_fixed_stays_so_in_the_second_run_also_where_it_ended_before():
    """Kind: the same gradients, bit for bit; before, the second run took picks of its own, or found none left."""
    model, ids_BT = small_model(), token_ids(2, 40)
    picks = picked_experts(small_model(seed=1), ids_BT)
    assert not all(map(torch.equal, picks, picked_experts(model, ids_BT)))
    results = []
    for context in (nullcontext(), recomputing(model)):
        model.zero_grad()
        with context:
            with fixed_routing(model, picks):
                total = model.loss(ids_BT).total
            total.backward()
        results.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert all(map(torch.equal, *results)) and len(results[0]) > 50


@pytest.mark.slow
def test_anticipation_learns_the_same_with_recomputation():
    """Kind: a run that equals the plain one bit for bit; before, its second step ran out of picks."""
    trained = []
    for change in (nullcontext, recomputing):
        model = small_model()
        trainer = Trainer(model, lambda step: token_ids(2, 9, seed=step), Recipe(steps=3, rate=3e-2, warm_up=1))
        trainer.anticipation = Anticipation(1)
        with change(model):
            records = [trainer.learn(trainer.batch_at(step)) for step in range(3)]
        assert all("pick" not in vars(module) for module in model.modules())
        trained.append([*model.state_dict().values(), torch.tensor([record["max_violation"] for record in records])])
    assert all(map(torch.equal, *trained))


def kept_bytes(model, ids_BT):
    """Bytes of all storages that autograd is given to keep until the backward pass."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(ids_BT).sum().backward()
    return sum(kept.values())


def test_every_block_runs_twice_and_little_is_kept(monkeypatch):
    model, ids_BT, runs, forward = small_model(TINY), token_ids(1, 64), [], Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, *inputs: runs.append(self) or forward(self, *inputs))
    plain, runs[:] = kept_bytes(model, ids_BT), []
    with recomputing(model):
        less = kept_bytes(model, ids_BT)
    assert [runs.count(block) for block in model.layers] == [2] * len(model.layers)
    assert 0 < less < plain / 3


def test_the_model_is_as_it_was_even_after_an_error():
    model = small_model()
    with pytest.raises(RuntimeError, match="stop"), recomputing(model):
        raise RuntimeError("stop")
    assert all("forward" not in vars(block) for block in model.layers)


def test_without_a_gradient_caches_are_filled_as_ever():
    model, ids_BT = small_model(), token_ids(1, 21)
    found = []
    for context in (nullcontext(), recomputing(model)):
        with context:
            cache = model.new_cache()
            model.prefill(ids_BT[:, :9], cache)
            found.append((model(ids_BT[:, 9:], cache=cache), cache.n_bytes()))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]


def test_a_gradient_through_a_past_is_refused():
    model = small_model()
    cache = model.new_cache()
    model.prefill(token_ids(1, 9), cache)
    with recomputing(model), pytest.raises(ValueError, match="the cache holds 9 tokens"):
        model.streams(token_ids(1, 3), cache)
