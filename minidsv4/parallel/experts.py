"""Experts spread over ranks: tokens go to the ranks of their experts, results come back, and nothing else changes.

T tokens of this rank, D width, A active experts, F expert width, E experts of all ranks. Report section 3.1. Four ways:

    allreduce  every rank has all tokens, computes what its experts give, and the results are summed: the released code
    allgather  every rank fetches all tokens, computes likewise, and each token's partial sums go back to its rank
    alltoall   each pair of token and expert goes to the expert's rank, its result comes back
    waves      the same, wave by wave of experts: one wave's rows travel while another's are multiplied

`alltoall` and `waves` give bit for bit what one process gives, gradients included: every expert meets the same rows in
the same order, and every token's results are summed in the order of experts, wherever they come from. The other two
sum over ranks, which is another order; it makes no difference where a token has at most two experts.

Gradients travel the same ways back. All ranks must call `backward`; there, exchanges and products take turns.
"""

import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist

from minidsv4.checkpoint import load
from minidsv4.config import Config
from minidsv4.model.model import Model
from minidsv4.model.moe import Experts, MoE
from minidsv4.parallel.exchange import AllToAll, Exchange, Summed, SummedBackward
from minidsv4.parallel.layout import Layout, Plan, plan
from minidsv4.parallel.transport import Transport
from minidsv4.parallel.wire import FORMATS, Wire

STRATEGIES = ("allreduce", "allgather", "alltoall", "waves")


def expert_parallel_moe(
    x_TD: Tensor,
    picked_TA: Tensor,
    weight_TA: Tensor,
    experts: Experts,
    group: dist.ProcessGroup | None = None,
    strategy: str = "alltoall",
    waves: int = 1,
    *,
    seats: tuple[int, ...] = (),
    dispatch: str = "exact",
    combine: str = "exact",
    transport: Transport | None = None,
) -> Tensor:
    """What `Experts` gives for this rank's tokens, when every rank holds a share of the experts. All ranks call it.

    x_TD       this rank's tokens, possibly none; with "allreduce" the same tokens on every rank
    picked_TA  the experts of each token, numbered over all ranks; -1 for none
    weight_TA  their routing weights
    experts    this rank's share, such as `shard(experts, group)`
    group      None is all ranks
    strategy   "allreduce", "allgather", "alltoall" or "waves"
    waves      at most as many as a rank has experts; more than 1 with "waves" only
    seats      where each expert sits (`Layout`); empty is in order
    dispatch   what tokens travel as: "exact", "bf16" or "fp8"
    combine    what results and gradients travel as: "exact" or "bf16"
    transport  None sends as fast as it goes
    returns    [T, D]
    raises     ValueError, on every rank, for settings that make no sense or differ between ranks
               LostContact where another rank is gone
    """
    transport = transport or Transport(group or dist.group.WORLD)
    chosen = dict(strategy=strategy, waves=waves, seats=tuple(seats), dispatch=dispatch, combine=combine)
    transport.agree(**chosen, **_shared(strategy, experts, x_TD, weight_TA))
    _check(**chosen)
    layout = Layout(len(experts.w13) * transport.n_ranks, transport.n_ranks, waves, chosen["seats"])
    call = _Call(experts, layout, transport, dispatch, combine)
    way = {"allreduce": _allreduce, "allgather": _allgather}.get(strategy, by_waves)
    return way(call, x_TD, picked_TA, weight_TA.to(x_TD.dtype))


def _shared(strategy: str, experts: Experts, x_TD: Tensor, weight_TA: Tensor) -> dict:
    """What must be the same on all ranks besides the settings, or they wait for rows and gradients that never come."""
    tensors = {"x": x_TD, "weights": weight_TA, "w13": experts.w13, "w2": experts.w2}
    learning = [name for name, tensor in tensors.items() if tensor.requires_grad] if torch.is_grad_enabled() else []
    sizes = {"experts": len(experts.w13), "width": x_TD.shape[1], "active": weight_TA.shape[1], "dtype": x_TD.dtype}
    tokens = len(x_TD) if strategy == "allreduce" else "any number"
    return sizes | {"tensors with a gradient": " ".join(learning), "tokens": tokens}


def _check(strategy: str, waves: int, seats: tuple[int, ...], dispatch: str, combine: str) -> None:
    """Refuse settings that make no sense; numbers of waves and seats are the layout's business."""
    choices = (("strategy", strategy, STRATEGIES), ("dispatch", dispatch, FORMATS), ("combine", combine, FORMATS[:2]))
    for name, word, known in choices:
        if word not in known:
            raise ValueError(f"{name} = {word!r} is not known; it is one of {', '.join(known)}")
    if strategy != "waves" and waves != 1:
        raise ValueError(f"waves = {waves}: {strategy} has one; strategy = 'waves' has more")
    if strategy == "allreduce" and (dispatch, combine) != ("exact", "exact"):
        raise ValueError(f"dispatch = {dispatch!r}, combine = {combine!r}: allreduce sums exactly; leave both 'exact'")


