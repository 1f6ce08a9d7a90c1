"""What the model is trained on: next token, the token after it (MTP), balanced experts, and the indexer's own loss.

B batch, T tokens, E experts, A active experts, P picked entries, V vocabulary. Report sections 2.1 and 4.2; weights of
DeepSeek-V3. The inner values come from forward hooks, so the forward itself knows nothing of losses.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

from minidsv4.model.moe import LearnedRouter, Routed
from minidsv4.model.norm import precise

MTP_WEIGHT = 0.3  # 0.1 from the start of the learning rate's decay on
BALANCE_WEIGHT = 1e-4


class Losses(NamedTuple):
    """Nats per token; `total = main + mtp_weight mtp + 1e-4 balance + indexer`."""

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


def model_losses(model: nn.Module, ids_BT: Tensor, mtp_weight: float = MTP_WEIGHT) -> Losses:
    """All losses of one batch of whole sequences.

    ids_BT      at least 3 tokens: position i predicts i + 1, the MTP block i + 2, with `mtp_weight` in the total
    raises      ValueError for shorter sequences
    """
    if ids_BT.shape[1] < 3:
        raise ValueError(
            f"loss: {ids_BT.shape[1]} tokens cannot be trained on; give at least 3 (token, next, the one after)"
        )
    with watch(model, LearnedRouter) as routers:
        streams_BTND = model.streams(ids_BT, model.new_cache(len(ids_BT)))
        main = cross_entropy(model.logits(streams_BTND[:, :-1]), ids_BT[:, 1:])
        mtp = main.new_zeros(())
        if model.mtp:
            drafted = model.mtp_logits(streams_BTND[:, :-1], ids_BT[:, 1:])
            mtp = cross_entropy(drafted[:, :-1], ids_BT[:, 2:])
    balance = sum((balance_loss(routed) for _, _, routed in routers), start=main.new_zeros(()))
    indexer = main.new_zeros(())
    return Losses(main + mtp_weight * mtp + BALANCE_WEIGHT * balance + indexer, main, mtp, balance, indexer)


def cross_entropy(logits_BTV: Tensor, ids_BT: Tensor) -> Tensor:
    """Mean nats per token."""
    return F.cross_entropy(rearrange(precise(logits_BTV), "b t v -> (b t) v"), rearrange(ids_BT, "b t -> (b t)"))


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
