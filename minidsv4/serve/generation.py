"""Writing with a model: the prompt goes into a cache once, then every token costs one short pass.

T tokens, V vocabulary. With `speculate` a pass checks drafts and makes several tokens certain (`speculate.py`).
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from minidsv4.fused.step import FusedStep
from minidsv4.serve.sampling import probabilities, sample
from minidsv4.serve.speculate import Speculation, Speculator


@torch.inference_mode()
def generate(
    model: nn.Module,
    ids: Sequence[int] | Tensor,
    n_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    speculate: bool | int | Speculation = False,
    stream: Callable[[int], object] | None = None,
    stop: int | None = None,
    fused: bool = False,
) -> list[int]:
    """Continue a prompt with cached decoding.

    ids          token ids of the prompt: a list or a tensor [T] (or [1, T]), at least one
    n_tokens     how many to write, from 0
    temperature  0 takes the likeliest token; 1 draws from the model's own probabilities
    top_p        draw only among the likeliest tokens that together have this share, above 0 to 1
    seed         the same seed, prompt, model and speculation write the same
    speculate    draft with the MTP block: True one token a pass, a number so many, a Speculation also counts the gain.
                 Writes what the model writes without: token by token at temperature 0, in distribution above
    stream       called with each new token id at once
    stop         a token id after which nothing more is written, such as EOS
    fused        decode in compiled loops: faster, and the same but for rounding; on the CPU, with numba, one by one
    returns      the new token ids, `stop` included where it was met
    raises       ValueError for an empty prompt, wrong ids, numbers out of range, no MTP block, no fused step
    """
    ids = _checked(ids, n_tokens, temperature, top_p).to(next(model.parameters()).device)
    model.check(ids[None], None)
    generator, written = torch.Generator().manual_seed(seed), []
    if fused and speculate is not False:
        raise ValueError(f"generate: speculate = {speculate!r} checks several tokens a pass; fused = True takes one")
    if speculate is False:
        tokens = _one_by_one(model, FusedStep(model) if fused else model, ids, temperature, top_p, generator)
    else:
        tokens = Speculator(model, _speculation(speculate), temperature, top_p, generator).write(ids)
    for token in itertools.islice(tokens, n_tokens):
        written.append(token)
        if stream is not None:
            stream(token)
        if token == stop:
            break
    return written


def _one_by_one(
    model: nn.Module, step: Callable, ids: Tensor, temperature: float, top_p: float, generator: torch.Generator
) -> Iterator[int]:
    """One token a pass, without end; `step` is the model, or does what it does."""
    cache = model.new_cache(batch_size=1)
    logits_V = model.prefill(ids[None], cache)[0]
    while True:
        token = sample(probabilities(logits_V, temperature, top_p), generator)
        yield token
        logits_V = step(ids.new_tensor([[token]]), cache=cache)[0, -1]


def _speculation(speculate: int | Speculation) -> Speculation:
    """What the caller's word for it stands for."""
    return speculate if isinstance(speculate, Speculation) else Speculation(depth=speculate)


def _checked(ids: Sequence[int] | Tensor, n_tokens: int, temperature: float, top_p: float) -> Tensor:
    """The prompt as a tensor [T], once everything is in range."""
    ids = torch.as_tensor(ids if len(ids) else torch.empty(0, dtype=torch.long))
    ids = ids[0] if ids.ndim == 2 and len(ids) == 1 else ids  # a batch of one
    if ids.ndim != 1 or not len(ids):
        raise ValueError(f"generate: ids of shape {tuple(ids.shape)} are no prompt; give one sequence, not empty")
    if isinstance(n_tokens, bool) or not isinstance(n_tokens, int) or n_tokens < 0:
        raise ValueError(f"generate: n_tokens = {n_tokens!r} cannot be written; it counts tokens, from 0")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"generate: temperature = {temperature!r} is out of range; it is 0 (likeliest token) or above")
    if not 0 < top_p <= 1:
        raise ValueError(f"generate: top_p = {top_p!r} is out of range; it is a share above 0, up to 1")
    return ids
