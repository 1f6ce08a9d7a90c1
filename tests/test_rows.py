"""Texts that are the rows of one batch are those that `generate` writes."""

import pytest
import torch

from minidsv4 import generate
from minidsv4.config import Config
from minidsv4.model.model import Model
from minidsv4.serve.rows import write_rows

STOP = [1, 2, 3]
SEEDS = range(7)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Model(Config.tiny()).double()


@pytest.fixture(scope="module")
def prompts(model):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(model.config.vocab_size, (7, 13), generator=generator)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_are_the_texts_that_generate_writes(model, prompts, temperature):
    texts = generate(model, list(prompts), 20, temperature, seed=SEEDS, stop=STOP)
    assert write_rows(model, prompts, 20, SEEDS, STOP, temperature) == texts
    assert temperature == 0 or len(set(map(len, texts))) > 1  # some end early, beside others that go on


def test_the_fewest_tokens(model, prompts):
    assert write_rows(model, prompts, 0, SEEDS) == [[]] * 7
    assert write_rows(model, prompts, 1, SEEDS) == [text[:1] for text in write_rows(model, prompts, 3, SEEDS)]


def test_what_cannot_be_written_is_refused(model, prompts):
    with pytest.raises(ValueError, match="seed = .* for 7 prompts; give one for each"):
        write_rows(model, prompts, 3, range(6))
    with pytest.raises(ValueError, match="n_tokens = -1"):
        write_rows(model, prompts, -1, SEEDS)
    with pytest.raises(ValueError, match="goes beyond max_position_embeddings"):
        write_rows(model, prompts, model.config.max_position_embeddings, SEEDS)
