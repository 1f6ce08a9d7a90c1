"""A model in released precision: every weight in its format, once and for good, and generation with a packed cache."""

import copy

import pytest
import torch
from small import TINY, both_tables, small_model, token_ids

import minidsv4 as v4
from minidsv4.checkpoint import to_released
from minidsv4.lowbit import fp8, mxfp4, qat
from minidsv4.lowbit.activations import round_activations
from minidsv4.lowbit.formats import stored_as
from minidsv4.lowbit.released import as_released, in_precision
from minidsv4.serve.speculate import Speculation, Speculator
from minidsv4.train.ship import load_pretrained

IDS = token_ids(2, 38)


@pytest.fixture(scope="module")
def model():
    return small_model(dtype=torch.float32).requires_grad_(False)


def test_every_weight_is_rounded_to_its_released_format_and_twice_is_once(model):
    once = as_released(copy.deepcopy(model))
    found, given = to_released(once.state_dict()), to_released(model.state_dict())
    kinds = set()
    for name, weight in given.items():
        kind = stored_as(name, "fp4") if weight.is_floating_point() else "int"
        wanted = {
            "fp4": mxfp4.rounded,
            "fp8": lambda x: fp8.dequantise(*fp8.quantise(x)),
            "bf16": lambda x: x.bfloat16().float(),
        }.get(kind, lambda x: x)(weight)
        assert torch.equal(found[name].to(weight.dtype), wanted), name
        kinds.add(kind)
    assert kinds == {"fp4", "fp8", "bf16", "fp32", "int"}
    twice = as_released(copy.deepcopy(once).use(v4.FAST).float())
    assert all(torch.equal(a, b) for a, b in zip(once.state_dict().values(), twice.state_dict().values()))


@both_tables
def test_its_logits_are_those_of_rounded_weights_rounded_activations_and_rounded_keys(table, model):
    found = as_released(copy.deepcopy(model).use(table))(IDS)
    by_hand = copy.deepcopy(model).use(table)
    state = {
        name: x.float() if x.is_floating_point() else x
        for name, x in as_released(copy.deepcopy(model)).state_dict().items()
    }
    by_hand.load_state_dict(state)
    by_hand = by_hand.bfloat16()
    with round_activations(by_hand):
        by_hand.use(qat.fp4_ops(by_hand.table))  # experts are rounded already: nothing changes
        assert torch.equal(by_hand(IDS), found)
    assert 1e-3 < ((found - model(IDS)).norm() / model(IDS).norm()).item() < 0.5


def test_the_other_precisions_are_casts_and_none_leaves_the_model_alone(model):
    one = copy.deepcopy(model)
    assert in_precision(one, None) is one and one.embed.weight.dtype == torch.float32
    assert in_precision(one, "bf16").embed.weight.dtype == torch.bfloat16
    assert one.layers[0].attn.attn_sink.dtype == torch.float32
    assert in_precision(one, "fp32").embed.weight.dtype == torch.float32
    with pytest.raises(ValueError, match="precision = 'fp16' is not known; it is one of fp32, bf16, released"):
        in_precision(one, "fp16")


def test_a_model_with_operations_of_its_own_is_refused_and_keeps_its_weights(model):
    one = copy.deepcopy(model).use(qat.fp4_ops(v4.FAST))
    with pytest.raises(ValueError, match="operations of its own"):
        as_released(one)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), model.state_dict().values()))


def test_another_table_does_not_take_it_back_and_what_would_lose_it_refuses(model, tmp_path):
    one = as_released(copy.deepcopy(model))
    for _ in range(2):
        with pytest.raises(ValueError, match="has a hook .* unknown to transformers.* load .* again without precision"):
            v4.export_hf(one, tmp_path / "folder")
        with pytest.raises(ValueError, match="has a hook .* unknown to the loops"):
            v4.generate(one, [1, 2, 3], 2, fused=True)
        one.use(v4.FAST)
    assert not list(tmp_path.iterdir())


