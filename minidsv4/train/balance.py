"""Balance without a loss: each learned router's bias follows its loads; and what there is to know about loads.

B batch, T tokens, D width, E experts, A active experts, V vocabulary. Report section 2.1; the sign rule is that of
DeepSeek-V3. Released names: `ffn.gate.{bias, tid2eid}`. Only `balanced` changes anything, all else counts.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from minidsv4.model.losses import watch
from minidsv4.model.moe import LearnedRouter, MoE, Routed, Router

SPEED = 1e-3  # of V3 and V4, for runs of many thousand steps; runs of some hundred want about ten times as much


@contextmanager
def balanced(model: nn.Module, speed: float = SPEED) -> Iterator[list[tuple[nn.Module, tuple, Routed]]]:
    """One training step: at its end the biases move by the loads that the routers had inside. No gradient is involved.

    with balanced(model):
        model.loss(ids_BT).total.backward()
        optimizer.step()

    speed   how far a bias moves in a step, in units of the router's score; 0 leaves it
    yields  the learned routers' calls, as `loads` takes them
    raises  ValueError for a speed below 0. After an error inside, the biases stay as they were
    """
    if not speed >= 0:
        raise ValueError(f"balanced: speed = {speed} would feed the fullest expert; it is 0 or more")
    with watch(model, LearnedRouter) as calls:
        yield calls
    for router, load_E in loads(calls).items():
        router.bias.copy_(updated_bias(router.bias, load_E, speed))


def updated_bias(bias_E: Tensor, load_E: Tensor, speed: float = SPEED) -> Tensor:
    """`bias + speed * sign(mean load - load)`: up where too few tokens came, down where too many."""
    # E times the load against the total: whole numbers, so an expert at the mean stays where it is on every machine.
    return bias_E + speed * (load_E.sum() - len(load_E) * load_E).sign().to(bias_E.dtype)


@torch.no_grad()
def loads(calls: Iterable[tuple[nn.Module, tuple, Routed]]) -> dict[Router, Tensor]:
    """How many tokens each expert got, router by router, summed over the calls that `watch` collected.

    calls    of routers, learned or hash: `with watch(model, Router) as calls: ...`
    returns  {router: integers [E]}, in the order of their first call; each sums to A times the tokens
    """
    found: dict[Router, Tensor] = {}
    for router, _, routed in calls:
        load_E = routed.picked_BTA.flatten().bincount(minlength=routed.score_BTE.shape[-1])
        found[router] = found.get(router, 0) + load_E
    return found


def max_violation(load: Tensor) -> float:
    """MaxVio: the largest load over the mean load, minus 1. 0 is perfect balance, E / A - 1 the worst of experts."""
    return (load.max() / load.double().mean() - 1).item()


def rank_loads(load_E: Tensor, n_ranks: int) -> Tensor:
    """Loads of `n_ranks` machines that hold neighbouring experts, equally many each.

    raises  ValueError where the experts cannot be shared out evenly
    """
    if n_ranks < 1 or len(load_E) % n_ranks:
        raise ValueError(f"rank_loads: n_ranks = {n_ranks} cannot share {len(load_E)} experts; it must divide them")
    return load_E.unflatten(0, (n_ranks, -1)).sum(-1)


class Clamped(NamedTuple):
    """How many numbers lay strictly beyond the bound: gates above it, ups on either side, each of `total`."""

    gates: int
    ups: int
    total: int


@torch.no_grad()
def count_clamped(moe: MoE, x_BTD: Tensor, ids_BT: Tensor) -> dict[str, Clamped]:
    """What the clamp of one expert layer catches; those numbers get no gradient. Computes them anew, so not in passing.

    moe, x_BTD, ids_BT  a call, such as `watch(model, MoE)` collects
    returns             {"routed": Clamped, "shared": Clamped}
    """
    x_TD = rearrange(x_BTD, "b t d -> (b t) d")
    picked_TA = rearrange(moe.gate(x_BTD, ids_BT).picked_BTA, "b t a -> (b t) a")
    experts, shared = moe.experts, moe.shared_experts
    routed = Clamped(0, 0, 0)
    for e, weight in enumerate(experts.w13):
        gate, up = (x_TD[(picked_TA == e).any(dim=1)] @ weight.T).chunk(2, dim=-1)
        routed = Clamped(*map(sum, zip(routed, _beyond(gate, up, experts.limit))))
    return {"routed": routed, "shared": _beyond(shared.w1(x_TD), shared.w3(x_TD), shared.limit)}


def _beyond(gate: Tensor, up: Tensor, limit: float) -> Clamped:
    return Clamped(int((gate > limit).sum()), int((up.abs() > limit).sum()), gate.numel())


def balanced_hash_table(frequencies: Tensor, n_experts: int, n_active: int, seed: int = 0) -> Tensor:
    """Distinct experts for each token id, such that the experts' loads are even under the given frequencies.

    This construction is ours: V4's is not disclosed. From the most frequent id to the rarest, each gets A experts
    drawn from the less loaded ones: A and half of the rest. Drawing keeps experts from meeting in fixed teams.
    One id's tokens cannot be spread over more than its A experts, so MaxVio is never below
    `E / A * largest frequency / all - 1`.

    frequencies  how often each id occurs in the corpus [V]; an id that never does counts as seen once
    returns      integers [V, A]; the same for the same seed
    raises       ValueError for frequencies below 0 or more active experts than there are
    """
    frequencies = torch.as_tensor(frequencies, dtype=torch.float64)
    if frequencies.ndim != 1 or not (frequencies >= 0).all():
        raise ValueError("balanced_hash_table: frequencies are one number from 0 for each token id")
    if not 1 <= n_active <= n_experts:
        raise ValueError(f"balanced_hash_table: n_active = {n_active} cannot be had of n_experts = {n_experts}")
    seen = frequencies.clamp(min=1)
    generator, n_candidates = torch.Generator().manual_seed(seed), n_active + (n_experts - n_active) // 2
    table, load_E = torch.empty(len(seen), n_active, dtype=torch.int64), torch.zeros(n_experts, dtype=torch.float64)
    for token in seen.argsort(descending=True, stable=True).tolist():
        drawn = torch.randperm(n_candidates, generator=generator)[:n_active]
        picked = load_E.argsort(stable=True)[drawn]
        table[token] = picked
        load_E[picked] += seen[token]
    return table
