"""What is released in float32 stays in float32: in 16-bit models, under every cast, and what is computed with it."""

import pytest
import torch
from small import CPU, TINY, both_tables, off, small_model, token_ids

import minidsv4 as v4
from minidsv4.fast import FAST
from minidsv4.model.hyper_connection import HeadCollapse, HyperConnection
from minidsv4.model.layer import Layer, RMSNorm, watch
from minidsv4.ops import PLAIN

ISLANDS = ("attn_sink", ".ape", "gate.bias", "norm.weight", ".fn", ".base", ".scale")
narrow = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


def is_island(name):
    """Whether a tensor of this name is released in float32."""
    return name.endswith(ISLANDS) or name in ("norm.weight", "mtp.0.enorm.weight", "mtp.0.hnorm.weight")


def floats(model):
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


@narrow
@pytest.mark.parametrize("start", [torch.float32, torch.float64])
def test_router_bias_sinks_position_bias_mhc_and_norms_stay_float32_and_all_else_is_cast(start, dtype):
    model = small_model(dtype=start).to(dtype)
    found = {name: tensor.dtype for name, tensor in floats(model).items()}
    assert found == {name: torch.float32 if is_island(name) else dtype for name in found}
    kept = {ending for ending in ISLANDS for name in found if name.endswith(ending)}
    assert kept == set(ISLANDS)


CASTS = {
    "bfloat16": lambda model: model.bfloat16(),
    "half": lambda model: model.half(),
    "to": lambda model: model.to(torch.bfloat16),
    "to with a device": lambda model: model.to(CPU, torch.bfloat16),
    "twice": lambda model: model.bfloat16().half(),
}


@pytest.mark.parametrize("name", CASTS)
def test_every_way_to_16_bits_keeps_the_islands_bit_for_bit(name):
    model = small_model(dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in floats(model).items()}
    for key, tensor in floats(CASTS[name](model)).items():
        assert tensor.dtype == torch.float32 if is_island(key) else tensor.dtype != torch.float32, key
        if is_island(key):
            assert torch.equal(tensor, before[key]), key


@pytest.fixture
def default_dtype():
    """Sets torch's default type of floats; the test leaves it as it was."""
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


@narrow
def test_a_model_made_under_a_default_of_16_bits_keeps_its_islands_and_trains(dtype, default_dtype):
    """Kind: a way to 16 bits that passed the islands by; all 152 tensors, the router bias among them, had 16 bits."""
    default_dtype(dtype)
    model = v4.Model(TINY)
    found = {name: tensor.dtype for name, tensor in floats(model).items()}
    assert found == {name: torch.float32 if is_island(name) else dtype for name in found}
    assert all(parameter.requires_grad for parameter in model.parameters())
    losses = model.loss(token_ids(2, 40))
    losses.total.backward()
    assert {part.dtype for part in losses} == {torch.float32}
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_model_made_under_a_default_of_64_bits_has_no_islands(default_dtype):
    default_dtype(torch.float64)
    assert {tensor.dtype for tensor in floats(v4.Model(TINY)).values()} == {torch.float64}


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64])
@pytest.mark.filterwarnings("ignore:Complex modules")
def test_a_cast_to_what_no_model_computes_in_is_refused_and_changes_nothing(dtype):
    """Kind: a type taken in silence that no operation runs in; float8 and complex numbers were."""
    model = small_model(dtype=torch.float32)
    says = rf"model: no model computes in {dtype}; the types are float32, float64, bfloat16, float16"
    for cast in (lambda: model.to(dtype), lambda: model.layers[0].ffn.experts.to(dtype), lambda: model.type(dtype)):
        with pytest.raises(ValueError, match=says):
            cast()
    assert {tensor.dtype for tensor in floats(model).values()} == {torch.float32}
    assert model.layers[0].ffn.gate.tid2eid.dtype == torch.int64


def test_a_cast_to_wide_floats_casts_everything():
    model = small_model(dtype=torch.float32).bfloat16().double()
    assert {tensor.dtype for tensor in floats(model).values()} == {torch.float64}
    assert {tensor.dtype for tensor in floats(model.float()).values()} == {torch.float32}


def test_gradients_go_with_their_parameters():
    model = small_model(dtype=torch.float32)
    model.loss(token_ids(2, 40)).total.backward()
    model.bfloat16()
    for parameter in model.parameters():
        assert parameter.grad is None or parameter.grad.dtype == parameter.dtype


def test_a_part_of_a_model_keeps_its_islands_as_well():
    for part in (RMSNorm(6, 1e-6), HyperConnection(TINY), HeadCollapse(TINY)):
        assert {parameter.dtype for parameter in part.bfloat16().parameters()} == {torch.float32}


def test_every_layer_that_names_an_island_has_it():
    for module in v4.Model(TINY).modules():
        if isinstance(module, Layer):
            assert all(isinstance(getattr(module, name), torch.Tensor) for name in module.float32)


@both_tables
@narrow
def test_logits_of_a_16_bit_model_are_float32_with_and_without_a_cache(dtype, table):
    model, ids_BT = small_model(dtype=torch.float32).to(dtype).use(table), token_ids(2, 20)
    assert model(ids_BT).dtype == torch.float32
    assert model(ids_BT, model.new_cache(2)).dtype == torch.float32
    assert model.prefill(ids_BT, model.new_cache(2)).dtype == torch.float32


@pytest.mark.slow
@both_tables
@narrow
def test_a_16_bit_model_trains_and_every_gradient_has_the_dtype_of_its_parameter(dtype, table):
    model = small_model(dtype=torch.float32).to(dtype).use(table)
    losses = model.loss(token_ids(2, 40))
    assert {part.dtype for part in losses} == {torch.float32}
    losses.total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == parameter.dtype and parameter.grad.isfinite().all(), name


@both_tables
def test_what_is_released_in_float32_is_computed_in_float32(table):
    model = small_model(dtype=torch.float32).bfloat16().use(table)
    with watch(model, "pool", "stream_logits", "affinities", "swiglu") as calls:
        model(token_ids(2, 40))
    kinds = {type(module).__name__ for module, *_ in calls}
    assert {"HyperConnection", "HeadCollapse", "Compressor", "LearnedRouter", "SharedExpert"} <= kinds
    assert {output.dtype for _, _, output in calls} == {torch.float32}


def test_a_router_bias_rises_by_a_thousandth_in_a_bfloat16_model():
    bias = v4.Model(TINY).bfloat16().layers[1].ffn.gate.bias
    bias.fill_(0.5)
    bias += 0.001
    assert bias[0] == torch.tensor(0.501)  # bfloat16 knows 0.5 and 0.50390625


def test_the_logits_of_a_bfloat16_model_with_both_tables_are_near_each_other():
    model, ids_BT = small_model(dtype=torch.float32).bfloat16(), token_ids(2, 40)
    plain, fast = (model.use(table)(ids_BT) for table in (PLAIN, FAST))
    assert off(fast, plain) < 0.2  # sums in another order round to another of 8 bits, four layers deep
