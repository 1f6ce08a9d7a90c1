"""Muon: its steps are those of `paper.py`, each matrix is turned alone, the rest is AdamW, a stop changes nothing."""

import io

import numpy as np
import pytest
import torch
from torch import nn

from minidsv4 import Config, Model, paper
from minidsv4.config import LayerKind
from minidsv4.train.muon import (
    SCHEDULE,
    UPDATE_RMS,
    Muon,
    ParameterSpec,
    muon,
    orthogonalise,
    parameter_specs,
    split_matrices,
    table,
)
from tests.small import EXACT, TINY, normal, off, small_model, token_ids

SHAPES = [(6, 20), (20, 6), (9, 31), (7, 7), (1, 5)]


def singular_values(stack):
    return torch.linalg.svdvals(stack)


def learner(*shape, parts=(1,), seed=0, **options):
    """One parameter of normal numbers and its optimizer, at a rate of 0.5 without decay unless told otherwise."""
    parameter = nn.Parameter(normal(*shape, seed=seed))
    return parameter, Muon([ParameterSpec("w", parameter, parts)], **{"rate": 0.5, "decay": 0.0} | options)


def step(parameter, optimizer, gradient):
    """How far one step moves a parameter."""
    before, parameter.grad = parameter.detach().clone(), gradient
    optimizer.step()
    return parameter.detach() - before


def gradients(model, seed):
    """Give every parameter a gradient of normal numbers."""
    for i, parameter in enumerate(model.parameters()):
        parameter.grad = normal(*parameter.shape, seed=1000 * seed + i)


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


# --- orthogonalising ---


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalising_is_the_loop_of_the_paper(shape):
    stack = normal(3, *shape)
    expected = np.stack([paper.newton_schulz(matrix) for matrix in stack.numpy()])
    assert off(orthogonalise(stack), expected) < EXACT


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalising_gives_the_singular_vectors_without_their_values(shape):
    stack = normal(4, *shape, seed=1)
    left, values, right = torch.linalg.svd(stack, full_matrices=False)
    assert (values[:, -1] > 1e-3 * torch.linalg.matrix_norm(stack)).all()
    # Singular values end within 5.4e-4 of 1, by a scan of the two polynomials from 1e-3 to 1.
    assert torch.linalg.matrix_norm(orthogonalise(stack) - left @ right, ord=2).max() < 5.4e-4


def test_singular_values_are_within_0_68_and_1_13_after_8_steps_and_at_1_after_10():
    small = torch.logspace(-3, -0.16, 2000, dtype=torch.float64)  # up to 0.69, and its partner from there to 1
    stack = torch.diag_embed(torch.stack([small, (1 - small**2).sqrt()], dim=1))  # norms of 1
    fast, full = (singular_values(orthogonalise(stack, SCHEDULE[:n])) for n in (8, 10))
    assert 0.68 < fast.min() < 0.69 and 1.13 < fast.max() < 1.135
    assert 1 - 1e-9 < full.min() and 1.0005 < full.max() < 1.00054


def test_a_singular_value_of_1e_4_of_the_norm_ends_at_1_002():
    values = singular_values(orthogonalise(torch.diag(torch.tensor([1.0, 1e-4], dtype=torch.float64))[None]))
    assert abs(values.max() - 1.002) < 2e-4


def test_products_in_bfloat16_are_stable():
    for seed in range(5):
        stack = normal(3, 24, 40, seed=seed, dtype=torch.float32)
        turned = orthogonalise(stack, dtype=torch.bfloat16)
        assert turned.dtype == torch.float32
        # bfloat16 keeps 8 bits: one product rounds by 0.2%, and the last steps forgive what came before.
        assert (singular_values(turned) - 1).abs().max() < 0.012


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(12, 18), (9, 24), (13, 41), *SHAPES])
def test_a_matrix_gives_the_same_bits_wherever_it_lies_in_a_stack(shape, dtype):
    stack = normal(5, *shape, dtype=dtype)
    assert torch.equal(orthogonalise(stack), torch.cat([orthogonalise(matrix[None]) for matrix in stack]))


def test_a_transposed_matrix_gives_the_transposed_result():
    stack = normal(3, 5, 14)
    assert torch.equal(orthogonalise(stack.mT), orthogonalise(stack).mT)


def test_a_gradient_of_any_size_gives_the_same_result():
    stack = normal(1, 6, 9, dtype=torch.float32)
    for size in (2.0**-100, 2.0**100):  # their squares leave float32; powers of two round nothing
        assert torch.equal(orthogonalise(stack * size), orthogonalise(stack))
    assert not orthogonalise(torch.zeros(2, 3, 4)).any()


# --- the step ---


