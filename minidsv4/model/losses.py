"""Training losses: next token, the token after it (MTP), balance of experts, indexer.

B batch, T tokens, D width, N streams, E experts, A active experts, V vocabulary. Report
sections 2.1 and 4.2; weights of DeepSeek-V3. The inner values are watched from outside,
so a forward knows nothing of losses.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from einops import rearrange, reduce
from torch import Tensor
from torch.nn import functional as F

from minidsv4.config_check import FROM_0
from minidsv4.model.attention import CSAttention
from minidsv4.model.cache import CompressorMemory, Series
from minidsv4.model.indexer import Indexer
from minidsv4.model.layer import Call, watch
from minidsv4.model.moe import LearnedRouter, Routed
from minidsv4.model.mtp import MTP
from minidsv4.ops import NO_TARGET, upcast
from minidsv4.visibility import real_tokens

if TYPE_CHECKING:
    from minidsv4.model.model import Model

MTP_WEIGHT = 0.3  # 0.1 from the start of the learning rate's decay on
BALANCE_WEIGHT = 1e-4


class Losses(NamedTuple):
    """`total = main + mtp_weight mtp + 1e-4 balance + indexer`, in nats.

    The last two are summed over layers.
    """

    total: Tensor
    main: Tensor
    mtp: Tensor
    balance: Tensor
    indexer: Tensor


def model_losses(
    model: "Model",
    ids_BT: Tensor,
    document_BT: Tensor | None,
    mtp_weight: float,
) -> Losses:
    """All losses of a batch of rows.

    No token is predicted from, or attends to, another document.

    ids_BT       at least 3 tokens: position i predicts i + 1, the MTP block i + 2
    document_BT  position of the first token of each token's document, or None
    mtp_weight   of the MTP block's loss in the total
    raises       ValueError for shorter rows, or a weight below 0
    """
    check_rows(ids_BT, mtp_weight)
    with watch(model, LearnedRouter, Indexer, "attend") as calls:
        streams_BTND = model.streams(ids_BT, model.new_cache(len(ids_BT)), document_BT)
        main = text_loss(model, streams_BTND, targets(ids_BT, document_BT, 1))
        mtp = main.new_zeros(())
        if model.mtp:
            mtp = mtp_loss(model, streams_BTND, ids_BT, document_BT)
    balance = main.new_zeros(())
    for module, _, routed in calls:
        if isinstance(module, LearnedRouter):
            balance = balance + balance_loss(routed, real_tokens(ids_BT, document_BT))
    indexer = main.new_zeros(())
    for call in index_calls(calls):
        indexer = indexer + indexer_loss(call)
    total = main + mtp_weight * mtp + BALANCE_WEIGHT * balance + indexer
    return Losses(total, main, mtp, balance, indexer)


def check_rows(ids_BT: Tensor, mtp_weight: float) -> None:
    """Raise ValueError for rows that are too short, or a weight below 0."""
    if not FROM_0.fits(mtp_weight):
        found = f"loss: mtp_weight = {mtp_weight!r} weighs no loss"
        raise ValueError(f"{found}; {FROM_0.right}")
    if ids_BT.shape[1] < 3:
        found = f"loss: {ids_BT.shape[1]} tokens cannot be trained on"
        raise ValueError(f"{found}; give at least 3 (token, next, the one after)")


def mtp_loss(
    model: "Model",
    streams_BTND: Tensor,
    ids_BT: Tensor,
    document_BT: Tensor | None,
) -> Tensor:
    """Cross-entropy of the MTP block on token i + 2.

    The block reads streams i and token i + 1.
    """
    documents = None if document_BT is None else document_BT[:, :-1]
    cache = model.new_draft_cache(len(ids_BT))
    drafted_BTND = model.draft(streams_BTND[:, :-1], ids_BT[:, 1:], cache, documents)
    target_BT = targets(ids_BT, document_BT, 2)
    return text_loss(model, drafted_BTND, target_BT, of=model.mtp_block)


def targets(ids_BT: Tensor, document_BT: Tensor | None, ahead: int) -> Tensor:
    """The tokens `ahead` places later; `NO_TARGET` for those of another document."""
    later_BT = ids_BT[:, ahead:]
    if document_BT is None:
        return later_BT
    elsewhere_BT = document_BT[:, ahead:] != document_BT[:, :-ahead]
    return later_BT.masked_fill(elsewhere_BT, NO_TARGET)


def text_loss(
    model: "Model",
    streams_BTND: Tensor,
    target_BT: Tensor,
    of: MTP | None = None,
) -> Tensor:
    """Cross-entropy of the head on these streams, as far as there are targets.

    of  the module whose collapse and norm come before the head; None is the model
    """
    hidden_BTD = model.hidden(streams_BTND, of)[:, : target_BT.shape[1]]
    hidden_TD = rearrange(hidden_BTD, "b t d -> (b t) d")
    target_T = rearrange(target_BT, "b t -> (b t)")
    return model.ops.cross_entropy(hidden_TD, model.head.weight, target_T)


def balance_loss(routed: Routed, real_BT: Tensor) -> Tensor:
    """`sum_e f_e P_e` per sequence, averaged over the batch: 1 at an even load.

    f_e is E/A times the share of the real tokens that picked e, P_e the mean of its
    normalised score over them; only P has a gradient. A row of padding is no sequence.

    real_BT  as of `real_tokens`; the MTP block's calls have a token less, and begin at
             the first
    """
    n_tokens, n_experts = routed.score_BTE.shape[1:]
    n_active = routed.picked_BTA.shape[-1]
    score_BTE = routed.score_BTE
    real_BT1 = rearrange(real_BT[:, :n_tokens], "b t -> b t 1").to(score_BTE.dtype)
    n_real_B1 = reduce(real_BT1, "b t 1 -> b 1", "sum").clamp(min=1)
    picks_BTAE = F.one_hot(routed.picked_BTA, n_experts)
    picked_BTE = reduce(picks_BTAE, "b t a e -> b t e", "sum")
    n_picked_BE = reduce(picked_BTE * real_BT1, "b t e -> b e", "sum")
    share_BTE = score_BTE / (reduce(score_BTE, "b t e -> b t 1", "sum") + 1e-20)
    share_BE = reduce(share_BTE * real_BT1, "b t e -> b e", "sum") / n_real_B1
    load_BE = n_picked_BE * (n_experts / (n_active * n_real_B1))
    summed = reduce(load_BE * share_BE, "b e ->", "sum")
    return summed / real_BT.any(dim=1).sum().clamp(min=1)


class IndexCall(NamedTuple):
    """One call of a CSA layer: its indexer's inputs and picks, what `attend` got."""

    indexer: Indexer
    inputs: tuple
    picks_BTP: Tensor
    attended: tuple


