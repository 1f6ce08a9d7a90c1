"""From logits to a token: temperature, top-p, and one random number a token.

V vocabulary.
"""

import torch
from torch import Tensor


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
