"""Auxiliary-loss-free load balancing: each learned router's bias follows its loads; and measures of load.

B batch, T tokens, D width, E experts, A active experts, V vocabulary. Report section 2.1; the sign rule is that of
DeepSeek-V3. Released names: `ffn.gate.{bias, tid2eid}`. Only `balanced` changes a model; everything else measures.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minidsv4.model.layer import watch
from minidsv4.model.moe import LearnedRouter, MoE, Routed, Router

SPEED = 1e-3  # bias update speed of V3 and V4; runs of some hundred steps want about ten times as much


@contextmanager
def balanced(
    model: nn.Module, speed: float = SPEED, real_BT: Tensor | None = None
) -> Iterator[list[tuple[nn.Module, tuple, Routed]]]:
    """One training step, at whose end each learned router's bias moves by the load of its experts in this step.

    with balanced(model):
        model.loss(ids_BT).total.backward()
        optimizer.step()

    speed    how far a bias moves in a step, in units of the router's score; 0 leaves it
    real_BT  boolean [B, T], False where a token is padding, whose experts do not count; None counts every token
    yields   the calls of learned routers, as `loads` takes them
    raises   ValueError for a speed below 0. After an error inside, the biases stay as they were
    """
    if not speed >= 0:
        raise ValueError(f"balanced: speed = {speed} would feed the fullest expert; it is 0 or more")
    with watch(model, LearnedRouter) as calls:
        yield calls
    for router, load_E in loads(calls, real_BT).items():
        router.bias.copy_(updated_bias(router.bias, load_E, speed))


def updated_bias(bias_E: Tensor, load_E: Tensor, speed: float = SPEED) -> Tensor:
    """`bias + speed * sign(mean load - load)`.

    It goes up where too few tokens came, and down where too many.
    """
    # E times the load against the total: whole numbers, so an expert at the mean stays
    # where it is on every machine.
    missing_E = load_E.sum() - len(load_E) * load_E
    return bias_E + speed * missing_E.sign().to(bias_E.dtype)


@torch.no_grad()
def loads(calls: Iterable[tuple[nn.Module, tuple, Routed]], real_BT: Tensor | None = None) -> dict[Router, Tensor]:
    """The load of each expert, which is how many tokens picked it, for each router over all of its calls.

    calls    of routers, learned or hash: `with watch(model, Router) as calls: ...`
    real_BT  boolean [B, T], False where a token is padding, which is no load; None counts every token. Calls with
             fewer tokens, such as those of the MTP block, are taken to begin at the first
    returns  {router: integers [E]}, in the order of their first call; each sums to A times the real tokens
    raises   ValueError where `real_BT` has another batch, or fewer tokens, than a call
    """
    found: dict[Router, Tensor] = {}
    for router, _, routed in calls:
        picked = _of_real(routed.picked_BTA, real_BT)
        load_E = picked.flatten().bincount(minlength=routed.score_BTE.shape[-1])
        found[router] = found.get(router, 0) + load_E
    return found


def _of_real(x_BT: Tensor, real_BT: Tensor | None) -> Tensor:
    """What belongs to real tokens alone: [B, T, ...] without padding, as [how many, ...]."""
    n_batch, n_tokens = x_BT.shape[:2]
    if real_BT is None:
        return x_BT.flatten(0, 1)
    if len(real_BT) != n_batch or real_BT.shape[1] < n_tokens:
        raise ValueError(
            f"real_BT of shape {tuple(real_BT.shape)} does not fit a call of {n_batch} rows of {n_tokens} tokens"
        )
    return x_BT[real_BT[:, :n_tokens].to(x_BT.device)]


def max_violation(load: Tensor) -> float:
    """MaxVio, the largest load over the mean load, minus 1: 0 is perfect balance, E / A - 1 is the worst case."""
    load = load.cpu().double()  # not every device has float64
    return (load.max() / load.mean() - 1).item()


def rank_loads(load_E: Tensor, n_ranks: int) -> Tensor:
    """The load of each of `n_ranks` machines, integers [n_ranks]; each holds equally many neighbouring experts.

    raises  ValueError where the experts cannot be shared out evenly
    """
    if n_ranks < 1 or len(load_E) % n_ranks:
        raise ValueError(f"rank_loads: n_ranks = {n_ranks} cannot share {len(load_E)} experts; it must divide them")
    return load_E.unflatten(0, (n_ranks, -1)).sum(-1)


class Clamped(NamedTuple):
    """How many of `total` gates lie above the clamp's bound, and how many of `total` ups beyond it on either side."""

    gates: int
    ups: int
    total: int


