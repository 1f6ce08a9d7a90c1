"""`torch.autocast` on models held in float32: what is cast, what stays in float32, how near the results are."""

import pytest
import torch
from small import EXACT, TINY, both_tables, normal, off, positions_of, small_model, token_ids

import minidsv4 as v4
from minidsv4.config import LayerKind
from minidsv4.fast import FAST
from minidsv4.model.cache import new_layer_memory
from minidsv4.model.layer import watch
from minidsv4.ops import PLAIN
from minidsv4.train.recompute import recomputing

narrow = pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])


def autocast(low):
    return torch.autocast("cpu", dtype=low)


def rms(ours, expected):
    """Root mean square of the difference, in units of that of the expected values."""
    return ((ours.double() - expected).square().mean() / expected.square().mean()).sqrt().item()


def gradient(model):
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])


@pytest.mark.slow
@narrow
@both_tables
@pytest.mark.parametrize("seed", [0, 1])
def test_logits_loss_and_gradients_are_near_those_of_the_plain_model_in_float64(seed, table, low):
    """Kind: agrees with the plain model; before, every forward under autocast ended in a dtype error."""
    model, ids_BT = small_model(seed=seed, dtype=torch.float32).use(table), token_ids(2, 40, seed)
    plain = small_model(seed=seed).use(PLAIN)
    expected, expected_loss = plain(ids_BT).detach(), plain.loss(ids_BT).total
    expected_loss.backward()
    with autocast(low):
        logits_BTV, loss = model(ids_BT), model.loss(ids_BT).total
    loss.backward()
    eps = torch.finfo(low).eps
    assert logits_BTV.dtype == loss.dtype == torch.float32
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
    assert rms(logits_BTV.detach(), expected) < 8 * eps  # some 20 products in a row round to half an eps each: 1 to 5
    assert abs(loss.item() - expected_loss.item()) < 4 * eps  # a mean over tokens
    assert rms(gradient(model), gradient(plain)) < 32 * eps  # as many products again, and experts that change


@pytest.mark.slow
@both_tables
def test_autocast_is_nearer_to_float64_than_a_model_held_in_bfloat16(table):
    """Kind: islands; the streams and all that is read and written of them stay in float32."""
    errors = []
    for seed in range(4):
        ids_BT = token_ids(2, 40, seed)
        expected = small_model(seed=seed).use(PLAIN)(ids_BT).detach()
        model = small_model(seed=seed, dtype=torch.float32).use(table)
        with autocast(torch.bfloat16):
            cast = model(ids_BT).detach()
        errors.append([rms(logits, expected) for logits in (cast, model.bfloat16()(ids_BT).detach())])
    with_autocast, held = torch.tensor(errors).mean(0)
    assert with_autocast < held


@narrow
@both_tables
def test_float32_islands_compute_the_same_bits_as_outside(table, low):
    model = small_model(dtype=torch.float32).use(table)
    streams_BTND, x_BTD = normal(2, 13, 4, TINY.hidden_size).float(), normal(2, 13, TINY.hidden_size, seed=1).float()
    compressor = next(block.attn.compressor for block in model.layers if block.attn.kind is LayerKind.HCA)

    def computed():
        memory = new_layer_memory(TINY, LayerKind.HCA, 2, torch.float32, x_BTD.device).main
        return (
            *model.layers[0].hc_attn(streams_BTND),
            model.hc_head(streams_BTND),
            model.layers[-1].ffn.gate(x_BTD, token_ids(2, 13)).weight_BTA,
            compressor(x_BTD, positions_of(LayerKind.HCA, 13), memory),
            model.norm(x_BTD),
            model.logits(streams_BTND),
        )

    outside = computed()
    with autocast(low):
        inside = computed()
    for ours, expected in zip(inside, outside, strict=True):
        assert torch.equal(ours, expected)


@narrow
@both_tables
def test_products_run_in_16_bits_and_what_is_released_in_float32_does_not(table, low):
    model = small_model(dtype=torch.float32).use(table)
    with autocast(low), watch(model, "pool", "stream_logits", "affinities", "swiglu", "experts", "attend") as calls:
        model(token_ids(2, 40))
    found = {}
    for _, arguments, output in calls:
        found.setdefault(len(arguments), set()).add(output.dtype)
    assert found == {2: {torch.float32}, 3: {torch.float32}, 5: {low}, 6: {low}}  # 5: attend, 6: experts
    assert model.ops is model.layers[1].attn.ops is table  # watching within leaves nothing behind


@pytest.mark.slow
@both_tables
def test_a_backward_within_autocast_and_one_with_recomputation_are_those_without(table):
    ids_BT, found = token_ids(2, 40), []
    for within, recompute in ((False, False), (True, False), (False, True)):
        model = small_model(dtype=torch.float32).use(table)
        with autocast(torch.bfloat16):
            if recompute:
                with recomputing(model):
                    loss = model.loss(ids_BT).total
            else:
                loss = model.loss(ids_BT).total
            if within:
                loss.backward()
        if not within:
            loss.backward()
        found.append(gradient(model))
    assert rms(found[2], found[0]) < 1e-6  # float32 sums
    assert rms(found[1], found[0]) < 0.02  # torch's own backward then runs in bfloat16, ours does not


@both_tables
def test_chunks_and_generation_run_under_autocast(table):
    model, ids_BT = small_model(dtype=torch.float32).use(table), token_ids(2, 40)
    cache = model.new_cache(2)
    with autocast(torch.bfloat16), torch.no_grad():
        whole = model(ids_BT)
        chunks = torch.cat([model(ids, cache) for ids in ids_BT.split(7, dim=1)], dim=1)
        assert len(v4.generate(model, [1, 2, 3], 5)) >= 5
    assert rms(chunks, whole.double()) < torch.finfo(torch.bfloat16).eps  # sums in another order round to other bits


@pytest.mark.slow
def test_training_under_autocast_learns():
    model, ids_BT = v4.Model(TINY), token_ids(2, 30)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(12):
        with autocast(torch.bfloat16):
            losses.append(model.loss(ids_BT).total)
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < losses[0] - 1


@both_tables
def test_float64_stays_as_it_is(table):
    """Autocast leaves float64 alone, and so do the experts."""
    model, ids_BT = small_model().use(table), token_ids(2, 20)
    with autocast(torch.bfloat16):
        logits_BTV = model(ids_BT)
    assert logits_BTV.dtype == torch.float64 and off(logits_BTV, model(ids_BT).detach()) < EXACT


def test_without_autocast_layers_run_the_table_itself():
    model = v4.Model(TINY)
    assert model.ops is FAST
    with autocast(torch.bfloat16):
        assert model.ops is not FAST and model.ops is model.layers[0].ops
        model.use(PLAIN)
    assert model.ops is PLAIN
