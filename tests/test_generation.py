"""Writing with a model: cached decoding equals passes over the whole text, and draws follow the probabilities."""

import pytest
import torch

from minidsv4 import Config, Model
from minidsv4.serve.generation import generate
from minidsv4.serve.sampling import probabilities, sample

PROMPT = [0, 7, 3, 22, 7]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    model = Model(Config.tiny()).double()
    with torch.no_grad():
        model.head.weight *= 40  # far from even odds, so that temperature and top-p have something to bite on
    return model


def test_greedy_decoding_with_a_cache_equals_passes_over_the_whole_text(model):
    ids = list(PROMPT)
    with torch.no_grad():
        for _ in range(30):  # over the borders of the window (7) and of both kinds of compressed entries (3 and 12)
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert generate(model, PROMPT, 30, temperature=0) == ids[len(PROMPT) :]


def test_the_same_seed_writes_the_same_and_another_seed_writes_otherwise(model):
    assert generate(model, PROMPT, 20, seed=3) == generate(model, PROMPT, 20, seed=3)
    assert generate(model, PROMPT, 20, seed=3) != generate(model, PROMPT, 20, seed=4)
    assert generate(model, PROMPT, 20, seed=3)[:8] == generate(model, PROMPT, 8, seed=3)


def test_stream_is_called_with_each_token_as_it_is_written(model):
    seen = []
    assert generate(model, PROMPT, 9, stream=seen.append) == seen and len(seen) == 9


def test_nothing_is_written_after_the_stop_token(model):
    whole = generate(model, PROMPT, 20, seed=3)
    stop = whole[7]
    assert generate(model, PROMPT, 20, seed=3, stop=stop) == whole[: whole.index(stop) + 1]


def test_a_prompt_may_be_a_list_a_tensor_or_a_batch_of_one(model):
    wanted = generate(model, PROMPT, 6)
    assert generate(model, torch.tensor(PROMPT), 6) == generate(model, torch.tensor([PROMPT]), 6) == wanted


def test_writing_leaves_no_gradients_and_the_model_as_it_was(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generate(model, PROMPT, 5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_draws_come_as_often_as_their_probability_says():
    probs_V, generator = torch.tensor([0.5, 0.0, 0.3, 0.2, 0.0], dtype=torch.float64), torch.Generator().manual_seed(0)
    counts = torch.bincount(torch.tensor([sample(probs_V, generator) for _ in range(4000)]), minlength=5)
    # four standard deviations of a share near 1/2 over 4000 draws are 0.032
    assert (counts / 4000 - probs_V).abs().max() < 0.032 and counts[1] == counts[4] == 0


def test_temperature_sharpens_flattens_and_at_0_takes_the_first_of_the_likeliest():
    logits_V = torch.tensor([1.0, 3.0, 3.0, 0.0])
    assert probabilities(logits_V, 0).tolist() == [0, 1, 0, 0]
    assert torch.equal(probabilities(logits_V, 1), logits_V.double().softmax(-1))
    assert probabilities(logits_V, 0.5).max() > probabilities(logits_V, 1).max() > probabilities(logits_V, 2).max()
    assert probabilities(1e30 * logits_V, 1e-3).sum() == 1  # no overflow


def test_top_p_keeps_the_fewest_tokens_that_reach_the_share_and_raises_them_evenly():
    logits_V = torch.tensor([0.15, 0.5, 0.05, 0.3], dtype=torch.float64).log()
    for top_p, kept in [(0.4, [1]), (0.6, [1, 3]), (0.9, [0, 1, 3]), (1e-9, [1])]:
        probs_V = probabilities(logits_V, top_p=top_p)
        target_V = torch.zeros(4, dtype=torch.float64).index_add_(0, torch.tensor(kept), logits_V.exp()[kept])
        assert torch.allclose(probs_V, target_V / target_V.sum(), rtol=0, atol=1e-12)
    assert torch.equal(probabilities(logits_V, top_p=1.0), logits_V.softmax(-1))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"ids": []}, "not empty"),
        ({"ids": torch.zeros(0, dtype=torch.long)}, "not empty"),
        ({"ids": [[1, 2], [3, 4]]}, "one sequence"),
        ({"ids": [1, 61]}, "61 is no token id"),
        ({"ids": [1, -1]}, "-1 is no token id"),
        ({"ids": [1, 61], "n_tokens": 0}, "61 is no token id"),
        ({"ids": [1.0, 2.0]}, "integers"),
        ({"n_tokens": -1}, "n_tokens = -1"),
        ({"n_tokens": 2.5}, "n_tokens = 2.5"),
        ({"temperature": -0.1}, "temperature = -0.1"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"temperature": float("inf")}, "temperature = inf"),
        ({"top_p": 0.0}, "top_p = 0.0"),
        ({"top_p": 1.01}, "top_p = 1.01"),
    ],
)
def test_what_cannot_be_written_is_refused_with_a_sentence(model, wrong, words):
    seen = []
    with pytest.raises(ValueError, match=words):
        generate(model, **{"ids": PROMPT, "n_tokens": 3, "stream": seen.append} | wrong)
    assert seen == []


def test_no_tokens_asked_for_are_no_tokens_written(model):
    assert generate(model, PROMPT, 0) == []
