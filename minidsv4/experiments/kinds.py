"""An experiment: which experts the tokens of each kind visit: line breaks, keywords, names, numbers, signs.

L layers, V vocabulary, E experts, A active experts.
"""

import keyword
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from minidsv4.model.layer import watch
from minidsv4.model.model import Model
from minidsv4.model.moe import Router, hash_table
from minidsv4.train.tokenizer import Tokenizer

KINDS = ("line break", "keyword", "name", "number", "sign")


def kind_of(text: str) -> str:
    """The kind of a token of Python: one of `KINDS`. A line break may bring the indentation behind it."""
    word = text.strip(" ")
    if not word.strip():
        return "line break"
    if keyword.iskeyword(word):
        return "keyword"
    if word.isdigit():
        return "number"
    return "name" if word.isidentifier() else "sign"


@torch.no_grad()
def visits(model: Model, tokenizer: Tokenizer, texts: Iterable[str]) -> Tensor:
    """How often each token id visited each expert of each layer [L, V, E] in these texts; BOS is not counted."""
    config = model.config
    shape = (config.num_hidden_layers, config.vocab_size, config.n_routed_experts)
    counts = torch.zeros(shape, dtype=torch.float64)
    one = counts.new_ones(())
    documents = sorted(tokenizer.encode_all(texts), key=len)
    for first in range(0, len(documents), 8):
        rows = [torch.tensor([tokenizer.bos_id, *tokens]) for tokens in documents[first : first + 8]]
        ids_BT = pad_sequence(rows, batch_first=True, padding_value=-1)  # no token reads what comes after it
        counted_BT = ids_BT[:, 1:] >= 0
        token_N = ids_BT[:, 1:][counted_BT]
        with watch(model, Router) as calls:
            model.streams(ids_BT.clamp(min=0), model.new_cache(len(rows)))
        for count_VE, (_, _, routed) in zip(counts, calls, strict=True):
            for picked_N in routed.picked_BTA[:, 1:][counted_BT].unbind(-1):
                count_VE.index_put_((token_N, picked_N), one, accumulate=True)
    return counts


def visits_of_a_table(visits_VE: Tensor, n_active: int, seed: int) -> Tensor:
    """The visits [V, E] of the same tokens if a random hash table of this seed sent them to their experts."""
    n_tokens, n_experts = visits_VE.shape
    table_VA = hash_table(n_tokens, n_experts, n_active, seed)
    occurrences_V1 = visits_VE.sum(-1, keepdim=True) / n_active
    return torch.zeros_like(visits_VE).scatter_(1, table_VA, occurrences_V1.repeat(1, n_active))


def shares_by_kind(visits_VE: Tensor, tokenizer: Tokenizer, n_active: int) -> Tensor:
    """The share of a kind's tokens that visit each expert [kinds, E]; each row sums to the active experts.

    Every different token counts once, however often it occurs, so that no frequent one makes a row alone.
    """
    occurrences_V1 = visits_VE.sum(-1, keepdim=True) / n_active
    share_VE = visits_VE / occurrences_V1.clamp(min=1)
    seen = [token for token, n in enumerate(occurrences_V1[:, 0].tolist()) if n]
    kinds = [kind_of(tokenizer.decode([token])) for token in seen]
    rows = []
    for kind in KINDS:
        rows.append(share_VE[[token for token, its in zip(seen, kinds) if its == kind]].mean(0))
    return torch.stack(rows)
