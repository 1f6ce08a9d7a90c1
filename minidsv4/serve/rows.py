"""Texts after prompts of one length, written as the rows of one batch: each layer attends for all of them in one call.

B prompts, T tokens of each, V vocabulary. `generate` takes prompts of any lengths and drops a text when it ends. Here a
row goes on unread until the last one has ended, so this is for many short texts.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from minidsv4.model.model import Model
from minidsv4.serve import checks
from minidsv4.serve.engine import Request


@checks.refusing("write_rows")
@torch.inference_mode()
def write_rows(
    model: Model,
    ids_BT: Tensor,
    n_tokens: int,
    seeds: Sequence[int],
    stop: int | Collection[int] | None = None,
    temperature: float = 1.0,
) -> list[list[int]]:
    """New token ids after each prompt: those that `generate` writes, but for rounding.

    ids_BT       prompts of one length, at least one token each
    n_tokens     how many to write at most, from 0
    seeds        of the random numbers, one for each prompt
    stop         a token id, or several, after which nothing more is written, such as EOS
    temperature  0 takes the likeliest token
    raises       ValueError: an argument of a wrong kind or range, NaN in weights or logits
    """
    texts = _texts(model, ids_BT, n_tokens, seeds, stop, temperature)
    cache = model.new_cache(len(texts))
    coming_BT = ids_BT
    while not all(text.ended for text in texts):
        logits_BV = model.prefill(coming_BT, cache)
        for text, logits_V in zip(texts, logits_BV):
            if not text.ended:
                text.written.append(text.draw(logits_V))
        coming_BT = ids_BT.new_tensor([text.written[-1:] for text in texts])
    return [text.written for text in texts]


def _texts(
    model: Model,
    ids_BT: Tensor,
    n_tokens: int,
    seeds: Sequence[int],
    stop: int | Collection[int] | None,
    temperature: float,
) -> list[Request]:
    """A text for each prompt, of which nothing is written yet; every argument is checked."""
    prompts = checks.check_prompts(ids_BT, checks.check_model(model))
    n_tokens = checks.check_n_tokens(n_tokens)
    checks.check_context(ids_BT.shape[1], n_tokens, model)
    checks.check_weights(model)
    temperature = checks.check_temperature(temperature)
    stops = checks.check_stop(stop, model.config.vocab_size)
    texts = []
    for ids_T, seed in zip(prompts, checks.check_seeds(list(seeds), len(prompts))):
        generator = torch.Generator().manual_seed(seed)
        texts.append(Request(ids_T, n_tokens, temperature, 1.0, generator, stops))
    return texts
