"""An experiment: which drafts of a random model with an MTP block are kept, pass by pass, in greedy decoding.

B batch, T tokens.
"""

from typing import NamedTuple

import torch

from minidsv4.config import Config
from minidsv4.model.model import Model
from minidsv4.serve.speculate import MAX_PENDING, Speculation, Speculator


class Round(NamedTuple):
    """A pass of the model that checked drafts: certain tokens, of them not yet read, drafts, drafts kept."""

    end: int
    pending: int
    depth: int
    kept: int


def draft_rounds(model, ids, depth, n_rounds):
    """Notebook 08: what happens in greedy drafting after a prompt, round by round, and the Speculation with its counts.

    ids  token ids of the prompt, a list
    """
    counts, rounds = Speculation(depth), []
    writer = Speculator(model, counts, 0.0, 1.0, torch.Generator())
    end = len(ids) + len([writer.begin(torch.tensor(ids))])
    for _ in range(n_rounds):
        pending = writer.state.pending_BT.shape[1]
        pending = 1 if pending > MAX_PENDING else pending  # a pass of their own came before
        kept = len(writer.round()) - 1
        rounds.append(Round(end, pending, depth, kept))
        end += kept + 1
    return rounds, counts


@torch.no_grad()
def quiet_model(loud=0.2):
    """A random model whose layers say little: next tokens follow from the last one mostly, and the MTP block knows."""
    torch.manual_seed(0)
    model = Model(Config.tiny().replace(vocab_size=17)).double()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            soft = loud if name.endswith(("wo_b.weight", "w2", "w2.weight", "h_proj.weight")) else 1
            torch.nn.init.normal_(parameter, std=soft * parameter.shape[-1] ** -0.5)
    torch.nn.init.normal_(model.embed.weight)
    model.mtp[0].e_proj.weight.copy_(torch.eye(24))
    model.mtp[0].hc_head.load_state_dict(model.hc_head.state_dict())
    return model


class Drafted(NamedTuple):
    """The token ids of a pass that checked drafts: drafts kept, the model's own token, drafts rejected."""

    kept: list[int]
    own: int
    rejected: list[int]


def drafted_text(model, ids, depth, n_rounds):
    """Notebook 08: the first token that greedy decoding writes after a prompt, and the Drafted of each pass after it.

    ids  token ids of the prompt, a list
    """
    writer = Speculator(model, Speculation(depth), 0.0, 1.0, torch.Generator())
    first, passes, seen = writer.begin(torch.tensor(ids)), [], []
    draft = writer.draft

    def noted():
        seen.append(draft())
        return seen[-1]

    writer.draft = noted
    for _ in range(n_rounds):
        *kept, own = writer.round()
        drafts, _ = seen[-1]
        passes.append(Drafted(kept, own, drafts[len(kept) :]))
    return first, passes


def chi_square(counts_V, share_V, n_cells):
    """Chi-square of the counts of the `n_cells` likeliest tokens, and of all others together, against their shares."""
    top = share_V.topk(n_cells)
    total = counts_V.sum()
    counts = torch.cat([counts_V[top.indices], total[None] - counts_V[top.indices].sum()])
    expected = total * torch.cat([top.values, 1 - top.values.sum()[None]])
    return ((counts - expected) ** 2 / expected).sum().item()
