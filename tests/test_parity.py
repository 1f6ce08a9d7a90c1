"""The same weights give the same logits and gradients as Hugging Face transformers, over random configs."""

import pytest
import torch
from oracle import gradients, narrow_pair, pair, random_config
from small import TINY
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import minidsv4 as v4
from minidsv4.checkpoint import to_transformers
from minidsv4.fast import FAST
from minidsv4.model.layer import RMSNorm
from minidsv4.ops import PLAIN

SEEDS = range(44)
TABLES = {"plain": PLAIN, "fast": FAST}
CASES = [("plain", seed) for seed in SEEDS] + [("fast", seed) for seed in SEEDS[::4]]
on_every_config = pytest.mark.parametrize(("table", "seed"), CASES)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference in units of the largest value of the oracle."""
    return ((a - b).abs().max() / b.abs().max()).item()


def run(seed: int, dtype: torch.dtype, table: str):
    config, n_batch, n_tokens = random_config(seed)
    model, reference = pair(config, seed, dtype)
    model.use(TABLES[table])
    ids = torch.randint(config.vocab_size, (n_batch, n_tokens))
    ours, theirs = model(ids), reference(ids).logits
    for logits in (ours, theirs):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    return model, reference, ours, theirs


def assert_same_gradients(model, reference, tolerance: float):
    """No gradient (an indexer, a compressor whose first window is still open) must be none or zero there too."""
    expected = gradients(reference)
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, parameter in model.named_parameters():
        ours = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        theirs = expected.get(name, torch.zeros_like(parameter))
        assert (ours - theirs).abs().max() < tolerance * largest, name


@on_every_config
def test_logits_and_gradients_equal_those_of_transformers_in_float64(table, seed):
    model, reference, ours, theirs = run(seed, torch.float64, table)
    assert relative(ours, theirs) < 1e-10
    assert_same_gradients(model, reference, 1e-10)


@on_every_config
def test_logits_and_gradients_equal_those_of_transformers_in_float32(table, seed):
    model, reference, ours, theirs = run(seed, torch.float32, table)
    assert relative(ours, theirs) < 1e-5  # rounding of float32, a few layers deep
    assert_same_gradients(model, reference, 1e-4)


def test_the_random_configs_exercise_what_they_should():
    drawn = [random_config(seed) for seed in SEEDS]
    for kind in v4.LayerKind:
        assert all(kind in config.layer_types[:-1] for config, _, _ in drawn)
    assert {n for _, n, _ in drawn} == {1, 2, 3}
    assert any(v4.Routing.HASH in c.mlp_layer_types and v4.Routing.LEARNED in c.mlp_layer_types for c, _, _ in drawn)
    full = [n // c.ratio_of(v4.LayerKind.CSA) > c.index_topk for c, _, n in drawn]
    assert sum(full) >= 20, "too few lengths at which the indexer has to choose"
    assert sum(n % c.ratio_of(v4.LayerKind.HCA) == 0 for c, _, n in drawn) >= 5


# ---- 16 bits: the same folder of mixed types, here and there ----

NARROW = [torch.bfloat16, torch.float16]
BORDERS = (1, 6, 7, 8, 11, 12, 13, 63, 64, 65, 127, 128, 129)  # windows of 7 and 12 tokens, blocks of 64 queries
# A logit is the sum of some roundings of half an eps, which differ here and there as sums are taken in another order
# and in wider types here: 1.0 to 1.9 measured on 84 cases.
ROUNDED = 2.1


def without_choices(config: v4.Config) -> v4.Config:
    """The config with experts picked by token and with every entry read, so that rounding changes no choice."""
    return config.replace(mlp_layer_types=("hash_moe",) * config.num_hidden_layers, index_topk=64)


def errors(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """The root mean square difference of every token's logits, in eps of theirs and units of the logits' own."""
    scale = theirs.double().square().mean().sqrt()
    return (ours.double() - theirs.double()).square().mean(-1).sqrt() / scale / torch.finfo(theirs.dtype).eps


def rms(error: torch.Tensor) -> float:
    return error.square().mean().sqrt().item()


@torch.no_grad()
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("seed", SEEDS[:10])
def test_in_16_bits_logits_are_those_of_transformers_but_for_rounding(seed, dtype, tmp_path):
    """Kind: what is released in float32 was rounded or computed in 16 bits, here with experts and entries given."""
    config, n_batch, n_tokens = random_config(seed)
    ours, theirs = narrow_pair(without_choices(config), seed, dtype, tmp_path)
    ids = torch.randint(config.vocab_size, (n_batch, n_tokens))
    expected = theirs(ids).logits
    assert expected.dtype == dtype
    for table in TABLES.values():
        assert rms(errors(ours.use(table)(ids), expected)) < ROUNDED


@torch.no_grad()
@pytest.mark.parametrize("dtype", NARROW)
def test_in_16_bits_logits_agree_at_the_borders_of_windows_and_blocks(dtype, tmp_path):
    ours, theirs = narrow_pair(without_choices(TINY), 1, dtype, tmp_path)
    for n_tokens in BORDERS:
        ids = torch.randint(TINY.vocab_size, (2, n_tokens))
        for table in TABLES.values():
            assert rms(errors(ours.use(table)(ids), theirs(ids).logits)) < ROUNDED, n_tokens


@torch.no_grad()
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("seed", SEEDS[:10])
def test_in_16_bits_with_choices_most_tokens_agree_and_the_others_picked_otherwise(seed, dtype, tmp_path):
    """Where a rounding changed a token's experts or entries, its logits are others: measured on up to 13% of tokens."""
    config, n_batch, n_tokens = random_config(seed)
    ours, theirs = narrow_pair(config, seed, dtype, tmp_path)
    ids = torch.randint(config.vocab_size, (n_batch, n_tokens))
    error = errors(ours(ids), theirs(ids).logits)
    assert error.median() < 2 * ROUNDED  # of tokens whose past picked otherwise as well
    assert (error > 8).double().mean() < 0.2


@torch.no_grad()
@pytest.mark.parametrize("seed", SEEDS[:4])
def test_an_exported_folder_in_16_bits_opens_in_transformers_with_logits_that_differ_by_rounding(seed, tmp_path):
    """Kind: a tensor that goes into the file in another type than it is computed in."""
    config, n_batch, n_tokens = random_config(seed)
    model = pair(without_choices(config), seed)[0].bfloat16()
    v4.export_hf(model, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype="auto", attn_implementation="eager", experts_implementation="eager"
    )
    stored = to_transformers(model.state_dict())
    assert {t.dtype for t in stored.values()} == {torch.bfloat16, torch.float32, torch.int64}
    for name, tensor in theirs.state_dict().items():
        assert name.endswith("inv_freq") or (tensor.dtype == stored[name].dtype and torch.equal(tensor, stored[name]))
    ids = torch.randint(config.vocab_size, (n_batch, n_tokens))
    assert rms(errors(model(ids), theirs(ids).logits)) < ROUNDED


@torch.no_grad()
def test_the_bound_on_rounding_is_passed_where_norms_are_rounded(tmp_path):
    ours, theirs = narrow_pair(without_choices(TINY), 4, torch.bfloat16, tmp_path)
    ids = torch.randint(TINY.vocab_size, (2, 129))
    for module in ours.modules():
        if isinstance(module, RMSNorm):
            module.weight.copy_(module.weight.bfloat16())
    assert rms(errors(ours(ids), theirs(ids).logits)) > ROUNDED  # 2.3; 1.6 as they are stored
