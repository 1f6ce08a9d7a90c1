"""From logits to a token: temperature, top-p, and one random number a token.

V vocabulary.
"""

import torch
from torch import Tensor


def probabilities(logits_V: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """Probabilities of the next token [V]: `softmax(logits / temperature)`, cut to the top-p share, in float64.

    Temperature 0 puts all on the likeliest token, the lowest id among equals.

    logits_V  on any device, also one without float64
    returns   [V] on the CPU
    raises    ValueError where no token is the likeliest: NaN or infinity among the logits
    """
    logits_V = logits_V.cpu().double()  # in this order: Apple's MPS has no float64
    best = logits_V.max()
    if not best.isfinite():
        raise ValueError(
            f"generate: the largest logit = {best.item()}, so no next token can be chosen; "
            "weights and activations of the model should be finite"
        )
    if temperature == 0:
        return torch.zeros_like(logits_V).index_fill_(0, logits_V.argmax(), 1.0)
    probs_V = ((logits_V - best) / temperature).softmax(dim=-1)
    if top_p == 1:
        return probs_V
    ranked = probs_V.sort(descending=True, stable=True)
    before = ranked.values.cumsum(0) - ranked.values  # the share of all likelier tokens
    kept_V = probs_V.index_fill(0, ranked.indices[before >= top_p], 0.0)
    return kept_V / kept_V.sum()


def sample(probs_V: Tensor, generator: torch.Generator) -> int:
    """One token id: the first whose cumulative probability passes a uniform number; one random number a token.

    probs_V    weights from 0, not all 0; their sum need not be 1
    generator  gives one number
    """
    point = torch.rand((), generator=generator, dtype=torch.float64, device=generator.device) * probs_V.sum()
    return int((probs_V.cumsum(0) <= point).sum().clamp(max=int(probs_V.nonzero()[-1])))
