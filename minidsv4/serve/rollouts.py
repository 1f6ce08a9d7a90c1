"""Rollouts: many texts written side by side with a log, so that a killed run loses and repeats no token.

T tokens.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minidsv4.model.model import Model
from minidsv4.serve import checks
from minidsv4.serve.engine import Engine, Request
from minidsv4.serve.prefix_identity import weights_digest
from minidsv4.serve.rollout_log import RolloutLog

DECIDING = {"cache_precision", "fused", "invariant"}  # options of the engine on which tokens may depend


def rollouts(
    model: Model,
    prompts: Sequence[Sequence[int] | Tensor],
    n_tokens: int,
    log: str | Path,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seeds: Sequence[int] | None = None,
    stop: int | Collection[int] | None = None,
    **engine: Any,
) -> list[list[int]]:
    """Token ids after each prompt. Called again after a kill, it goes on behind the last token in the log.

    What it writes is what an uninterrupted run writes, since the random numbers that the logged tokens took are passed
    over. A resumed text is read again as one prompt: but for rounding its logits are those of the run that was killed,
    and with `invariant=True` they are bitwise.

    prompts   token ids of each
    n_tokens  how many to write at most, to each
    log       path of the log, made if there is none; of this model, these prompts and options
    seeds     one a prompt; their places 0, 1, ... where None
    others    as in `generate`; what is left goes to the `Engine`
    raises    ValueError: arguments that `generate` or the engine refuses, other numbers of seeds than of prompts, the
              log of another run, a damaged or used one; OSError: the log cannot be written
    """
    prompts_T = [checks.check_prompt(ids, model) for ids in prompts]
    n_tokens = checks.check_n_tokens(n_tokens)
    seeds = one_a_prompt(seeds, len(prompts_T))
    stops = checks.check_stop(stop, model.config.vocab_size)
    run = {"n_tokens": n_tokens, "temperature": temperature, "top_p": top_p, "seeds": seeds, "stop": sorted(stops)}
    run |= {name: engine[name] for name in DECIDING & engine.keys()}
    run |= {"model": identity(model), "prompts": digest_of_prompts(prompts_T)}
    writer = Engine(model, **engine)
    add = partial(writer.add, temperature=temperature, top_p=top_p, stop=stops)
    with RolloutLog(log, run, len(prompts_T)) as kept:
        texts = {}
        for number, (ids_T, seed) in enumerate(zip(prompts_T, seeds)):
            written = kept.written[number]
            if not ended(written, n_tokens, stops):
                request = resume(add, ids_T, written, n_tokens, seed)
                texts[request] = number
        while writer.waiting or writer.running:
            kept.append((texts[request], token) for request, token in writer.step())
    return kept.written


def one_a_prompt(seeds: Sequence[int] | None, n_prompts: int) -> list[int]:
    """The seeds, once there is one for each prompt."""
    checked = [checks.check_seed(seed) for seed in (range(n_prompts) if seeds is None else seeds)]
    if len(checked) != n_prompts:
        raise ValueError(f"rollouts: {len(checked)} seeds and {n_prompts} prompts; give one seed a prompt")
    return checked


def resume(add: Callable[..., Request], ids_T: Tensor, written: Sequence[int], n_tokens: int, seed: int) -> Request:
    """The request, made by `add`, of a text that goes on behind what is written of it."""
    request = add(torch.cat([ids_T, ids_T.new_tensor(written)]), n_tokens - len(written), seed=seed)
    for _ in written:
        torch.rand((), generator=request.generator, dtype=torch.float64)  # the number that this token took
    return request


def ended(written: Sequence[int], n_tokens: int, stops: Collection[int]) -> bool:
    """Whether nothing more is to be written."""
    return len(written) == n_tokens or (len(written) > 0 and written[-1] in stops)


def identity(model: Model) -> str:
    """The SHA-256 of a model's config and weights."""
    config = json.dumps(model.config.to_dict(), sort_keys=True)
    return hashlib.sha256((config + weights_digest(model)).encode()).hexdigest()


def digest_of_prompts(prompts: Sequence[Tensor]) -> str:
    """The SHA-256 of the token ids of all prompts."""
    return hashlib.sha256(json.dumps([ids_T.tolist() for ids_T in prompts]).encode()).hexdigest()
