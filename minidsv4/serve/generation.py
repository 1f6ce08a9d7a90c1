"""Generation: the prompt goes into a cache once, then every token costs one short pass.

T tokens, V vocabulary. With `speculate` a pass verifies drafts and makes several tokens certain (`speculate.py`).
"""

import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minidsv4.fast.compiled.step import FusedStep
from minidsv4.model.cache import Cache
from minidsv4.model.model import PREFILL_CHUNK, Model
from minidsv4.serve import checks
from minidsv4.serve.engine import Engine
from minidsv4.serve.pool import Sizes
from minidsv4.serve.prefix_store import PrefixStore, check_prefixes
from minidsv4.serve.sampling import probabilities, sample
from minidsv4.serve.speculate import Speculation, Speculator

Prompt = Sequence[int] | Tensor


@checks.refusing("generate")
@torch.inference_mode()
def generate(
    model: Model,
    ids: Prompt | Sequence[Prompt],
    n_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int | Sequence[int] = 0,
    speculate: bool | int | Speculation = False,
    stream: Callable[..., object] | None = None,
    stop: int | Collection[int] | None = None,
    fused: bool = False,
    cache_precision: str = "model",
    prefixes: PrefixStore | None = None,
    invariant: bool = False,
) -> list[Any]:
    """New token ids after a prompt, by cached decoding; the last one is a stop token where one was met. For several
    prompts a list of such texts, each of which is the one that its prompt gives alone.

    ids          token ids of the prompt: a list or a tensor [T] (or [1, T]), at least one; or a list of such prompts
    n_tokens     how many to write, from 0; with the prompt at most max_position_embeddings
    temperature  0 takes the likeliest token; 1 samples from the model's own probabilities
    top_p        sample only among the likeliest tokens that together have this share, above 0 to 1
    seed         integer of 64 bits, or one for each prompt; the same seed, prompt, model and speculation write the same
    speculate    draft with the MTP block: True one token a pass, a number so many, a Speculation also counts the gain.
                 Writes what the model writes without: token by token at temperature 0, in distribution above. Several
                 prompts are then written one after the other
    stream       called with each new token id at once; for several prompts with the number of the prompt and the id
    stop         a token id, or several, after which nothing more is written, such as EOS
    fused        decode in compiled loops: faster, and the same but for rounding; on the CPU, with numba, one by one
    cache_precision  "model", or "released": FP8 entries and FP4 indexer keys, as `Model.new_cache` packs them
    prefixes     the model's `PrefixStore`: how the prompt begins is looked up and kept there; prompt by prompt
    invariant    each token's logits are bitwise the same alone, beside any others, at any chunk of a prompt and in two
                 runs: compiled loops take in prompts too, each sum in one order; on the CPU, with numba, without drafts
    raises       ValueError: an argument of a wrong kind or range, no MTP block, no fused step, NaN in weights or logits
    """
    model = checks.check_model(model)
    _check_speculate(speculate)
    stored = check_prefixes(prefixes, model, speculate)
    how = How(temperature, top_p, speculate, stop, fused, cache_precision, stored, invariant)
    _check_invariant(how)
    if checks.holds_prompts(ids):
        return _several(model, checks.check_prompts(ids, model), n_tokens, seed, stream, how)
    return _one(model, checks.check_prompt(ids, model), n_tokens, seed, stream, how)


class How(NamedTuple):
    """The arguments of `generate` that are the same for all its prompts."""

    temperature: float
    top_p: float
    speculate: bool | int | Speculation
    stop: int | Collection[int] | None
    fused: bool
    cache_precision: str
    prefixes: PrefixStore | None
    invariant: bool


def _check_speculate(speculate: object) -> None:
    """Refuse what says neither whether nor how many tokens to draft."""
    if not isinstance(speculate, bool | int | Speculation):
        right = "give False, True, a number of drafts or a Speculation"
        raise ValueError(f"generate: speculate = {checks.shown(speculate)} is {checks.kind(speculate)}; {right}")


