"""Rows of a training batch: prompts with the replies to them, padded, and what a model says on each token of a reply.

B batch, T tokens, D width, V vocabulary. Tokens of all replies lie end to end on one axis, row after row: padding and
prompts have no place on it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from minidsv4.model.model import Model
from minidsv4.train.data import Batch
from minidsv4.train.tokenizer import Tokenizer


class Rows(NamedTuple):
    """Prompts with their replies.

    ids_BT       token ids, padding after them
    document_BT  0 for text, its own position for padding, as in `train.data.Batch`
    reply_BT     of the T - 1 targets `ids[:, 1:]`: whether it is a token of a reply
    """

    ids_BT: Tensor
    document_BT: Tensor
    reply_BT: Tensor

    def batch(self) -> Batch:
        """What `Trainer` takes: tokens, and what is padding."""
        return Batch(self.ids_BT, self.document_BT)

    def written(self) -> Tensor:
        """The tokens of all replies [T]."""
        return self.ids_BT[:, 1:][self.reply_BT]

    def lengths(self) -> Tensor:
        """How many tokens each reply has [B]."""
        return self.reply_BT.sum(dim=1)

    def of_tokens(self, value_B: Tensor) -> Tensor:
        """A number of each row, for each token of its reply [T]."""
        return value_B.repeat_interleave(self.lengths())


def rows_of(prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]]) -> Rows:
    """Rows of these prompts and replies, each padded to the longest.

    raises  ValueError for another number of replies than of prompts, for none, and for an empty prompt or reply
    """
    if len(prompts) != len(replies) or not prompts or not all(map(len, [*prompts, *replies])):
        raise ValueError(
            f"rows: {len(prompts)} prompts and {len(replies)} replies; give one reply a prompt, none of them empty"
        )
    longest = max(len(prompt) + len(reply) for prompt, reply in zip(prompts, replies))
    ids_BT = torch.full((len(prompts), longest), Tokenizer.eos_id)
    document_BT = torch.arange(longest).repeat(len(prompts), 1)
    reply_BT = torch.zeros(len(prompts), longest - 1, dtype=torch.bool)
    for row, (prompt, reply) in enumerate(zip(prompts, replies)):
        end = len(prompt) + len(reply)
        ids_BT[row, :end] = torch.tensor([*prompt, *reply])
        document_BT[row, :end] = 0
        reply_BT[row, len(prompt) - 1 : end - 1] = True
    return Rows(ids_BT, document_BT, reply_BT)


def hidden_of(model: Model, rows: Rows) -> Tensor:
    """What the head reads where it says each token of a reply [T, D]."""
    cache = model.new_cache(len(rows.ids_BT))
    streams_BTND = model.streams(rows.ids_BT[:, :-1], cache, rows.document_BT[:, :-1])
    return model.hidden(streams_BTND)[rows.reply_BT]


def vocabulary_log_probs(hidden_TD: Tensor, head_VD: Tensor) -> Tensor:
    """Log-probabilities of the whole vocabulary [T, V] that a head reads out of the last hidden states."""
    return F.linear(hidden_TD, head_VD).log_softmax(dim=-1)


def log_probs(model: Model, rows: Rows) -> Tensor:
    """The log-probability of each token of a reply [T], in nats."""
    all_TV = vocabulary_log_probs(hidden_of(model, rows), model.head.weight)
    return picked(all_TV, rows.written())


def picked(log_probs_TV: Tensor, token_T: Tensor) -> Tensor:
    """The log-probability of the token that stands there [T]."""
    return log_probs_TV.gather(-1, token_T.unsqueeze(-1)).squeeze(-1)