@pytest.mark.parametrize("shape", SHAPES)
def test_three_steps_are_those_of_algorithm_1(shape):
    parameter, optimizer = learner(*shape, rate=0.01, decay=0.2)
    weight, momentum = parameter.detach().numpy().copy(), np.zeros(shape)
    for seed in range(1, 4):
        gradient = normal(*shape, seed=seed)
        step(parameter, optimizer, gradient)
        weight, momentum = paper.muon_update(weight, gradient.numpy(), momentum, lr=0.01, decay=0.2)
        assert off(parameter.detach(), weight) < EXACT


@pytest.mark.parametrize("shape", [(4, 90), (90, 4), (30, 40), (16, 192)])
def test_an_update_has_root_mean_square_0_18_whatever_the_shape(shape):
    moved = step(*learner(*shape), normal(*shape, seed=3)) / 0.5
    assert abs(moved.square().mean().sqrt() - UPDATE_RMS) < 2e-4  # 0.18 times the 5.4e-4 of orthogonalising


def test_a_transposed_parameter_learns_the_same():
    gradient = normal(5, 14, seed=2)
    tall = step(*learner(14, 5), gradient.mT.contiguous())
    assert torch.allclose(tall.mT, step(*learner(5, 14), gradient), rtol=0, atol=1e-14)  # one rounding of the weights


def test_the_decay_is_decoupled_from_the_gradient():
    parameter, optimizer = learner(5, 8, decay=0.1)
    start, moved = parameter.detach().clone(), step(parameter, optimizer, normal(5, 8, seed=4))
    same, plain = learner(5, 8)
    assert off(moved, step(same, plain, normal(5, 8, seed=4)) - 0.5 * 0.1 * start) < EXACT


def test_many_parameters_of_one_shape_learn_as_each_would_alone():
    alone = [learner(*shape, seed=i) for i, shape in enumerate([(6, 9), (9, 6), (6, 9), (4, 9)])]
    together = [nn.Parameter(parameter.detach().clone()) for parameter, _ in alone]
    optimizer = Muon([ParameterSpec(str(i), p, (1,)) for i, p in enumerate(together)], rate=0.5, decay=0.0)
    for i, (parameter, own) in enumerate(alone):
        together[i].grad = normal(*parameter.shape, seed=10 + i)
        step(parameter, own, together[i].grad.clone())
    optimizer.step()
    assert all(torch.equal(ours, parameter) for ours, (parameter, _) in zip(together, alone))


def test_a_long_stack_is_worked_off_in_pieces_with_the_same_result(monkeypatch):
    gradient = normal(7, 6, 8, seed=1)
    whole = step(*learner(7, 6, 8), gradient)
    monkeypatch.setattr("minidsv4.train.muon.AT_ONCE", 100)  # two matrices of 48 numbers
    assert torch.equal(step(*learner(7, 6, 8), gradient), whole)


def test_a_parameter_without_a_gradient_stays_and_one_of_zeros_only_decays():
    parameter, optimizer = learner(3, 5, decay=0.1)
    assert not step(parameter, optimizer, None).any()
    start = parameter.detach().clone()
    step(parameter, optimizer, torch.zeros(3, 5, dtype=torch.float64))
    assert off(parameter.detach(), 0.95 * start) < EXACT


# --- what is a matrix ---


def test_each_expert_is_a_matrix_of_its_own_and_so_are_its_gate_and_up():
    experts = small_model().layers[0].ffn.experts
    first, second = normal(*experts.w13.shape, seed=1), normal(*experts.w13.shape, seed=1)
    n_rows = TINY.moe_intermediate_size
    second[0] = normal(*second.shape[1:], seed=2)
    second[1, :n_rows] *= 7  # the gate of expert 1, whose up stays
    moved = []
    for gradient in (first, second):
        moved.append(step(*learner(*experts.w13.shape, parts=(1, 1)), gradient))
    changed = (moved[0] - moved[1]).abs().amax(dim=-1) > 1e-9
    assert changed[0].all() and not changed[1:].any()  # seven times a gradient is the same direction
    for gate_or_up in moved[0].split(n_rows, dim=1):
        rms = gate_or_up.square().mean((1, 2)).sqrt() / 0.5
        assert (rms - UPDATE_RMS).abs().max() < 2e-4


def test_a_parameter_is_cut_into_the_matrices_that_the_report_names():
    found = [spec for spec in parameter_specs(Model(TINY)) if spec.parts]
    heights = {spec.name: [part.shape[:2] for part in split_matrices(spec.parameter, spec.parts)] for spec in found}
    c, layer = TINY, f"layers.{TINY.layer_types.index(LayerKind.CSA)}."
    assert heights[layer + "ffn.experts.w13"] == [(c.n_routed_experts, c.moe_intermediate_size)] * 2
    assert heights[layer + "ffn.experts.w2"] == [(c.n_routed_experts, c.hidden_size)]
    assert heights[layer + "attn.wo_a.weight"] == [(1, c.o_lora_rank)] * c.o_groups
    assert heights[layer + "attn.compressor.wkv.weight"] == [(1, c.head_dim)] * 2
    assert heights[layer + "attn.indexer.compressor.wgate.weight"] == [(1, c.index_head_dim)] * 2
    assert heights[layer + "hc_attn.fn"] == [(1, c.hc_mult), (1, c.hc_mult), (1, c.hc_mult**2)]
    assert heights[layer + "attn.wq_b.weight"] == [(1, c.num_attention_heads * c.head_dim)]
    assert heights["mtp.0.ffn.experts.w13"] == heights[layer + "ffn.experts.w13"]


