"""How the indexers learn: a dense start, a warm-up of them alone, then sparse; and how much of the attention they find.

B batch, T tokens, C compressed entries, P picked entries. Report section 4.2.2 for the stages; the loss is not spelled
out there, it is that of DeepSeek-V3.2 (`losses.indexer_loss`), a part of `model.loss` at every stage:

    with dense_attention(model), freeze_indexers(model): ...  # CSA layers read all they may see
    warm_up(model, batch_at, n_steps)  # indexers alone learn what the attention reads
    ...                                # sparse: the trunk learns from the text, each indexer from its layer
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minidsv4 import ops
from minidsv4.model.attention import CSAttention
from minidsv4.model.indexer import Indexer
from minidsv4.model.layer import watch
from minidsv4.model.losses import IndexCall, index_calls
from minidsv4.visibility import Visibility

RATE = 1e-3  # of V3.2's warm-up


@contextmanager
def dense_attention(model: nn.Module) -> Iterator[None]:
    """Inside, CSA layers attend to all entries that a query may see; what the indexers pick is not used."""
    layers = [attn for attn in _parts(model, CSAttention) if "compressed" not in vars(attn)]  # not yet dense
    try:
        for attn in layers:
            attn.compressed = partial(_all_entries, attn)
        yield
    finally:
        for attn in layers:
            del attn.compressed


def _all_entries(attn: CSAttention, *inputs) -> tuple[Tensor, Visibility]:
    entries_BCK, sees = CSAttention.compressed(attn, *inputs)
    return entries_BCK, sees._replace(picks_BTP=None)


@contextmanager
def freeze_trunk(model: nn.Module) -> Iterator[None]:
    """Inside, nothing but the indexers learns. An optimizer takes what `requires_grad`: make it inside as well."""
    own = set(_weights(model))
    with _frozen(parameter for parameter in model.parameters() if parameter not in own):
        yield


@contextmanager
def freeze_indexers(model: nn.Module) -> Iterator[None]:
    """Inside, the indexers are frozen: their loss is 0 and costs nothing."""
    with _frozen(_weights(model)):
        yield


@contextmanager
def _frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _parts(model: nn.Module, kind: type) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, kind)]


def _weights(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for indexer in _parts(model, Indexer) for parameter in indexer.parameters()]


def clip_apart(model: nn.Module, most: float) -> Tensor:
    """Shrink the gradients of the indexers, and those of all else, to a norm of `most` each; returns that of all else.

    One norm for both would let the indexers' loss set the pace of the trunk.
    """
    own = set(_weights(model))
    nn.utils.clip_grad_norm_(_weights(model), most)
    return nn.utils.clip_grad_norm_([parameter for parameter in model.parameters() if parameter not in own], most)


def warm_up(model: nn.Module, batch_at: Callable[[int], Tensor], n_steps: int, rate: float = RATE) -> list[float]:
    """Teach the indexers alone what dense attention reads; everything else stays as it is, to the bit.

    batch_at  function from a step, from 0, to token ids [B, T]; such as `Batches.at`
    rate      of Adam; some hundred steps want about ten times V3.2's
    returns   the loss of each step, nats per query, summed over CSA layers
    raises    ValueError for a model without a CSA layer, or for no steps
    """
    if not isinstance(n_steps, int) or n_steps < 1:
        raise ValueError(f"warm_up: n_steps = {n_steps!r} teaches nothing; it counts steps, an integer from 1")
    if not _weights(model):
        raise ValueError("warm_up: the model has no CSA layer, so no indexer; give compress_ratios with one")
    device, losses = _weights(model)[0].device, []
    with dense_attention(model), freeze_trunk(model):
        optimizer = torch.optim.Adam(_weights(model), lr=rate)
        for step in range(n_steps):
            loss = model.loss(batch_at(step).to(device)).indexer
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


class Recall(NamedTuple):
    """What a choice of k entries catches, from 0 to 1, averaged over queries."""

    mass: float  # of the attention on all visible entries: the part that lies on the chosen
    best: float  # of the k entries with the most attention: the part that is among the chosen


@torch.no_grad()
def recall(model: nn.Module, ids_BT: Tensor) -> list[dict[str, Recall]]:
    """How good each CSA layer's picks are, beside three other choices of as many entries.

    The oracle takes the k entries with the most attention, summed over heads, had the layer read all that it may see.
    Only queries that see more than k entries count. Layers read what they read: wrap the call in `dense_attention` for
    a model that still does.

    returns  for each CSA layer {"oracle", "indexer", "recent": the newest k, "random": what blind choice expects}
    raises   ValueError where no query has to choose
    """
    with watch(model, Indexer, "attend") as calls:
        model(ids_BT)
    return [_layer_recall(call) for call in index_calls(calls)]


def _layer_recall(call: IndexCall) -> dict[str, Recall]:
    query_BTHK, window_BSK, entries_BCK, sees, sinks_H = call.attended
    k = call.indexer.n_picked
    visible_T = sees.visible_counts()
    choosing = visible_T > k
    if not choosing.any():
        n_tokens = len(visible_T)
        raise ValueError(
            f"recall: {n_tokens} tokens make no query choose among more than {k} entries; give a longer text"
        )
    weight_BTHS = ops.attention_weights(query_BTHK, window_BSK, entries_BCK, sees._replace(picks_BTP=None), sinks_H)
    share_BTC = ops.teacher(weight_BTHS[:, choosing, :, sees.n_window :])
    visible = visible_T[choosing]
    best_BTP = ops.stable_topk(share_BTC, k)
    newest = (visible[:, None] - k + torch.arange(k, device=visible.device)).expand_as(best_BTP)
    choices = {"oracle": best_BTP, "indexer": call.picks_BTP[:, choosing], "recent": newest}
    found = {name: _caught(share_BTC, best_BTP, picks_BTP) for name, picks_BTP in choices.items()}
    blind = (k / visible.to(share_BTC.dtype)).expand(len(share_BTC), -1)
    found["random"] = torch.stack([blind, blind], dim=-1)
    return {name: Recall(*rows.mean((0, 1)).tolist()) for name, rows in found.items()}


def _caught(share_BTC: Tensor, best_BTP: Tensor, picks_BTP: Tensor) -> Tensor:
    """For each query the two numbers of `Recall`, side by side."""
    among = (best_BTP[..., None] == picks_BTP[..., None, :]).any(-1).to(share_BTC.dtype)
    return torch.stack([share_BTC.gather(-1, picks_BTP).sum(-1), among.mean(-1)], dim=-1)
