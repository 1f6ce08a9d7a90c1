"""Writing with a model: the prompt goes into a cache once, then every token costs one short pass.

T tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


@torch.inference_mode()
def generate(
    model: nn.Module,
    ids: Sequence[int] | Tensor,
    n_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    stream: Callable[[int], object] | None = None,
    stop: int | None = None,
) -> list[int]:
    """Continue a prompt with cached decoding.

    ids          token ids of the prompt: a list or a tensor [T] (or [1, T]), at least one
    n_tokens     how many to write, from 0
    temperature  0 takes the likeliest token; 1 draws from the model's own probabilities
    top_p        draw only among the likeliest tokens that together have this share, above 0 to 1
    seed         the same seed, prompt and model write the same
    stream       called with each new token id at once
    stop         a token id after which nothing more is written, such as EOS
    returns      the new token ids, `stop` included where it was met
    raises       ValueError for an empty prompt, ids that the model does not have, numbers out of range
    """
    ids = _checked(ids, n_tokens, temperature, top_p).to(next(model.parameters()).device)
    cache, chance = model.new_cache(batch_size=1), torch.Generator().manual_seed(seed)
    written: list[int] = []
    if n_tokens == 0:
        model.check(ids[None], cache)
    while len(written) < n_tokens and (stop is None or stop not in written[-1:]):
        logits_V = model.prefill(ids[None], cache)[0] if not written else model(ids[None], cache=cache)[0, -1]
        token = draw(probabilities(logits_V, temperature, top_p), chance)
        written.append(token)
        ids = ids.new_tensor([token])
        if stream is not None:
            stream(token)
    return written


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


def probabilities(logits_V: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """What the next token is drawn from [V]: `softmax(logits / temperature)`, the unlikely rest cut off, in float64.

    Temperature 0 puts all on the likeliest token, the lowest id among equals.
    """
    logits_V = logits_V.double().cpu()
    if temperature == 0:
        return torch.zeros_like(logits_V).index_fill_(0, logits_V.argmax(), 1.0)
    share_V = ((logits_V - logits_V.max()) / temperature).softmax(dim=-1)
    if top_p == 1:
        return share_V
    ranked = share_V.sort(descending=True, stable=True)
    before = ranked.values.cumsum(0) - ranked.values  # the share of all likelier tokens
    kept_V = share_V.index_fill(0, ranked.indices[before >= top_p], 0.0)
    return kept_V / kept_V.sum()


def draw(share_V: Tensor, chance: torch.Generator) -> int:
    """One token id: the first whose running sum passes a uniform number, which costs one random number a token."""
    point = torch.rand((), generator=chance, dtype=torch.float64) * share_V.sum()
    return int((share_V.cumsum(0) <= point).sum().clamp(max=int(share_V.nonzero()[-1])))
