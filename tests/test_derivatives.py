"""Derivatives beyond one backward pass: PLAIN has them all, FAST says in a sentence what to use instead."""

import einops
import numpy as np
import pytest
import torch
from op_cases import CASES
from small import EXACT, TINY, normal, off, small_model, token_ids
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, functionalize, grad, jvp, vmap

from minidsv4.fast import FAST
from minidsv4.model.model import Model
from minidsv4.ops import NO_TARGET, PLAIN, Ops
from minidsv4.visibility import Visibility

CPU = torch.device("cpu")
CHOICES = ("top_entries", "stable_topk")  # indices: no derivative at all
BY_HAND = (  # of FAST: their gradients are written out
    "rms_norm",
    "attend",
    "stream_logits",
    "sinkhorn",
    "collapse",
    "write",
    "affinities",
    "swiglu",
    "experts",
    "cross_entropy",
)
SEES = Visibility(2, 3, window=2, n_window=4, device=CPU, ratio=2, n_entries=2)


def small_case(name):
    """`(function of tensors, tensors)`: the operation at a size that finite differences can afford."""
    picked = torch.tensor([[[0, 1], [0, 1], [0, 1]]])
    attended = normal(1, 3, 2, 3), normal(1, 4, 3, seed=1), normal(1, 2, 3, seed=2), normal(2, seed=3)
    indexed = normal(1, 3, 2, 2, seed=4), normal(1, 3, 2, seed=5), normal(1, 2, 2, seed=6)
    streams = normal(1, 2, 2, 3)
    constant = (*attended[:3], SEES, attended[3])
    cases = {
        "rms_norm": (lambda f, x, w: f(x, w, 1e-3), (normal(2, 3), normal(3, seed=1))),
        "rotate": (lambda f, x: f(x, torch.polar(torch.ones(2, 1).double(), normal(2, 1))), (normal(1, 2, 3),)),
        "pool": (lambda f, v, g, b: f(v, g, b), (normal(1, 2, 3, 2), normal(1, 2, 3, 2, seed=1), normal(3, 2))),
        "attend": (lambda f, q, w, e, s: f(q, w, e, SEES, s), attended),
        "index_loss": (lambda f, *given: f(constant, given), indexed),
        "stream_logits": (lambda f, x, w: f(x, w, 1e-3), (streams, normal(4, 6, seed=1))),
        "sinkhorn": (lambda f, x: f(x, 5, 1e-3), (normal(1, 2, 3, 3),)),
        "collapse": (lambda f, x, p: f(x, p), (streams, normal(1, 2, 2, seed=1))),
        "write": (lambda f, *given: f(*given), (streams, normal(1, 2, 3), normal(1, 2, 2), normal(1, 2, 2, 2))),
        "affinities": (lambda f, x, w: f(x, w), (normal(1, 2, 3), normal(4, 3, seed=1))),
        "routing_weights": (lambda f, s: f(s, picked[:, :2], 1.5), (normal(1, 2, 4).abs(),)),
        "swiglu": (lambda f, g, u: f(g, u, 0.7), (normal(2, 3), normal(2, 3, seed=1))),
        "experts": (
            lambda f, x, s, w13, w2: f(x, picked[0], s, w13, w2, 0.7),
            (normal(3, 2), normal(3, 2, seed=1), normal(2, 4, 2, seed=2), normal(2, 2, 2, seed=3)),
        ),
        "cross_entropy": (
            lambda f, h, w: f(h, w, torch.tensor([3, NO_TARGET, 0])),
            (normal(3, 2), normal(4, 2, seed=1)),
        ),
    }
    call, tensors = cases[name]
    return call, [tensor.clone().requires_grad_() for tensor in tensors]


differentiable = pytest.mark.parametrize("name", [name for name in Ops._fields if name not in CHOICES])


# ---- second derivatives ----


@pytest.mark.slow
@differentiable
def test_first_and_second_derivatives_of_plain_are_right(name):
    call, tensors = small_case(name)
    operation = getattr(PLAIN, name)
    assert torch.autograd.gradcheck(lambda *given: call(operation, *given), tensors)
    assert torch.autograd.gradgradcheck(lambda *given: call(operation, *given), tensors)


def second_derivatives(table, name):
    call, tensors = small_case(name)
    gradients = torch.autograd.grad(call(getattr(table, name), *tensors).sin().sum(), tensors, create_graph=True)
    return torch.autograd.grad(sum(part.square().sum() for part in gradients), tensors, allow_unused=True)


