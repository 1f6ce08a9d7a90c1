"""Indexer training: the loss as in the loops, who learns from what, dense and warm-up, and what recall counts."""

import functools
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from small import EXACT, TINY, normal, numpy_of, small_model, token_ids

import minidsv4 as v4
from minidsv4 import ops, paper
from minidsv4.model.indexer import Indexer
from minidsv4.model.losses import index_calls, indexer_loss, watch
from minidsv4.train import indexer

MODES = {"dense": indexer.dense_attention, "sparse": lambda model: nullcontext()}


@functools.cache
def model():
    """Used by tests that leave it as it is."""
    return small_model()


def calls_of(model, ids_BT):
    with watch(model, Indexer, "attend") as seen:
        model.streams(ids_BT, model.new_cache(len(ids_BT)))
    return list(index_calls(seen))


def grads(loss, parameters):
    return torch.autograd.grad(loss, list(parameters), allow_unused=True, retain_graph=True)


def parts(model):
    """The parameters of the indexers, and all others."""
    found = {True: [], False: []}
    for name, parameter in model.named_parameters():
        found[".indexer." in name].append(parameter)
    return found[True], found[False]


# ---- the loss, by the loops of the paper ----


def scores_by_hand(call):
    """Index scores [B, T, C] from what the indexer was given."""
    params, (x_BTD, latent_BTQ, *_) = numpy_of(call.indexer), call.inputs
    freqs, scores = paper.layer_frequencies("CSA", TINY), []
    for x_TD, latent_TQ in zip(x_BTD.detach().numpy(), latent_BTQ.detach().numpy()):
        compressor = paper.parameters_under(params, "compressor.")
        keys = paper.compressed_entries(compressor, x_TD, True, freqs, TINY.rms_norm_eps)
        key_CZ = paper.project(keys, paper.hadamard_matrix(TINY.index_head_dim))
        query_TUZ = paper.index_queries(latent_TQ, params["wq_b.weight"], TINY.index_n_heads, freqs)
        weight_TU = paper.index_head_weights(x_TD, params["weights_proj.weight"], TINY.index_head_dim)
        scores.append([paper.index_scores(query, weight, key_CZ) for query, weight in zip(query_TUZ, weight_TU)])
    return np.array(scores)


def weights_by_hand(call, b, t, read):
    """Weights [H, P] of one query over the entries it read, in the one softmax with window and sink."""
    query_BTHK, window_BSK, entries_BCK, sees, sinks_H = call.attended
    window = [window_BSK[b, s] for s in paper.window_tokens(t, sees.window)]
    entries = torch.stack([*window, *entries_BCK[b, read]]).detach().numpy()
    logits_HS = query_BTHK[b, t].detach().numpy() @ entries.T * entries.shape[1] ** -0.5
    return np.array([paper.sink_softmax(row, sink)[len(window) :] for row, sink in zip(logits_HS, sinks_H.tolist())])


def loss_by_hand(call, teach=lambda weight_HC: weight_HC):
    """The mean of `paper.index_loss` over the queries that see an entry."""
    score_BTC, picks_BTP, nats = scores_by_hand(call), call.attended[3].picks_BTP, []
    for b, t in np.ndindex(score_BTC.shape[:2]):
        visible = paper.visible_entries(t, 3)
        read = list(range(visible)) if picks_BTP is None else [c for c in picks_BTP[b, t] if c < visible]
        if read:
            nats.append(paper.index_loss(score_BTC[b, t, read], teach(weights_by_hand(call, b, t, read))))
    return sum(nats) / len(nats)


@pytest.mark.slow
@pytest.mark.parametrize("n_tokens", [3, 4, 38, 70])  # 70: more than a block of queries, 23 entries for 6 picks
@pytest.mark.parametrize("mode", MODES)
def test_the_loss_is_the_sum_over_csa_layers_of_the_divergence_in_the_papers_loops(mode, n_tokens):
    ids_BT = token_ids(2, n_tokens)
    with MODES[mode](model()):
        loss, calls = model().loss(ids_BT).indexer.item(), calls_of(model(), ids_BT)
    assert len(calls) == 2
    assert abs(loss - sum(loss_by_hand(call) for call in calls)) < EXACT


def test_a_teacher_that_norms_each_head_by_itself_is_another_teacher():
    with indexer.dense_attention(model()):
        call = calls_of(model(), token_ids(2, 38))[0]
    wrong = loss_by_hand(call, teach=lambda weight_HC: weight_HC / weight_HC.sum(1, keepdims=True))
    assert abs(indexer_loss(call).item() - wrong) > 1e-3


def test_scores_equal_to_the_log_of_what_was_read_make_no_loss(monkeypatch):
    with indexer.dense_attention(model()):
        call = calls_of(model(), token_ids(2, 9))[0]
    n_window = call.attended[3].n_window
    said_BTC = ops.attention_weights(*call.attended)[..., n_window:].sum(2).log().clamp(min=-1e9) + 5
    monkeypatch.setattr(ops, "index_scores", lambda *_: said_BTC)
    call.indexer.ops = v4.PLAIN
    assert abs(indexer_loss(call).item()) < 1e-15
    call.indexer.ops = v4.FAST


