"""Everything runs on the device that the model is on, and gives there what it gives on the CPU.

Kind of each test: equal to the CPU's numbers, on a device that refuses to mix tensors with the CPU's, and float64.
"""

import copy
import inspect

import pytest
import torch
from other_device import OTHER, OtherDevice
from small import both_tables

import minidsv4 as v4
from minidsv4 import Config, Model
from minidsv4.course import show
from minidsv4.course.record import LayerRecord
from minidsv4.model.layer import watch
from minidsv4.model.moe import MoE, Router
from minidsv4.train import indexer
from minidsv4.train.balance import count_clamped, loads
from minidsv4.train.data import Batches, Mixture, Packed
from minidsv4.train.loop import Trainer, bits_per_byte, fastest_threads
from minidsv4.train.recipe import Recipe
from minidsv4.train.routing import Anticipation
from minidsv4.train.tokenizer import Tokenizer

pytestmark = pytest.mark.slow  # every operation is looked at in Python
generate = torch.no_grad()(inspect.unwrap(v4.generate))  # tensors of `inference_mode` cannot be wrapped by a test
TEXTS = [f"def f{i}(x):\n    return x + {i}\n" * (1 + i % 3) for i in range(40)]


SMALL = Config.tiny().replace(  # a layer of each kind: operations are slow there
    vocab_size=300,
    num_hidden_layers=3,
    compress_ratios=(0, 4, 12, 0),  # documents of a batch begin at multiples of 12
    n_routed_experts=4,
    num_experts_per_tok=2,
    hc_sinkhorn_iters=2,
)


@pytest.fixture(autouse=True)
def other_device():
    with OtherDevice():
        yield


@pytest.fixture
def models():
    """The same model twice: on the CPU, and on the other device."""
    torch.manual_seed(0)
    model = Model(SMALL).float()
    return model, copy.deepcopy(model).to(OTHER)


def documents():
    """Token ids of some documents."""
    return Tokenizer.train(TEXTS, vocab_size=300).encode_all(TEXTS)


def batches():
    """Rows without gaps, and packed rows with padding."""
    yield Batches(documents(), batch_size=2, length=36, seed=0)
    yield Mixture([Packed(documents(), length=36, seed=0, align=12)], [1], batch_size=2, seed=0)


def same(here, there):
    """Whether two results are equal, the second one being on the other device where it is a tensor."""
    if isinstance(here, torch.Tensor):  # float32; sums of gradients are taken in another order there
        return there.device == OTHER and torch.allclose(here, there.cpu(), rtol=1e-4, atol=1e-7)
    if isinstance(here, float):
        return here == pytest.approx(there, rel=1e-4)
    if isinstance(here, tuple | list):
        return len(here) == len(there) and all(map(same, here, there))
    return here == there


@pytest.mark.slow
@both_tables
def test_losses_and_gradients_are_those_of_the_cpu(models, table):
    for rows in batches():
        results = []
        for model in models:
            model.use(table).zero_grad()
            trainer = Trainer(model, rows.at, Recipe(steps=1))
            trainer.learn(rows.at(0))
            results.append([trainer.losses[0], *(p.grad for p in model.parameters())])
        assert all(map(same, *results)) and len(results[0]) > 50


@pytest.mark.slow
@both_tables
def test_chunks_with_a_cache_and_snapshots_are_those_of_the_cpu(models, table):
    ids_BT = torch.randint(300, (2, 40))
    results = []
    for model, ids in zip(models, (ids_BT, ids_BT.to(OTHER))):
        cache = model.use(table).new_cache(2)
        with torch.no_grad():
            first = model.prefill(ids[:, :30], cache, 12)
            snapshot = cache.snapshot()
            second = model(ids[:, 30:], cache=cache)
            cache.restore(snapshot)
            results.append((first, second, model(ids[:, 30:33], cache=cache), cache.n_bytes()))
    assert same(*results)


