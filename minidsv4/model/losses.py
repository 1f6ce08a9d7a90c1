"""What the model is trained on: next token, the token after it (MTP), balanced experts, and the indexer's own loss.

B batch, T tokens, E experts, A active experts, P picked entries, V vocabulary. Report sections 2.1 and 4.2; weights of
DeepSeek-V3. The inner values come from forward hooks, so the forward itself knows nothing of losses.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

from minidsv4.model.attend import BLOCK, Attend, Far, cut_block, weights
from minidsv4.model.cache import CompressorMemory, Series
from minidsv4.model.indexer import Indexer, index_scores
from minidsv4.model.moe import LearnedRouter, Routed
from minidsv4.model.norm import precise

MTP_WEIGHT = 0.3  # 0.1 from the start of the learning rate's decay on
BALANCE_WEIGHT = 1e-4


class Losses(NamedTuple):
    """Nats per token; `total = main + mtp_weight mtp + 1e-4 balance + indexer`; the last two are summed over layers."""

    total: Tensor
    main: Tensor
    mtp: Tensor
    balance: Tensor
    indexer: Tensor


@contextmanager
def watch(model: nn.Module, *kinds: type) -> Iterator[list[tuple[nn.Module, tuple, object]]]:
    """Collect `(module, its inputs, its output)` of every call to a module of these kinds, in order of the calls."""
    seen: list[tuple[nn.Module, tuple, object]] = []
    modules = [module for module in model.modules() if isinstance(module, kinds)]
    hooks = [
        m.register_forward_hook(lambda module, inputs, output: seen.append((module, inputs, output))) for m in modules
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def model_losses(
    model: nn.Module, ids_BT: Tensor, first_BT: Tensor | None = None, mtp_weight: float = MTP_WEIGHT
) -> Losses:
    """All losses of one batch of rows. No token is predicted from, or attends to, another document.

    ids_BT      at least 3 tokens: position i predicts i + 1, the MTP block i + 2, with `mtp_weight` in the total
    first_BT    where each token's document begins: multiples of every compression ratio; padding is its own document
    raises      ValueError for shorter rows
    """
    if ids_BT.shape[1] < 3:
        raise ValueError(
            f"loss: {ids_BT.shape[1]} tokens cannot be trained on; give at least 3 (token, next, the one after)"
        )
    with watch(model, LearnedRouter, Indexer, Attend) as calls:
        streams_BTND = model.streams(ids_BT, model.new_cache(len(ids_BT)), first_BT)
        main = text_loss(model, streams_BTND, targets(ids_BT, first_BT, 1))
        mtp = main.new_zeros(())
        if model.mtp:
            first = None if first_BT is None else first_BT[:, :-1]
            drafted = model.draft(streams_BTND[:, :-1], ids_BT[:, 1:], model.new_draft_cache(len(ids_BT)), first)
            mtp = text_loss(model, drafted, targets(ids_BT, first_BT, 2), of=model.mtp[0])
    routings = [routed for module, _, routed in calls if isinstance(module, LearnedRouter)]
    balance = sum(map(balance_loss, routings), start=main.new_zeros(()))
    indexer = sum(map(indexer_loss, index_calls(calls)), start=main.new_zeros(()))
    return Losses(main + mtp_weight * mtp + BALANCE_WEIGHT * balance + indexer, main, mtp, balance, indexer)


NO_TARGET = -100  # what `cross_entropy` passes over
HEAD_TOKENS = 256  # whose logits exist at one time


def targets(ids_BT: Tensor, first_BT: Tensor | None, ahead: int) -> Tensor:
    """The tokens `ahead` places later; `NO_TARGET` where that one belongs to another document."""
    later_BT = ids_BT[:, ahead:]
    if first_BT is None:
        return later_BT
    return later_BT.masked_fill(first_BT[:, ahead:] != first_BT[:, :-ahead], NO_TARGET)


def text_loss(model: nn.Module, streams_BTND: Tensor, wanted_BT: Tensor, of: nn.Module | None = None) -> Tensor:
    """`cross_entropy(model.logits(streams, of), wanted)`; streams beyond the last wanted token are not asked."""
    hidden_BTD = model.hidden(streams_BTND, of)[:, : wanted_BT.shape[1]]
    hidden, wanted = rearrange(hidden_BTD, "b t d -> (b t) d"), rearrange(wanted_BT, "b t -> (b t) 1")
    return HeadLoss.apply(hidden, model.head.weight, wanted, torch.is_grad_enabled())


class HeadLoss(torch.autograd.Function):
    """Vocabulary head and `cross_entropy` in one, for a few tokens at a time: all logits together never exist.

    Both gradients, up to the factor that comes from above, are computed along with the loss.
    """

    @staticmethod
    def forward(ctx, hidden_TD: Tensor, head_VD: Tensor, wanted: Tensor, learning: bool) -> Tensor:
        known = (wanted != NO_TARGET).to(precise(hidden_TD).dtype)
        d_hidden, d_head, nats = torch.empty_like(hidden_TD), torch.zeros_like(head_VD), 0.0
        columns = hidden_TD, d_hidden, wanted.clamp(min=0), known / known.sum()
        for hidden, d_part, token, share in zip(*(column.split(HEAD_TOKENS) for column in columns)):
            said = precise(hidden @ head_VD.T).log_softmax(-1)
            nats = nats - (said.gather(1, token) * share).sum()
            if learning:
                slope = said.exp_().scatter_add_(1, token, -torch.ones_like(share)).mul_(share).to(head_VD.dtype)
                torch.mm(slope, head_VD, out=d_part)
                d_head.addmm_(slope.T, hidden)
        ctx.save_for_backward(d_hidden, d_head)
        return nats

    @staticmethod
    def backward(ctx, grad: Tensor):
        return *(grad.to(part.dtype) * part for part in ctx.saved_tensors), None, None


def cross_entropy(logits_BTV: Tensor, ids_BT: Tensor) -> Tensor:
    """Mean nats per token, those with `NO_TARGET` aside."""
    rows, wanted = rearrange(precise(logits_BTV), "b t v -> (b t) v"), rearrange(ids_BT, "b t -> (b t)")
    return F.cross_entropy(rows, wanted, ignore_index=NO_TARGET)


def balance_loss(routed: Routed) -> Tensor:
    """`sum_e f_e P_e` per sequence, averaged over the batch: 1 when experts share the load evenly.

    f_e is E/A times the share of tokens that picked e, P_e the mean of its normalised score; only P has a gradient.
    """
    n_tokens, n_experts = routed.score_BTE.shape[1:]
    n_active = routed.picked_BTA.shape[-1]
    count_BE = F.one_hot(routed.picked_BTA, n_experts).sum((1, 2)).to(routed.score_BTE.dtype)
    load_BE = count_BE * (n_experts / (n_active * n_tokens))
    share_BTE = routed.score_BTE / routed.score_BTE.sum(-1, keepdim=True)
    return (load_BE * reduce(share_BTE, "b t e -> b e", "mean")).sum(-1).mean()


class IndexCall(NamedTuple):
    """What one CSA layer did in one call: its indexer's inputs and picks, and the inputs of its attention."""

    indexer: Indexer
    inputs: tuple
    picks_BTP: Tensor
    attended: tuple

    @torch.no_grad()
    def weights(self, start: int) -> Tensor:
        """Weights of one block of queries over the entries that were read, in the one softmax with window and sink."""
        *_, sinks_H = self.attended
        return weights(*cut_block(*self.attended[:3], start), precise(sinks_H))[1]