# ---- generation ----


@pytest.mark.slow
def test_generation_with_a_packed_cache_takes_the_likeliest_token_of_a_pass_with_one(model):
    ids = token_ids(1, 9)[0].tolist()
    written = v4.generate(model, ids, 12, temperature=0, cache_precision="released")
    for n in range(12):
        logits = model(torch.tensor([ids + written[:n]]), model.new_cache(precision="released"))
        assert logits[0, -1].argmax() == written[n]
    drawn = [v4.generate(model, ids, 60, cache_precision=precision) for precision in ("released", "model")]
    assert drawn[0] != drawn[1]  # the same numbers are drawn, from other probabilities


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 3])
def test_speculation_with_packed_caches_writes_what_the_model_writes_without(depth):
    model = small_model(TINY).requires_grad_(False)
    ids = token_ids(1, 9)[0].tolist()
    written = v4.generate(model, ids, 20, temperature=0, cache_precision="released")
    counts = Speculation(depth=depth)
    assert v4.generate(model, ids, 20, temperature=0, speculate=counts, cache_precision="released") == written
    writer = Speculator(model, counts, 0.0, 1.0, torch.Generator(), "released")
    assert writer.cache.precision == writer.draft_cache.precision == "released"
    with pytest.raises(ValueError, match="precision = 'fp8' is not known"):
        v4.generate(model, ids, 2, cache_precision="fp8")


# ---- the shipped model ----


@pytest.mark.slow
def test_the_shipped_model_comes_in_three_precisions():
    kinds = {precision: load_pretrained(precision) for precision in ("fp32", "bf16", "released")}
    assert [model.embed.weight.dtype for model in kinds.values()] == [torch.float32, torch.bfloat16, torch.bfloat16]
    for name, weight in kinds["fp32"].named_parameters():  # what is stored as released is rounded no further
        assert torch.equal(dict(kinds["released"].named_parameters())[name].float(), weight), name
    ids_BT = torch.tensor([[0, 300, 700, 20]])
    assert len({model(ids_BT)[0, -1].sum().item() for model in kinds.values()}) == 3
    with pytest.raises(ValueError, match="precision = 'fp4' is not known"):
        load_pretrained("fp4")


@pytest.mark.slow
def test_the_command_writes_in_every_precision_and_refuses_two_that_exclude_each_other(capsys):
    from minidsv4.__main__ import main

    said = {}
    for precision in ("fp32", "bf16", "released"):
        assert main(["generate", "def fib(n):", "--tokens", "5", "--temperature", "0", "--precision", precision]) == 0
        said[precision] = capsys.readouterr().out
    assert said["bf16"].startswith("def fib(n):") and said["released"].startswith("def fib(n):")
    assert main(["generate", "x", "--precision", "released", "--fused"]) == 2
    assert "--fused reads numbers and --precision released packs them" in capsys.readouterr().err


def test_a_run_can_be_shipped_as_released_and_its_experts_keep_what_fp4_holds(tmp_path):
    from minidsv4.__main__ import main

    narrow = TINY.replace(hidden_size=64, moe_intermediate_size=32)  # rows that groups of 32 fill
    model = as_released(small_model(narrow, dtype=torch.float32))
    v4.save(model.use(v4.FAST).float(), tmp_path / "run")
    v4.pretrained_tokenizer().save(tmp_path / "run" / "tokenizer.json")
    for precision in ("fp8", "released"):
        assert main(["ship", str(tmp_path / "run"), "--out", str(tmp_path / precision), "--precision", precision]) == 0
    sizes = {path.name: (path / "model.safetensors").stat().st_size for path in tmp_path.iterdir()}
    assert sizes["released"] < sizes["fp8"] < sizes["run"]
    back = v4.load(tmp_path / "released")
    assert all(torch.equal(x, y) for x, y in zip(model.state_dict().values(), back.state_dict().values()))