@pytest.mark.slow
@both_tables
@pytest.mark.parametrize("how", [{"temperature": 0}, {"top_p": 0.8}])
def test_generated_tokens_are_those_of_the_cpu(models, table, how):
    prompts = [5, 6, 7, 8] * 3, torch.tensor([5, 6, 7, 8] * 3), torch.tensor([5, 6, 7, 8] * 3).to(OTHER)
    written = [generate(model.use(table), prompt, 3, **how) for model in models for prompt in prompts[:2]]
    written.append(generate(models[1], prompts[2], 3, **how))
    assert all(tokens == written[0] for tokens in written) and len(written[0]) == 3


@both_tables
def test_what_is_recorded_is_that_of_the_cpu(models, table):
    ids_BT = torch.randint(300, (2, 30))
    wanted = [name for name, value in vars(LayerRecord).items() if isinstance(value, property)]
    found = 0
    records = []
    for model, ids in zip(models, (ids_BT, ids_BT.to(OTHER))):
        with show.record(model.use(table)) as record:
            model(ids)
        records.append(record)
    for here, there in zip(*map(list, records)):
        for name in wanted:
            try:
                value = getattr(here, name)
            except (ValueError, AttributeError):  # of a layer of another kind
                continue
            assert name == "sees" or same(value, getattr(there, name)), name
            found += 1
        assert same(here.weights(), there.weights())
        if here.kind.name == "CSA":
            assert same(here.index_scores(), there.index_scores())
            assert same(here.slot_weights(index=True), there.slot_weights(index=True))
    assert found > 20


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "stage"), [("adamw", "dense"), ("muon", "sparse")])
def test_a_run_goes_on_as_it_does_on_the_cpu(models, optimizer, stage):
    """One step, resumed from the state of another trainer that made one."""
    (rows,) = list(batches())[1:]
    results = []
    for model in models:
        first = Trainer(model, rows.at, Recipe(steps=2, optimizer=optimizer), lambda step: stage)
        first.learn(rows.at(0))
        again = Trainer(model, rows.at, first.recipe, first.stage_at)
        again.load_state_dict(copy.deepcopy(first.state_dict()))
        again.anticipation = Anticipation(0) if stage == "sparse" else None
        assert again.train()
        results.append(again.losses)  # weights are not compared: a gradient that is rounding alone moves them as well
        assert all(parameter.device == model.embed.weight.device for parameter in model.parameters())
    assert same(*results) and len(results[1]) == 2


@pytest.mark.slow
def test_bits_per_byte_and_the_choice_of_threads_are_those_of_the_cpu(models):
    tokenizer, bits = Tokenizer.train(TEXTS, vocab_size=300), []
    for model in models:
        bits.append(torch.no_grad()(bits_per_byte.__wrapped__)(model, tokenizer, TEXTS[:2], 24))
    assert same(*bits)
    assert fastest_threads(Trainer(models[1], list(batches())[1].at, Recipe(steps=1))) >= 1


def test_what_is_counted_is_what_is_counted_on_the_cpu(models):
    ids_BT = torch.randint(300, (2, 36))
    real_BT = torch.ones(2, 36, dtype=torch.bool)
    real_BT[:, 30:] = False
    results = []
    for model, ids in zip(models, (ids_BT, ids_BT.to(OTHER))):
        with watch(model, Router) as calls, watch(model, MoE) as layers:
            model(ids)
        counted = [count_clamped(moe, *inputs) for moe, inputs, _ in layers]
        caught = indexer.recall(model, ids)
        results.append((tuple(loads(calls, real_BT).values()), counted, caught))
    assert same(*results)


@pytest.mark.slow
def test_a_model_is_saved_from_its_device(models, tmp_path):
    for name, model in zip("ab", models):
        v4.save(model, tmp_path / name)
        v4.save(model, tmp_path / f"{name}8", precision="fp8")
        v4.export_hf(model, tmp_path / f"{name}hf")
    for kind in ("", "8", "hf"):
        files = [(tmp_path / f"{name}{kind}" / "model.safetensors").read_bytes() for name in "ab"]
        assert files[0] == files[1]
