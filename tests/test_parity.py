"""The same weights give the same logits and gradients as Hugging Face transformers, over random configs."""

import pytest
import torch
from oracle import gradients, pair, random_config
from torch.nn import functional as F

import minidsv4 as v4
from minidsv4.fast import FAST
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