class _Call(NamedTuple):
    """What one call of `expert_parallel_moe` works with."""

    experts: Experts
    layout: Layout
    transport: Transport
    dispatch: str
    combine: str

    def all_to_all(self, sent: list[int], received: list[int], format: str, n_exact: int = 0) -> AllToAll:
        return AllToAll(self.transport, sent, received, Wire(format, n_exact), Wire(self.combine, n_exact))


# --- pairs of token and expert travel: alltoall, waves ---


def by_waves(call: _Call, x_TD: Tensor, picked_TA: Tensor, weight_TA: Tensor) -> Tensor:
    """Each pair's row to its expert's rank and its result back, wave after wave."""
    ours = plan(picked_TA, call.layout)
    token = ours.by_expert // picked_TA.shape[1]
    weight = weight_TA.flatten()[ours.by_expert, None]
    # One gather by expert, whatever the waves: its backward adds up a token's gradients
    # in the order of one process.
    rows = torch.cat([x_TD[token], weight], dim=1)
    results = travel(call, rows[ours.to_send], ours.counts)
    return sum_picks(results, ours, picked_TA)


def travel(call: _Call, rows: Tensor, counts: Tensor) -> Tensor:
    """Rows [pairs, D + 1] to their experts, results [pairs, D] back in the same order.

    The last column of the rows is the weight. All waves' rows are sent at once, so the
    link is never idle for want of work; results go back as they are made.
    """
    layout, transport = call.layout, call.transport
    to_ranks = layout.wave_counts(counts)
    from_ranks = layout.wave_counts(transport.swap(counts))
    there, back = [], []
    for leaving, coming in zip(to_ranks, from_ranks):
        sent, received = leaving.sum(1).tolist(), coming.sum(1).tolist()
        there.append(call.all_to_all(sent, received, call.dispatch, n_exact=1))
        back.append(call.all_to_all(received, sent, call.combine))
    parts = rows.split([sum(dispatch.sent) for dispatch in there])
    arriving = [Exchange.apply(part, dispatch) for part, dispatch in zip(parts, there)]
    returning = []
    for wave, (dispatch, combine) in enumerate(zip(there, back)):
        dispatch.wait()
        first = layout.bounds[wave]
        with transport.computing(flops(call.experts, len(arriving[wave]))):
            results = multiply(call.experts, first, arriving[wave], from_ranks[wave])
        returning.append(Exchange.apply(results, combine))
    for combine in back:
        combine.wait()
    return torch.cat(returning)


def flops(experts: Experts, n_rows: int) -> int:
    """Three products of D times F, two FLOPs for each number."""
    return 6 * experts.w2[0].numel() * n_rows


def multiply(experts: Experts, first: int, rows: Tensor, counts: Tensor) -> Tensor:
    """Each expert on its rows.

    first    place of the first of these experts in this rank's share
    rows     [n, D + 1] from rank after rank, those of one rank by expert; the last
             column is the routing weight
    counts   rows from each rank for each expert [ranks, experts]
    returns  [n, D], in the order of the rows
    """
    n_ranks, n_experts = counts.shape
    place = torch.arange(first, first + n_experts, device=rows.device).repeat(n_ranks)
    picked = place.repeat_interleave(counts.flatten())[:, None]
    return experts.ops.experts(
        rows[:, :-1],
        picked,
        rows[:, -1:],
        experts.w13,
        experts.w2,
        experts.limit,
    )