def index_calls(calls: Iterable[Call]) -> list[IndexCall]:
    """The CSA layers among the calls that `watch(model, Indexer, "attend")` found."""
    found = []
    for module, inputs, output in calls:
        if isinstance(module, Indexer):
            indexer_inputs, picks_BTP = inputs, output
        elif isinstance(module, CSAttention):
            found.append(IndexCall(module.indexer, indexer_inputs, picks_BTP, inputs))
    return found


def indexer_loss(call: IndexCall) -> Tensor:
    """`ops.index_loss` of one layer; only the indexer's own weights get a gradient."""
    x_BTD, latent_BTQ, positions = call.inputs[:3]
    if not any(parameter.requires_grad for parameter in call.indexer.parameters()):
        return upcast(x_BTD).new_zeros(())
    x_BTD = x_BTD.detach()
    nothing = CompressorMemory(*(Series(x_BTD[:, :0]) for _ in range(3)))
    keys_BCZ = call.indexer.compressor(x_BTD, positions, nothing)
    query_BTUZ, weight_BTU = call.indexer.queries(x_BTD, latent_BTQ.detach(), positions)
    attended = []
    for part in call.attended:
        attended.append(part.detach() if isinstance(part, Tensor) else part)
    indexed = (query_BTUZ, weight_BTU, keys_BCZ)
    return call.indexer.ops.index_loss(tuple(attended), indexed)