def test_a_text_whose_queries_see_no_entry_makes_no_loss():
    config = TINY.replace(compress_ratios=(0, 5, 12, 5, 0), layer_types=TINY.layer_types)
    losses = small_model(config).loss(token_ids(2, 4))
    assert losses.indexer == 0 and not losses.indexer.requires_grad and losses.total.isfinite()


def test_a_query_that_sees_one_entry_has_nothing_to_learn():
    loss = model().loss(token_ids(2, 3)).indexer
    assert loss.abs() < 1e-15 and all(grad.abs().max() < 1e-15 for grad in grads(loss, parts(model())[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
def test_the_loss_and_its_gradient_come_in_the_models_dtype_and_near_float64(mode, dtype):
    ids_BT = token_ids(2, 38)
    rough = small_model(dtype=torch.float64).to(dtype)  # the same numbers, rounded
    with MODES[mode](model()), MODES[mode](rough):
        exact, loss = model().loss(ids_BT).indexer.item(), rough.loss(ids_BT).indexer
    assert loss.dtype == torch.float32
    assert abs(loss.item() - exact) < (1e-4 if dtype == torch.float32 else 0.1) * exact  # bf16 layers below: 8 bits
    for parameter, grad in zip(parts(rough)[0], grads(loss, parts(rough)[0]), strict=True):
        assert grad.dtype == parameter.dtype and grad.isfinite().all() and grad.abs().max() > 0


@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_is_the_slope_of_the_loss(mode):
    ours, ids_BT, step = small_model(), token_ids(2, 70), 1e-6
    with MODES[mode](ours):
        calls = calls_of(ours, ids_BT)  # held: in the sparse mode other weights would pick other entries
    weights = parts(ours)[0]
    directions = [normal(*weight.shape, seed=i) for i, weight in enumerate(weights)]
    slopes = grads(sum(map(indexer_loss, calls)), weights)

    def loss_after(step):
        for weight, direction in zip(weights, directions):
            weight.data.add_(direction, alpha=step)
        return sum(map(indexer_loss, calls)).item()

    measured = (loss_after(step) - loss_after(-2 * step)) / (2 * step)
    slope = sum((grad * direction).sum().item() for grad, direction in zip(slopes, directions))
    assert abs(slope - measured) < 1e-6 * abs(slope)  # a central difference of this step errs by less


# ---- who learns from what ----


def test_the_trunks_gradients_are_bitwise_the_same_with_and_without_the_indexers_loss():
    ours, ids_BT = small_model(), token_ids(2, 38)
    losses = ours.loss(ids_BT)
    with_it, without = grads(losses.total, parts(ours)[1]), grads(losses.total - losses.indexer, parts(ours)[1])
    assert all(torch.equal(one, other) for one, other in zip(with_it, without, strict=True))
    with indexer.freeze_indexers(ours):
        losses = ours.loss(ids_BT)
        assert losses.indexer == 0
        resting = grads(losses.total, parts(ours)[1])
    assert all(torch.equal(one, other) for one, other in zip(with_it, resting, strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_an_indexer_learns_from_its_loss_alone_and_its_loss_teaches_nothing_else(mode):
    ours = small_model()
    with MODES[mode](ours):
        losses = ours.loss(token_ids(2, 38))
    own, others = parts(ours)
    assert all(grad is None for grad in grads(losses.main + losses.mtp + losses.balance, own))
    assert all(grad is None for grad in grads(losses.indexer, others))
    assert all(grad.abs().max() > 0 for grad in grads(losses.indexer, own))
    assert all(torch.equal(*pair) for pair in zip(grads(losses.indexer, own), grads(losses.total, own), strict=True))


def test_inside_only_nothing_but_the_indexers_has_a_gradient_and_outside_all_is_as_before():
    ours = small_model()
    own, others = parts(ours)
    others[0].requires_grad_(False)  # one that rested before rests after
    with pytest.raises(KeyError), indexer.freeze_trunk(ours):
        ours.loss(token_ids(2, 38)).total.backward()
        raise KeyError
    assert all(parameter.grad is not None for parameter in own)
    assert all(parameter.grad is None for parameter in others)
    assert [p.requires_grad for p in others] == [False] + [True] * (len(others) - 1)


def test_clipping_shrinks_the_trunk_by_its_own_norm_and_the_indexers_by_theirs():
    ours = small_model()
    own, others = parts(ours)
    ours.loss(token_ids(2, 38)).total.backward()
    before = [[parameter.grad.clone() for parameter in part] for part in (own, others)]
    norms = [torch.stack([grad.norm() for grad in part]).norm() for part in before]
    assert norms[0] < 0.5 < norms[1]
    assert abs(indexer.clip_apart(ours, 0.5) - norms[1]) < EXACT
    for grad, parameter in zip(before[0], own):
        assert torch.equal(parameter.grad, grad)  # it was small: the trunk's norm is none of its business
    for grad, parameter in zip(before[1], others):
        assert (parameter.grad - grad * 0.5 / norms[1]).abs().max() < 1e-6  # torch divides by norm + 1e-6


# ---- dense ----


@torch.no_grad()
def test_dense_is_a_top_k_of_everything_and_leaves_the_model_as_it_was():
    ours, ids_BT = small_model(), token_ids(2, 70)
    before = ours(ids_BT)
    with pytest.raises(KeyError), indexer.dense_attention(ours):
        dense = ours(ids_BT)
        raise KeyError
    assert (dense - before).abs().max() > 1e-3
    assert torch.equal(ours(ids_BT), before)
    for module in ours.modules():
        if isinstance(module, Indexer):
            module.n_picked = 23
    assert (ours(ids_BT) - dense).abs().max() < EXACT


@torch.no_grad()
def test_a_cache_that_was_filled_densely_goes_on_sparsely():
    ours, ids_BT = small_model(), token_ids(2, 38)
    ours.layers[1].attn.indexer.n_picked = ours.layers[3].attn.indexer.n_picked = 12  # dense and sparse read the same
    cache = ours.new_cache(2)
    with indexer.dense_attention(ours):
        ours(ids_BT[:, :30], cache)
    assert (ours(ids_BT[:, 30:], cache) - ours(ids_BT)[:, 30:]).abs().max() < EXACT


# ---- the warm-up ----


def warmed_up(n_steps):
    ours, unseen = small_model(), token_ids(4, 96, seed=99)
    for layer in (1, 3):
        ours.layers[layer].attn.compressor.norm.weight.data *= 3  # loud entries: attention has favourites
    frozen = {name: tensor.clone() for name, tensor in ours.state_dict().items() if ".indexer." not in name}
    with indexer.dense_attention(ours):
        before = indexer.recall(ours, unseen)
    losses = indexer.warm_up(ours, lambda step: token_ids(3, 96, seed=step), n_steps, rate=2e-2)
    with indexer.dense_attention(ours):
        after = indexer.recall(ours, unseen)
    return ours, frozen, losses, before, after


@pytest.mark.slow
def test_a_warm_up_teaches_the_indexers_and_moves_nothing_else():
    ours, frozen, losses, before, after = warmed_up(30)
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in frozen.items())
    assert all(parameter.requires_grad for parameter in ours.parameters())
    assert len(losses) == 30 and losses[-1] < 0.8 * losses[0]
    for old, new in zip(before, after, strict=True):
        learnt, fresh = new.pop("indexer"), old.pop("indexer")
        assert new == old and learnt.mass > fresh.mass + 0.02 and learnt.best > fresh.best + 0.03


def test_a_model_without_csa_layers_has_nothing_to_warm_up():
    config = TINY.replace(num_hidden_layers=1, compress_ratios=(0, 0))
    with pytest.raises(ValueError, match="no CSA layer"):
        indexer.warm_up(v4.Model(config), token_ids, 1)


@pytest.mark.parametrize("n_steps", [0, -1, 1.5, None])
def test_a_warm_up_of_no_steps_is_refused(n_steps):
    """Kind: a count that does nothing in silence."""
    with pytest.raises(ValueError, match=rf"warm_up: n_steps = {n_steps} teaches nothing; .* from 1"):
        indexer.warm_up(model(), token_ids, n_steps)


# ---- recall ----


def test_recall_counts_what_loops_count():
    ids_BT, k = token_ids(2, 38), TINY.index_topk
    with indexer.dense_attention(model()):
        found, calls = indexer.recall(model(), ids_BT), calls_of(model(), ids_BT)
    for got, call in zip(found, calls, strict=True):
        rows = {name: [] for name in got}
        for b, t in np.ndindex(2, 38):
            visible = paper.visible_entries(t, 3)
            if visible <= k:
                continue
            mass_C = weights_by_hand(call, b, t, list(range(visible))).sum(0)
            best = set(np.argsort(-mass_C, kind="stable")[:k])
            choices = {"oracle": best, "recent": range(visible - k, visible), "indexer": call.picks_BTP[b, t].tolist()}
            for name, picks in choices.items():
                rows[name].append((sum(mass_C[c] for c in picks) / mass_C.sum(), len(best & set(picks)) / k))
            rows["random"].append((k / visible, k / visible))
        for name, pairs in rows.items():
            assert np.abs(np.mean(pairs, axis=0) - got[name]).max() < EXACT, name


def test_no_choice_catches_more_than_the_oracle():
    for layer in indexer.recall(model(), token_ids(2, 70)):
        assert layer["oracle"].best == 1 and all(other.mass <= layer["oracle"].mass for other in layer.values())


def test_a_text_without_a_choice_is_refused():
    with pytest.raises(ValueError, match="20 tokens make no query choose among more than 6"):
        indexer.recall(model(), token_ids(2, 20))
