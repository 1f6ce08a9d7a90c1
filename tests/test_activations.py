"""Activations as released: what FP8 and FP4 matrices read is rounded, nothing else is, and it ends without a trace."""

import pytest
import torch
from small import EXACT, both_tables, normal, off, small_model, token_ids
from torch import nn
from torch.nn import functional as F

import minidsv4 as v4
from minidsv4 import ops
from minidsv4.lowbit import activations, fp8, qat
from minidsv4.model.layer import watch

IDS = token_ids(2, 38)
NOT_ROUNDED = {"indexer.weights_proj", "head", "compressor.wkv", "compressor.wgate", "attn.wo_a"}


@pytest.fixture
def model():
    return small_model().requires_grad_(False)


def test_experts_read_rounded_tokens_and_rounded_inner_activations_as_a_loop_does():
    x, picked = normal(2, 3, 70), torch.tensor([[[0, 4], [4, 2], [0, 2]], [[2, 4], [1, 0], [4, 1]]])
    weight, w13, w2 = normal(2, 3, 2, seed=1).abs(), 0.2 * normal(5, 26, 70, seed=2), 0.2 * normal(5, 70, 13, seed=3)
    wanted = torch.zeros_like(x)
    for b in range(2):
        for t in range(3):
            for a in range(2):
                e, row = picked[b, t, a], fp8.rounded(x[b, t])
                gate, up = w13[e, :13] @ row, w13[e, 13:] @ row
                inner = F.silu(gate.clamp(max=0.7)) * up.clamp(-0.7, 0.7) * weight[b, t, a]
                wanted[b, t] += w2[e] @ fp8.rounded(inner)
    found = activations.experts(x, picked, weight, w13, w2, 0.7)
    assert off(found, wanted) < EXACT
    assert off(ops.experts(x, picked, weight, w13, w2, 0.7), wanted) > 1e-3


@both_tables
def test_every_matrix_released_in_fp8_reads_rounded_numbers_and_no_other_does(table, model):
    model.use(table)
    names = {module: name for name, module in model.named_modules()}
    with activations.round_activations(model), watch(model, nn.Linear) as calls:
        model(IDS)
        model.mtp_logits(model.streams(IDS[:, :-1], model.new_cache(2)), IDS[:, 1:])
    read = {names[module]: torch.equal(fp8.rounded(inputs[0]), inputs[0]) for module, inputs, _ in calls}
    for name, is_rounded in read.items():
        assert is_rounded != any(name.endswith(kept) for kept in NOT_ROUNDED), name
    ends = {name.split(".")[-1] for name, is_rounded in read.items() if is_rounded}
    assert ends == {"wq_a", "wq_b", "wkv", "wo_b", "w1", "w2", "w3", "e_proj", "h_proj"}


@both_tables
def test_the_logits_differ_by_what_eight_bits_cost_and_it_ends_without_a_trace(table, model):
    exact = model.use(table)(IDS)
    with activations.round_activations(model):
        rounded = model(IDS)
    assert torch.equal(model(IDS), exact) and model.table is table
    assert all(not module._forward_pre_hooks for module in model.modules())
    assert 1e-3 < ((rounded - exact).norm() / exact.norm()).item() < 0.3
    undo = activations.round_activations(model)
    assert torch.equal(model(IDS), rounded)
    undo.close()
    assert torch.equal(model(IDS), exact)


def test_chunks_give_the_logits_of_one_pass_since_a_token_is_rounded_for_itself(model):
    with activations.round_activations(model):
        whole, cache = model(IDS), model.new_cache(2)
        parts = torch.cat([model(ids, cache) for ids in IDS.split(5, dim=1)], dim=1)
    assert (parts - whole).abs().max() < EXACT


def test_weights_can_be_rounded_besides_and_gradients_pass():
    model = small_model()
    with activations.round_activations(model):
        eight = model(IDS)
        model.use(qat.fp4_ops(model.table))
        four = model(IDS)
        model.loss(IDS).total.backward()
    assert off(four, eight) > 1e-3
    for part in ("attn.wq_a.weight", "ffn.experts.w13", "ffn.experts.w2", "ffn.shared_experts.w2.weight"):
        assert model.layers[1].get_parameter(part).grad.abs().max() > 0


def test_a_model_with_operations_of_its_own_is_refused(model):
    model.use(qat.fp4_ops(v4.FAST))
    with pytest.raises(ValueError, match="operations of its own; call model.use"):
        activations.round_activations(model)


def test_what_is_no_model_is_refused():
    with pytest.raises(ValueError, match="^round_activations: str is no model; give a minidsv4.Model"):
        activations.round_activations("m")


def test_compiled_decoding_refuses_it(model):
    with activations.round_activations(model), pytest.raises(ValueError, match="has a hook .* unknown to the loops"):
        v4.generate(model, [1, 2, 3], 2, fused=True)