@differentiable
def test_second_derivatives_of_fast_are_refused_or_right_and_never_silently_wrong(name):
    """Kind: hand-written gradients, of which torch takes derivatives that lack terms."""
    if name in BY_HAND:
        with pytest.raises(ValueError, match=r"gives first derivatives only; call model.use\(PLAIN\)"):
            second_derivatives(FAST, name)
        return
    for ours, expected in zip(second_derivatives(FAST, name), second_derivatives(PLAIN, name), strict=True):
        if expected is None or (expected == 0).all():
            assert ours is None or ours.abs().max() < EXACT
        else:
            assert off(ours, expected) < EXACT


# ---- forward mode and torch.func ----


@differentiable
def test_forward_mode_of_plain_agrees_with_its_backward(name):
    call, tensors = small_case(name)
    assert torch.autograd.gradcheck(
        lambda *given: call(getattr(PLAIN, name), *given), tensors, check_forward_ad=True, check_backward_ad=False
    )


@pytest.mark.parametrize("name", BY_HAND)
def test_fast_says_in_one_sentence_to_use_plain(name):
    call, tensors = small_case(name)

    def run(first):
        return call(getattr(FAST, name), first, *tensors[1:]).sum()

    sentence = r"ops: the fast form of \w+ has a hand-written gradient.*model.use\(PLAIN\)"
    plain = tensors[0].detach()
    with pytest.raises(ValueError, match=sentence):
        grad(run)(plain)
    with pytest.raises(ValueError, match=sentence):
        jvp(run, (plain,), (torch.ones_like(plain),))
    with pytest.raises(ValueError, match=sentence):
        vmap(run)(torch.stack([plain, plain]))


def tangent(table, name, place, learning):
    """What forward mode gives for `sum` over the operation, along a direction of the tensor at this place, or zeros."""
    call, tensors = small_case(name)
    given = [tensor.detach() for tensor in tensors]
    with torch.set_grad_enabled(learning), forward_ad.dual_level():
        given[place] = forward_ad.make_dual(given[place], normal(*given[place].shape, seed=7))
        out = call(getattr(table, name), *given)
        found = forward_ad.unpack_dual(out).tangent
        return torch.zeros_like(out) if found is None else found


@pytest.mark.parametrize("learning", [True, False])
@differentiable
def test_forward_mode_of_fast_is_refused_in_a_sentence_or_right(name, learning):
    """Kind: a way to differentiate that ended in torch's words, "You must implement the jvp function"."""
    for place in range(len(small_case(name)[1])):
        if name in BY_HAND:
            with pytest.raises(ValueError, match=r"ops: the fast form of \w+ .* forward mode; call model.use\(PLAIN\)"):
                tangent(FAST, name, place, learning)
        else:
            ours = tangent(FAST, name, place, learning)
            assert (ours - tangent(PLAIN, name, place, learning)).abs().max() < EXACT


def test_a_fast_model_in_forward_mode_says_to_use_plain():
    """Kind: as of an operation; the weights of a whole model, with gradients and without."""
    model, ids_BT = small_model(TINY), token_ids(2, 9)
    for learning in (True, False):
        with torch.set_grad_enabled(learning), forward_ad.dual_level():
            parameters = parameters_of(model)
            dual = {name: forward_ad.make_dual(x, torch.ones_like(x)) for name, x in parameters.items()}
            with pytest.raises(ValueError, match=r"forward mode; call model.use\(PLAIN\) first"):
                loss_of(model, ids_BT)(dual)


# ---- whole models ----


def plain_model():
    return small_model(TINY).use(PLAIN)


def loss_of(model, ids_BT):
    """The cross-entropy of the next token as a function of the parameters."""

    def loss(parameters):
        logits_BTV = functional_call(model, parameters, (ids_BT,))
        return torch.nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten())

    return loss