@torch.no_grad()
def count_clamped(moe: MoE, x_BTD: Tensor, ids_BT: Tensor, real_BT: Tensor | None = None) -> dict[str, Clamped]:
    """How many numbers the clamp of one expert layer cuts off in a call; these get no gradient.

    The call is computed once more for this.

    moe, x_BTD, ids_BT  a layer and its inputs, such as `watch(model, MoE)` collects
    real_BT             as for `loads`: numbers of padding do not count
    returns             {"routed": Clamped, "shared": Clamped}
    """
    x_TD = _of_real(x_BTD, real_BT)
    picked_TA = _of_real(moe.gate(x_BTD, ids_BT).picked_BTA, real_BT)
    counts = []
    for e, weight in enumerate(moe.experts.w13):
        gate, up = (x_TD[(picked_TA == e).any(dim=1)] @ weight.T).chunk(2, dim=-1)
        counts.append(_clamped(gate, up, moe.experts.limit))
    routed = Clamped(*(sum(column) for column in zip(*counts)))
    shared = moe.shared_experts
    return {"routed": routed, "shared": _clamped(shared.w1(x_TD), shared.w3(x_TD), shared.limit)}


def _clamped(gate: Tensor, up: Tensor, limit: float) -> Clamped:
    """`Clamped` of one expert's gates and ups. A number on the bound is not beyond it."""
    return Clamped(int((gate > limit).sum()), int((up.abs() > limit).sum()), gate.numel())


def balanced_hash_table(frequencies: Tensor, n_experts: int, n_active: int, seed: int = 0) -> Tensor:
    """Distinct experts for each token id, such that the experts' loads are even under the given frequencies.

    V4's construction is not disclosed; this one is greedy. From the most frequent id to the rarest, each gets A experts
    drawn from the A + (E - A) / 2 least loaded ones. Drawing, rather than taking the least loaded, keeps the same
    experts from always being paired. One id's tokens go to its A experts alone, so MaxVio is never below
    `E / A * largest frequency / sum of frequencies - 1`.

    frequencies  how often each id occurs in the corpus [V]; an id that never does counts as seen once
    returns      integers [V, A]; the same for the same seed
    raises       ValueError for frequencies below 0 or more active experts than there are
    """
    frequencies = torch.as_tensor(frequencies).cpu().double()
    if frequencies.ndim != 1 or not (frequencies >= 0).all():
        raise ValueError("balanced_hash_table: frequencies are one number from 0 for each token id")
    if not 1 <= n_active <= n_experts:
        raise ValueError(f"balanced_hash_table: n_active = {n_active} cannot be had of n_experts = {n_experts}")
    seen = frequencies.clamp(min=1)
    generator = torch.Generator().manual_seed(seed)
    n_candidates = n_active + (n_experts - n_active) // 2
    table = torch.empty(len(seen), n_active, dtype=torch.int64)
    load_E = torch.zeros(n_experts, dtype=torch.float64)
    for token in seen.argsort(descending=True, stable=True).tolist():
        drawn = torch.randperm(n_candidates, generator=generator)[:n_active]
        picked = load_E.argsort(stable=True)[drawn]
        table[token] = picked
        load_E[picked] += seen[token]
    return table
