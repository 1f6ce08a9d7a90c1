"""Generation: the prompt goes into a cache once, then every token costs one short pass.

T tokens, V vocabulary. With `speculate` a pass verifies drafts and makes several tokens certain (`speculate.py`).
"""

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor

from minidsv4.fast.compiled.step import FusedStep
from minidsv4.model.cache import Cache
from minidsv4.model.model import Model
from minidsv4.serve import checks
from minidsv4.serve.sampling import probabilities, sample
from minidsv4.serve.speculate import Speculation, Speculator


@torch.inference_mode()
def generate(
    model: Model,
    ids: Sequence[int] | Tensor,
    n_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    speculate: bool | int | Speculation = False,
    stream: Callable[[int], object] | None = None,
    stop: int | Collection[int] | None = None,
    fused: bool = False,
    cache_precision: str = "model",
) -> list[int]:
    """New token ids after a prompt, by cached decoding; the last one is a stop token where one was met.

    ids          token ids of the prompt: a list or a tensor [T] (or [1, T]), at least one
    n_tokens     how many to write, from 0; with the prompt at most max_position_embeddings
    temperature  0 takes the likeliest token; 1 samples from the model's own probabilities
    top_p        sample only among the likeliest tokens that together have this share, above 0 to 1
    seed         integer of 64 bits; the same seed, prompt, model and speculation write the same
    speculate    draft with the MTP block: True one token a pass, a number so many, a Speculation also counts the gain.
                 Writes what the model writes without: token by token at temperature 0, in distribution above
    stream       called with each new token id at once
    stop         a token id, or several, after which nothing more is written, such as EOS
    fused        decode in compiled loops: faster, and the same but for rounding; on the CPU, with numba, one by one
    cache_precision  "model", or "released": FP8 entries and FP4 indexer keys, as `Model.new_cache` packs them
    raises       ValueError: an argument of a wrong kind or range, no MTP block, no fused step, NaN in weights or logits
    """
    model = checks.check_model(model)
    prompt_T = checks.check_prompt(ids, model)
    n_tokens = checks.check_n_tokens(n_tokens)
    checks.check_context(len(prompt_T), n_tokens, model)
    stops = checks.check_stop(stop, model.config.vocab_size)
    checks.check_stream(stream)
    tokens = _tokens(model, prompt_T, temperature, top_p, seed, speculate, fused, cache_precision)
    checks.check_weights(model)
    written: list[int] = []
    for token in itertools.islice(tokens, n_tokens):
        written.append(token)
        if stream is not None:
            stream(token)
        if token in stops:
            break
    return written


def _tokens(
    model: Model,
    ids_T: Tensor,
    temperature: float,
    top_p: float,
    seed: int,
    speculate: bool | int | Speculation,
    fused: bool,
    cache_precision: str,
) -> Iterator[int]:
    """The tokens after a prompt, without end; arguments are checked at once, not with the first token."""
    temperature = checks.check_temperature(temperature)
    top_p = checks.check_top_p(top_p)
    generator = torch.Generator().manual_seed(checks.check_seed(seed))
    if not isinstance(fused, bool):
        raise ValueError(f"generate: fused = {checks.shown(fused)} is no switch; give True or False")
    if fused and speculate is not False:
        several = f"speculate = {checks.shown(speculate)} verifies several tokens a pass"
        raise ValueError(f"generate: {several}; fused = True takes one")
    if speculate is False:
        cache = model.new_cache(precision=cache_precision)
        return _one_by_one(model, FusedStep(model) if fused else model, ids_T, cache, temperature, top_p, generator)
    speculation = speculate if isinstance(speculate, Speculation) else Speculation(depth=speculate)
    return Speculator(model, speculation, temperature, top_p, generator, cache_precision).write(ids_T)


def _one_by_one(
    model: Model,
    step: Callable,
    ids_T: Tensor,
    cache: Cache,
    temperature: float,
    top_p: float,
    generator: torch.Generator,
) -> Iterator[int]:
    """One token a pass, without end; `step` is the model, or does what it does, and the cache is empty."""
    logits_V = model.prefill(ids_T[None], cache)[0]
    while True:
        token = sample(probabilities(logits_V, temperature, top_p), generator)
        yield token
        logits_V = step(ids_T.new_tensor([[token]]), cache=cache)[0, -1]