def _check_invariant(how: How) -> None:
    """Refuse an invariant text of which the model's own pass would take in a part."""
    if not checks.check_switch("invariant", how.invariant):
        return
    if how.speculate is not False:
        drafts = f"speculate = {checks.shown(how.speculate)} verifies drafts in the model's own pass"
        raise ValueError(f"generate: {drafts}; invariant = True takes one token after the other")
    if how.prefixes is not None:
        raise ValueError("generate: prefixes hold what the model's own pass made; give prefixes or invariant = True")


def _one(
    model: Model, prompt_T: Tensor, n_tokens: int, seed: object, stream: Callable[..., object] | None, how: How
) -> list[int]:
    """The text after one prompt."""
    n_tokens = checks.check_n_tokens(n_tokens)
    checks.check_context(len(prompt_T), n_tokens, model)
    stops = checks.check_stop(how.stop, model.config.vocab_size)
    checks.check_stream(stream)
    tokens = _tokens(model, prompt_T, seed, how)
    checks.check_weights(model)
    written: list[int] = []
    for token in itertools.islice(tokens, n_tokens):
        written.append(token)
        if stream is not None:
            stream(token)
        if token in stops:
            break
    return written


def _several(
    model: Model,
    prompts: list[Tensor],
    n_tokens: int,
    seed: object,
    stream: Callable[..., object] | None,
    how: How,
) -> list[list[int]]:
    """The texts after several prompts: side by side in an engine; with drafts or stored prefixes one by one."""
    seeds = checks.check_seeds(seed, len(prompts))
    checks.check_context(max(map(len, prompts)), checks.check_n_tokens(n_tokens), model)
    checks.check_stream(stream, ("a prompt's number", "the new token's id"))
    streams = [None if stream is None else functools.partial(stream, number) for number in range(len(prompts))]
    each = list(zip(prompts, seeds, streams))
    if how.speculate is not False or how.prefixes is not None:
        return [_one(model, prompt_T, n_tokens, own, show, how) for prompt_T, own, show in each]
    sizes = Sizes(model, how.cache_precision)
    n_blocks = sum(sizes.blocks(len(prompt_T) + n_tokens) for prompt_T in prompts)
    memory = sizes.n_bytes(n_blocks, len(prompts))
    engine = Engine(model, memory, len(prompts), PREFILL_CHUNK, how.fused, how.cache_precision, how.invariant)
    sampling = how.temperature, how.top_p
    requests = [engine.add(prompt_T, n_tokens, *sampling, own, how.stop, show) for prompt_T, own, show in each]
    engine.run()
    return [request.written for request in requests]


def _tokens(model: Model, ids_T: Tensor, seed: object, how: How) -> Iterator[int]:
    """The tokens after a prompt, without end; arguments are checked at once, not with the first token."""
    temperature = checks.check_temperature(how.temperature)
    top_p = checks.check_top_p(how.top_p)
    generator = torch.Generator().manual_seed(checks.check_seed(seed))
    if checks.check_switch("fused", how.fused) and how.speculate is not False:
        several = f"speculate = {checks.shown(how.speculate)} verifies several tokens a pass"
        raise ValueError(f"generate: {several}; fused = True takes one")
    if how.speculate is False:
        cache = model.new_cache(precision=how.cache_precision)
        return _one_by_one(*_passes(model, how), ids_T, cache, temperature, top_p, generator)
    speculation = how.speculate if isinstance(how.speculate, Speculation) else Speculation(depth=how.speculate)
    return Speculator(model, speculation, temperature, top_p, generator, how.cache_precision).write(ids_T)


def _passes(model: Model, how: How) -> tuple[Callable, Callable]:
    """What takes in a prompt, and what takes in a token after it."""
    if how.invariant:
        step = FusedStep(model, "invariant")
        return step.prefill, step
    return (how.prefixes or model).prefill, FusedStep(model) if how.fused else model


def _one_by_one(
    prefill: Callable,
    step: Callable,
    ids_T: Tensor,
    cache: Cache,
    temperature: float,
    top_p: float,
    generator: torch.Generator,
) -> Iterator[int]:
    """One token a pass, without end; `prefill` and `step` do what the model does, and the cache is empty."""
    logits_V = prefill(ids_T[None], cache)[0]
    while True:
        token = sample(probabilities(logits_V, temperature, top_p), generator)
        yield token
        logits_V = step(ids_T.new_tensor([[token]]), cache=cache)[0, -1]