def index_calls(calls: Iterable[tuple[nn.Module, tuple, object]]) -> Iterator[IndexCall]:
    """The CSA layers among the calls that `watch(model, Indexer, Attend)` collected: an indexer, then its attention."""
    for (indexer, inputs, picks_BTP), (_, attended, _) in pairwise(calls):
        if isinstance(indexer, Indexer):
            yield IndexCall(indexer, inputs, picks_BTP, attended)


def indexer_loss(call: IndexCall) -> Tensor:
    """`KL(p || softmax(I))` over the entries that were read, averaged over the queries that see any; V3.2's recipe.

    The indexer's inputs and its teacher p are constants here, so the loss teaches the indexer and nothing else. In
    blocks of queries; 0 where the indexer does not learn.
    """
    x_BTD, latent_BTQ, _, angles, visible_T = call.inputs
    _, near, far, _ = call.attended
    n_blind, nats = int((visible_T == 0).sum()), x_BTD.new_zeros((), dtype=precise(x_BTD).dtype)
    if n_blind == len(visible_T) or not any(parameter.requires_grad for parameter in call.indexer.parameters()):
        return nats
    x_BTD, latent_BTQ = x_BTD.detach(), latent_BTQ.detach()
    memory = CompressorMemory(*(Series(x_BTD[:, :0]) for _ in range(3)))
    keys = Far(call.indexer.compressor(x_BTD, memory, angles), visible_T, far.picks_BTP, far.first_BT)
    query_BTUZ, weight_BTU = call.indexer.queries(x_BTD, latent_BTQ, angles.at(0, len(visible_T)))
    for start in range(n_blind, len(visible_T), BLOCK):
        query, _, _, cut = cut_block(query_BTUZ, near, keys, start)
        score = read_scores(query, weight_BTU[:, start : start + BLOCK], cut)
        nats = nats + F.kl_div(score.log_softmax(-1), teacher(call.weights(start)), reduction="sum")
    return nats / (len(x_BTD) * (len(visible_T) - n_blind))


def teacher(share_BTHC: Tensor) -> Tensor:
    """Attention weights over entries, summed over heads, then divided by their sum: loud heads say more."""
    mass_BTC = reduce(share_BTHC, "b t h c -> b t c", "sum")
    return mass_BTC / mass_BTC.sum(-1, keepdim=True).clamp_min(torch.finfo(mass_BTC.dtype).tiny)


def read_scores(query_BTUZ: Tensor, weight_BTU: Tensor, keys: Far) -> Tensor:
    """Index scores of the entries that each query read [B, T, C or P]; the least number where there is none to see."""
    if keys.picks_BTP is None:
        score = index_scores(query_BTUZ, weight_BTU, keys.entries_BCK)
        place = torch.arange(score.shape[-1], device=score.device)
    else:  # each query has keys of its own, as a batch of one query has
        place, parts = keys.picks_BTP, (query_BTUZ[:, :, None], weight_BTU[:, :, None], keys.entries_BCK)
        score = index_scores(*(part.flatten(0, 1) for part in parts)).view(place.shape)
    hidden = place >= keys.visible_T[:, None]
    hidden = hidden if keys.first_BT is None else hidden | (place < keys.first_BT[:, :, None])
    return score.masked_fill(hidden, torch.finfo(score.dtype).min)
