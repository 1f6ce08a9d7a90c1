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

# Options of the engine on which tokens may depend, and what they are where they are not given.
DECIDING = {"cache_precision": "model", "fused": False, "invariant": False}


@checks.refusing("rollouts")
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
    writer = Engine(model, **engine)
    prompts_T = checks.check_prompts(several("prompts", prompts), model)
    n_tokens = checks.check_n_tokens(n_tokens)
    seeds = one_a_prompt(range(len(prompts_T)) if seeds is None else several("seeds", seeds), len(prompts_T))
    stops = checks.check_stop(stop, model.config.vocab_size)
    sampling = {"temperature": checks.check_temperature(temperature), "top_p": checks.check_top_p(top_p)}
    add: Callable[..., Request] = partial(writer.add, stop=stops, **sampling)  # type: ignore[arg-type]
    for ids_T, seed in zip(prompts_T, seeds):
        writer.cancel(add(ids_T, n_tokens, seed=seed))  # what it refuses is refused before there is a log
    run: dict[str, object] = {"n_tokens": n_tokens, "seeds": seeds, "stop": sorted(stops), **sampling}
    run |= {name: engine.get(name, usual) for name, usual in DECIDING.items()} | identity(model, prompts_T)
    with RolloutLog(log, run, len(prompts_T)) as kept:
        texts = {}
        for number, written in enumerate(kept.written):
            if not ended(written, n_tokens, stops):
                texts[resume(add, prompts_T[number], written, n_tokens, seeds[number])] = number
        while writer.waiting or writer.running:
            kept.append((texts[request], token) for request, token in writer.step())
    return kept.written


def several(name: str, values: object) -> Sequence:
    """The values, once they are several.

    raises  ValueError for one thing alone
    """
    if not isinstance(values, list | tuple | range):
        raise ValueError(f"rollouts: {name} = {checks.shown(values)} is {checks.kind(values)}; give a list")
    return values


def one_a_prompt(seeds: Sequence[int], n_prompts: int) -> list[int]:
    """The seeds, once there is one for each prompt."""
    if len(seeds) != n_prompts:
        raise ValueError(f"rollouts: {len(seeds)} seeds and {n_prompts} prompts; give one seed a prompt")
    return [checks.check_seed(seed) for seed in seeds]


def resume(add: Callable[..., Request], ids_T: Tensor, written: Sequence[int], n_tokens: int, seed: int) -> Request:
    """The request, made by `add`, of a text that goes on behind what is written of it."""
    request = add(torch.cat([ids_T, ids_T.new_tensor(written)]), n_tokens - len(written), seed=seed)
    for _ in written:
        torch.rand((), generator=request.generator, dtype=torch.float64)  # the number that this token took
    return request


def ended(written: Sequence[int], n_tokens: int, stops: Collection[int]) -> bool:
    """Whether nothing more is to be written."""
    return len(written) == n_tokens or (len(written) > 0 and written[-1] in stops)


def identity(model: Model, prompts: Sequence[Tensor]) -> dict[str, str]:
    """The SHA-256 of a model's config and weights, and that of all prompts."""
    config = json.dumps(model.config.to_dict(), sort_keys=True)
    ids = json.dumps([ids_T.tolist() for ids_T in prompts])
    return {
        "model": hashlib.sha256((config + weights_digest(model)).encode()).hexdigest(),
        "prompts": hashlib.sha256(ids.encode()).hexdigest(),
    }