def test_every_parameter_has_one_place_and_adamw_has_what_the_report_lists():
    model = Model(TINY)
    found = parameter_specs(model)
    assert [spec.name for spec in found] == [name for name, _ in model.named_parameters()]
    endings = ("embed.weight", "head.weight", "norm.weight", "base", "scale", "attn_sink", "ape")
    for spec in found:
        assert (spec.parts is None) == spec.name.endswith(endings), spec.name


def test_a_frozen_parameter_has_no_place():
    model = Model(TINY)
    model.embed.requires_grad_(False)
    assert "embed.weight" not in [spec.name for spec in parameter_specs(model)]


def test_the_table_has_a_line_for_each_kind_of_parameter_and_counts_its_matrices():
    lines = table(Model(TINY)).splitlines()
    assert len({line.split()[0] for line in lines}) <= len(lines) < 60
    w13 = next(line for line in lines if line.startswith("ffn.experts.w13"))
    rows = TINY.moe_intermediate_size
    assert w13.endswith(f"Muon  {2 * TINY.n_routed_experts} matrices, rows {rows} + {rows}")
    assert next(line for line in lines if line.startswith("head ")).split()[-2:] == ["AdamW", "numbers"]


@pytest.mark.parametrize(("shape", "parts"), [((5,), (1,)), ((7, 4), (1, 1)), ((2, 3, 4, 5), (1,))])
def test_a_parameter_that_holds_no_such_matrices_is_refused(shape, parts):
    with pytest.raises(ValueError, match="w of shape .* AdamW"):
        learner(*shape, parts=parts)


@pytest.mark.parametrize("wrong", [{"rate": -1.0}, {"rate": float("nan")}, {"momentum": 1.0}])
def test_an_impossible_rate_or_momentum_is_refused(wrong):
    with pytest.raises(ValueError, match="cannot be"):
        learner(3, 4, **wrong)


# --- AdamW, and the whole model ---


def test_what_is_no_matrix_learns_as_with_torchs_adamw():
    ours, optimizer = learner(6, 11, parts=None, rate=0.02, decay=0.1)
    theirs = nn.Parameter(normal(6, 11))
    oracle = torch.optim.AdamW([theirs], lr=0.02, betas=(0.9, 0.95), eps=1e-20, weight_decay=0.1)
    for seed in range(1, 6):
        ours.grad = normal(6, 11, seed=seed) * (seed != 2)  # a step of zeros among them
        ours.grad[0] = 0  # a row that never had a gradient: 0 / 0 must not come up
        theirs.grad = ours.grad.clone()
        optimizer.step(), oracle.step()
        assert (ours - theirs).abs().max() < 1e-14


def test_both_parts_follow_one_rate():
    model = small_model()
    optimizer, before = muon(model, rate=1e-2), weights(model)
    gradients(model, seed=1)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    assert torch.equal(weights(model), before)


def test_stopping_and_going_on_changes_no_bit():
    torch.manual_seed(0)
    models = [small_model(seed=3) for _ in range(2)]
    optimizers = [muon(model, rate=1e-2) for model in models]
    for seed in range(2):
        gradients(models[0], seed), gradients(models[1], seed)
        [optimizer.step() for optimizer in optimizers]
    saved = io.BytesIO()
    torch.save(optimizers[1].state_dict(), saved)
    saved.seek(0)
    resumed = muon(models[1], rate=5.0)  # the saved rate is what counts
    resumed.load_state_dict(torch.load(saved, weights_only=True))
    gradients(models[0], seed=2), gradients(models[1], seed=2)
    optimizers[0].step(), resumed.step()
    assert torch.equal(weights(models[0]), weights(models[1]))


def test_a_closure_is_run_with_gradients_and_its_loss_returned():
    parameter, optimizer = learner(3, 4)

    def closure():
        loss = parameter.square().sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    assert loss.requires_grad and parameter.grad is not None


@pytest.mark.slow
def test_a_model_learns_with_muon():
    model = small_model(seed=1)
    ids_BT, optimizer = token_ids(2, 17), muon(model, rate=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        losses.append(model.loss(ids_BT).total)
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("changes", [{"o_groups": 1}, {"hc_mult": 2}, {"num_nextn_predict_layers": 0}])
def test_other_configs_are_placed_too(changes):
    model = Model(Config.tiny().replace(**changes)).double()
    gradients(model, seed=0)
    muon(model, rate=1e-3).step()
    assert weights(model).isfinite().all()