def sum_picks(results: Tensor, ours: Plan, picked_TA: Tensor) -> Tensor:
    """Each token's sum of its results, in the order of experts.

    results  of pairs, in the order in which they return
    """
    n_tokens, n_active = picked_TA.shape
    width = results.shape[1]
    no_results = results.new_zeros(picked_TA.numel(), width)
    by_pair = no_results.index_copy(0, ours.slots, results)
    total = results.new_zeros(n_tokens, width)
    return total.index_add(0, ours.by_expert // n_active, by_pair[ours.by_expert])


# --- tokens travel, and sums over ranks: allgather, allreduce ---


def _allgather(call: _Call, x_TD: Tensor, picked_TA: Tensor, weight_TA: Tensor) -> Tensor:
    transport, n_ranks, n_tokens = call.transport, call.transport.n_ranks, len(x_TD)
    ours = [n_tokens] * n_ranks
    theirs = transport.swap(torch.tensor(ours, device=x_TD.device)).tolist()
    there = call.all_to_all(ours, theirs, call.dispatch, n_exact=weight_TA.shape[1])
    rows = Exchange.apply(torch.cat([x_TD, weight_TA], dim=1).repeat(n_ranks, 1), there)
    picked = transport.issue(picked_TA.repeat(n_ranks, 1), ours, theirs).wait()
    there.wait()
    back = call.all_to_all(theirs, ours, call.combine)
    out = Exchange.apply(_own_part(call, rows, picked), back)
    back.wait()
    return out.unflatten(0, (n_ranks, n_tokens)).sum(0)


def _allreduce(call: _Call, x_TD: Tensor, picked_TA: Tensor, weight_TA: Tensor) -> Tensor:
    rows = SummedBackward.apply(torch.cat([x_TD, weight_TA], dim=1), call.transport)
    return Summed.apply(_own_part(call, rows, picked_TA), call.transport)


def _own_part(call: _Call, rows: Tensor, picked_TA: Tensor) -> Tensor:
    """What this rank's experts give for rows [T, D + A] of tokens and routing weights: partial sums [T, D]."""
    n_local, n_active = call.layout.n_local, picked_TA.shape[1]
    place = call.layout.seat_E.to(picked_TA.device)[picked_TA] - call.transport.rank * n_local
    elsewhere = (picked_TA < 0) | (place < 0) | (place >= n_local)
    ours = plan(place.masked_fill(elsewhere, -1), Layout(n_local, 1))
    x_TD, weight_TA = rows[:, :-n_active], rows[:, -n_active:]
    pairs = torch.cat([x_TD[ours.by_expert // n_active], weight_TA.flatten()[ours.by_expert, None]], dim=1)
    with call.transport.computing(flops(call.experts, len(pairs))):
        results = multiply(call.experts, 0, pairs, ours.counts)
    return sum_picks(results, ours, picked_TA)


# --- a whole model ---


class SpreadExperts(Experts):
    """This rank's share of some experts, called like all of them."""

    def __init__(self, experts: Experts, group: dist.ProcessGroup | None = None, **settings):
        nn.Module.__init__(self)
        self.group, self.settings, self.limit = group or dist.group.WORLD, settings, experts.limit
        layout = Layout(len(experts.w13), self.group.size(), seats=tuple(settings.get("seats", ())))
        mine = layout.experts_of(self.group.rank()).tolist()
        self.w13, self.w2 = (nn.Parameter(matrix.detach()[mine]) for matrix in (experts.w13, experts.w2))

    def forward(self, x: Tensor, picked: Tensor, weight: Tensor) -> Tensor:
        flat = (part.flatten(0, -2) for part in (x, picked, weight))
        return expert_parallel_moe(*flat, self, self.group, **self.settings).view(x.shape)


def shard(experts: Experts, group: dist.ProcessGroup | None = None, seats: tuple[int, ...] = ()) -> SpreadExperts:
    """A rank's share of some experts, as `expert_parallel_moe` wants it; calling it does the same with "alltoall"."""
    return SpreadExperts(experts, group, seats=seats)


def spread_experts(model: nn.Module, group: dist.ProcessGroup | None = None, **settings) -> nn.Module:
    """Let each rank keep its share of every layer's experts; the model is then called on all ranks at once.

    model     changed in place: whatever it holds besides the routed experts stays whole on every rank
    settings  of `expert_parallel_moe`: strategy, waves, seats, dispatch, combine, transport
    returns   the model
    raises    ValueError where experts cannot be shared out evenly
    """
    for layer in [module for module in model.modules() if isinstance(module, MoE)]:
        layer.experts = SpreadExperts(layer.experts, group, **settings)
    return model


def load_spread(folder: str | Path, group: dist.ProcessGroup | None = None, **settings) -> Model:
    """Read a checkpoint in the released layout, of its routed experts only this rank's share; see `spread_experts`.

    raises  ValueError as `load` does, and where experts cannot be shared out evenly or are stacked in the file
    """
    group = group or dist.group.WORLD
    layout = Layout(Config.from_json(folder).n_routed_experts, group.size(), seats=tuple(settings.get("seats", ())))
    local_index = {expert: index for index, expert in enumerate(layout.experts_of(group.rank()).tolist())}

    def keep(name: str) -> str | None:
        found = re.fullmatch(r"(.*\bffn\.experts\.)(\d+)(\..*)", name)
        if not found:
            return name
        before, expert, after = found.groups()
        return f"{before}{local_index[int(expert)]}{after}" if int(expert) in local_index else None

    return load(folder, keep, lambda model: spread_experts(model, group, **settings))