def parameters_of(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_torch_func_grad_of_a_plain_model_is_its_backward():
    model, ids_BT = plain_model(), token_ids(2, 20)
    found = grad(loss_of(model, ids_BT))(parameters_of(model))
    loss_of(model, ids_BT)(dict(model.named_parameters())).backward()
    for name, parameter in model.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert (found[name] - expected).abs().max() < EXACT, name


def test_jvp_of_a_plain_model_is_the_product_with_its_gradient():
    model, ids_BT = plain_model(), token_ids(2, 20)
    parameters = parameters_of(model)
    direction = {name: normal(*part.shape, seed=place) for place, (name, part) in enumerate(parameters.items())}
    loss = loss_of(model, ids_BT)
    _, slope = jvp(loss, (parameters,), (direction,))
    gradient = grad(loss)(parameters)
    expected = sum((gradient[name] * direction[name]).sum() for name in parameters)
    assert abs(slope - expected) < EXACT * abs(expected)


def test_double_backward_of_a_plain_model_is_the_slope_of_its_gradient():
    model, ids_BT = plain_model(), token_ids(2, 14)
    weights = [model.layers[1].attn.wkv.weight, model.layers[2].ffn.experts.w2, model.layers[0].hc_attn.fn]
    directions = [normal(*weight.shape, seed=seed) for seed, weight in enumerate(weights)]

    def slope():
        gradients = torch.autograd.grad(loss_of(model, ids_BT)({}), weights, create_graph=True)
        return sum((gradient * direction).sum() for gradient, direction in zip(gradients, directions))

    curvature = sum((g * d).sum() for g, d in zip(torch.autograd.grad(slope(), weights), directions)).item()
    ends = []
    for step in (1e-5, -2e-5):
        for weight, direction in zip(weights, directions):
            weight.data.add_(direction, alpha=step)
        ends.append(slope().item())
    assert abs(curvature - (ends[0] - ends[1]) / 2e-5) < 1e-5 * abs(curvature)  # what a central difference misses


def test_vmap_over_models_gives_each_models_logits():
    models, ids_BT = [small_model(TINY, seed).use(PLAIN) for seed in (0, 1)], token_ids(2, 20)
    parameters, buffers = torch.func.stack_module_state(models)

    def logits(parameters, buffers):
        return functional_call(models[0], (parameters, buffers), (ids_BT,))

    together = vmap(logits)({name: part.detach() for name, part in parameters.items()}, buffers)
    for ours, model in zip(together, models):
        assert off(ours, model(ids_BT).detach()) < EXACT


def test_vmap_of_grad_gives_the_gradient_of_every_row_by_itself():
    model, ids_BT = plain_model(), token_ids(3, 20)
    parameters = parameters_of(model)
    rows = vmap(lambda ids_T: grad(loss_of(model, ids_T[None]))(parameters))(ids_BT)
    for b in range(3):
        alone = grad(loss_of(model, ids_BT[b : b + 1]))(parameters)
        assert all((rows[name][b] - alone[name]).abs().max() < EXACT for name in parameters)


@pytest.mark.parametrize("transform", ["grad", "jvp", "vmap"])
def test_torch_func_on_a_model_that_runs_fast_says_to_use_plain(transform):
    model, ids_BT = small_model(TINY), token_ids(2, 9)
    loss, parameters = loss_of(model, ids_BT), parameters_of(model)
    with pytest.raises(ValueError, match=r"model.use\(PLAIN\)"):
        if transform == "grad":
            grad(loss)(parameters)
        elif transform == "jvp":
            jvp(loss, (parameters,), (parameters,))
        else:
            vmap(loss)({name: torch.stack([part, part]) for name, part in parameters.items()})


def test_the_random_cases_and_the_small_ones_are_of_the_same_operations():
    assert {name for name in CASES if name not in CHOICES} == {name for name in Ops._fields if name not in CHOICES}
    assert np.isfinite([small_case(name)[1][0].sum().item() for name in Ops._fields if name not in CHOICES]).all()


# ---- without numbers: the meta device, torch.export, torch.compile ----

# A layer of each kind and two Sinkhorn steps: what torch traces in seconds.
TRACED = TINY.replace(
    num_hidden_layers=3,
    compress_ratios=(0, 3, 12, 0),
    layer_types=(*TINY.layer_types[:3], TINY.layer_types[0]),
    mlp_layer_types=TINY.mlp_layer_types[:3],
    n_routed_experts=3,
    num_experts_per_tok=2,
    hc_sinkhorn_iters=2,
    num_nextn_predict_layers=0,
)


@pytest.mark.slow
def test_a_plain_model_on_the_meta_device_has_shapes_with_a_cache_and_without():
    """Kind: runs; the product in float32 asked torch for the autocast of a device that has none."""
    with torch.device("meta"):
        model = Model(TINY, ops=PLAIN)
    ids_BT = token_ids(2, 20).to("meta")
    for cache in (None, model.new_cache(2)):
        assert model(ids_BT, cache).shape == (2, 20, TINY.vocab_size)


@pytest.mark.slow
def test_a_plain_model_is_exported_and_runs_on_unharmed():
    """Constants that are made once are never the stand-ins of a trace; the theta is one that no other test uses."""
    model = Model(TRACED.replace(rope_theta=12345.0, compress_rope_theta=54321.0), ops=PLAIN)
    ids = token_ids(2, 26)
    with torch.no_grad():
        exported = torch.export.export(model, (ids,))
        assert off(exported.module()(ids), model(ids)) < 1e-5  # float32


@pytest.mark.slow
@pytest.mark.parametrize("before", [False, True], ids=["fresh", "kept"])
@pytest.mark.parametrize("stand_in", ["fake", "functional"])
def test_a_model_runs_on_stand_ins_and_on_numbers_after_one_another(stand_in, before):
    """Kind: a constant of a mode kept for what comes after it, or given to it; either ended in torch's assertion."""
    place = 1 + 2 * before + (stand_in == "fake")  # thetas that no other test uses
    config = TINY.replace(rope_theta=22222.0 + place, compress_rope_theta=33333.0 + place, hc_eps=1e-6 + 1e-9 * place)
    torch.manual_seed(0)
    model, ids_BT = Model(config), token_ids(2, 20)
    expected = model(ids_BT) if before else None
    if stand_in == "fake":
        with FakeTensorMode():
            assert isinstance(Model(config, ops=PLAIN)(torch.zeros(2, 20, dtype=torch.int64)), FakeTensor)
            with pytest.raises(ValueError, match=SENTENCE):
                Model(config)(torch.zeros(2, 20, dtype=torch.int64))
    else:
        functionalize(model.use(PLAIN))(ids_BT)
    found = model.use(FAST)(ids_BT)
    assert type(found) is torch.Tensor and found.isfinite().all()
    assert expected is None or torch.equal(found, expected)


COMPRESSED = TRACED.replace(  # without the layer of windows alone, whose every line the others run as well
    num_hidden_layers=2,
    compress_ratios=(3, 12, 0),
    layer_types=(*TINY.layer_types[1:3], TINY.layer_types[0]),
    mlp_layer_types=TINY.mlp_layer_types[:2],
)


@pytest.mark.slow
def test_a_plain_model_is_compiled_without_a_break_forwards_and_backwards():
    """Kind: what torch cannot trace; `object()` in a new cache broke every graph. aot_eager needs no C++ compiler.

    An operation of einops is one node: tracing how it reads its pattern, anew at every call, took half of the time.
    """
    for operation in (einops.rearrange, einops.reduce, einops.repeat, einops.einsum):
        torch.compiler.allow_in_graph(operation)
    model, ids_BT = small_model(COMPRESSED).use(PLAIN), token_ids(2, 26)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = []
    for run in (model, compiled):
        logits_BTV = run(ids_BT)
        logits_BTV.square().mean().backward()
        found.append((logits_BTV.detach(), model.layers[1].attn.wkv.weight.grad.clone()))
        model.zero_grad()
    torch.compiler.reset()
    for expected, ours in zip(*found, strict=True):
        assert off(ours, expected) < EXACT


SENTENCE = r"ops: the fast form.* call model.use\(PLAIN\) first"


def test_fast_on_the_meta_device_says_to_use_plain():
    with torch.device("meta"):
        model = Model(TINY)
    for cache in (None, model.new_cache(2)):
        with pytest.raises(ValueError, match=SENTENCE):
            model(token_ids(2, 20).to("meta"), cache)


@pytest.mark.parametrize("learning", [True, False])
def test_an_export_of_fast_says_to_use_plain(learning):
    with torch.set_grad_enabled(learning), pytest.raises(ValueError, match=SENTENCE):
        torch.export.export(small_model(TRACED), (token_ids(2, 26),))


def test_one_graph_of_fast_says_to_use_plain():
    """Without `fullgraph` torch runs the fast forms between its graphs, and the logits are right."""
    compiled = torch.compile(small_model(TRACED), backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=SENTENCE):
        compiled(token_ids(2, 26))
    torch.compiler.reset()
