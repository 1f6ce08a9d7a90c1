"""What spreading experts costs and what waves gain, measured on ranks that run here.

T tokens a rank, D width, E experts of all ranks, A active experts. Times are those of an emulated chip and link
(`PacedTransport`): real ranks, rows and products, each of which takes as long as it would there. What counts is rho,
the time of both exchanges over that of the products: C / (2 F B) for C FLOP/s, B bytes per second and experts of width
F, with FP8 on the way there and BF16 on the way back (report, section 3.1).
"""

import math
import statistics
import time
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from minidsv4.config import Config
from minidsv4.model.moe import Experts
from minidsv4.parallel.experts import STRATEGIES, SpreadExperts, expert_parallel_moe, flops, shard
from minidsv4.parallel.launch import run_ranks
from minidsv4.parallel.transport import FakeClock, PacedTransport, Transport

E, A, D, F = 48, 6, 256, 128  # experts, active ones, widths: products far quicker than the time they are given
NARROW = 64, 32  # widths where the time does not matter
T = 2 * E  # tokens a rank


def example(n_ranks: int, width: int = D, inner: int = F) -> tuple[Experts, Tensor, Tensor, Tensor]:
    """Experts, and tokens, picks and weights of all ranks, float32; every rank picks every expert equally often."""
    sizes = dict(hidden_size=width, moe_intermediate_size=inner, swiglu_limit=10.0)
    experts = Experts(Config.tiny().replace(n_routed_experts=E, num_experts_per_tok=A, **sizes)).float()
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float32)

    for matrix in experts.parameters():
        matrix.data = normal(*matrix.shape) * matrix.shape[-1] ** -0.5
    picked_TA = (torch.arange(n_ranks * T)[:, None] + torch.arange(A) * (E // A)) % E
    return experts, normal(n_ranks * T, width), picked_TA, normal(n_ranks * T, A).abs()


# --- strategies ---


@dataclass(frozen=True)
class Cost:
    """What one strategy sends, and whether it computes what one process does.

    sent_bytes  that all ranks together send to others for one token, there and back
    output      the output is that of one process bit for bit
    gradients   and so are the gradients of tokens, routing weights and experts
    off         largest difference of any of them, in units of the largest number
    """

    strategy: str
    sent_bytes: float
    output: bool
    gradients: bool
    off: float


def compare_strategies(n_ranks: int, waves: int = 2) -> list[Cost]:
    """All four strategies on the same tokens and float32 experts; the one called "waves" with so many."""
    experts, x_TD, picked_TA, weight_TA = example(n_ranks, *NARROW)
    x_TD, weight_TA = x_TD.requires_grad_(), weight_TA.requires_grad_()
    out = experts(x_TD, picked_TA, weight_TA)
    whole = _results(out, x_TD, weight_TA, experts)
    by_rank = run_ranks(lambda group: [_one_strategy(group, name, waves) for name in STRATEGIES], n_ranks)
    return [_cost(name, ranks, whole) for name, *ranks in zip(STRATEGIES, *by_rank)]


def _results(out: Tensor, x_TD: Tensor, weight_TA: Tensor, experts: Experts) -> list[Tensor]:
    """Output and gradients of a loss whose gradient is different everywhere."""
    (out * x_TD.detach().cos()).sum().backward()
    return [out.detach(), x_TD.grad, weight_TA.grad, experts.w13.grad, experts.w2.grad]


def _one_strategy(group: dist.ProcessGroup, strategy: str, waves: int) -> tuple[int, list[Tensor]]:
    """Bytes that this rank sends in forward; its output and gradients."""
    experts, *tokens = example(group.size(), *NARROW)
    mine = slice(None) if strategy == "allreduce" else slice(group.rank() * T, (group.rank() + 1) * T)
    x_TD, picked_TA, weight_TA = (tensor[mine] for tensor in tokens)
    x_TD, weight_TA = x_TD.requires_grad_(), weight_TA.requires_grad_()
    local, transport = shard(experts, group), Transport(group)
    ways = dict(strategy=strategy, waves=waves if strategy == "waves" else 1, transport=transport)
    out = expert_parallel_moe(x_TD, picked_TA, weight_TA, local, group, **ways)
    return transport.sent_bytes, _results(out, x_TD, weight_TA, local)


def _cost(strategy: str, ranks: list[tuple[int, list[Tensor]]], whole: list[Tensor]) -> Cost:
    ours = [torch.cat(parts) for parts in zip(*(results for _, results in ranks))]
    if strategy == "allreduce":
        ours[:3] = ranks[0][1][:3]  # all ranks have all tokens
    same = [torch.equal(*pair) for pair in zip(ours, whole)]
    off = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, whole))
    return Cost(strategy, sum(sent for sent, _ in ranks) / (len(ranks) * T), same[0], all(same[1:]), off)


# --- waves ---


@dataclass(frozen=True)
class Overlap:
    """What a number of waves gains over the first number that was measured with it.

    expected        seconds of the emulated chip and link alone, by a clock that only they move
    measured        seconds on the wall: the slowest rank's, the median of the calmer half of the rounds, in which this
                    machine, busy with other things, woke the sleeping ranks least late
    expected_gain   how much longer the first number of waves takes, by `expected`
    measured_gain   the same by `measured`
    fair            share of rounds in which no real work took longer than the emulated
    equal           the output is bit for bit that of the first number of waves
    """

    waves: int
    expected: float
    measured: float
    expected_gain: float
    measured_gain: float
    fair: float
    equal: bool


class _Round(NamedTuple):
    """One layer on one rank."""

    seconds: float
    late: float
    overslept: float
    equal: bool


def measure_waves(
    n_ranks: int, rho: float, waves: tuple[int, ...] = (1, 2, 3, 4), seconds: float = 0.15, rounds: int = 5
) -> list[Overlap]:
    """Run one layer on real ranks at the pace of a chip and a link, with each number of waves.

    rho      time of both exchanges over time of the products, from 0
    waves    the first is what the others are held against; with 1, each result goes back after all products
    seconds  that the products take; long against what this machine needs for the real ones
    rounds   each runs every number of waves once; with 0 the expected times stand for the measured, and nothing waits
    raises   ValueError for a ratio or a time that cannot be
    """
    if not (rho >= 0 and seconds > 0):
        raise ValueError(f"measure_waves: rho = {rho}, seconds = {seconds}; a ratio from 0 and a time above 0")
    by_rank = run_ranks(lambda group: _all_rounds(group, rho, waves, seconds, rounds), n_ranks, timeout=60.0)
    found: list[Overlap] = []
    for number, n_waves in enumerate(waves):
        emulated, *real = zip(*(rank[number] for rank in by_rank))  # rounds, the ranks' side by side
        expected = max(rank.seconds for rank in emulated)
        fair = sum(not any(rank.late for rank in ranks) for ranks in real) / max(1, len(real))
        calm = sorted(real, key=lambda ranks: max(rank.overslept for rank in ranks))[: (len(real) + 1) // 2]
        times = [max(rank.seconds for rank in ranks) for ranks in calm]
        measured = statistics.median(times) if times else expected
        gains = (found[0].expected / expected, found[0].measured / measured) if found else (1.0, 1.0)
        equal = all(rank.equal for ranks in (emulated, *real) for rank in ranks)
        found.append(Overlap(n_waves, expected, measured, *gains, fair, equal))
    return found


def _all_rounds(
    group: dist.ProcessGroup, rho: float, waves: tuple[int, ...], seconds: float, rounds: int
) -> list[list[_Round]]:
    """On one rank, for each number of waves: a round by the fake clock, then those by the wall's."""
    experts, *tokens = example(group.size())
    tokens, local = [tensor[group.rank() * T : (group.rank() + 1) * T] for tensor in tokens], shard(experts, group)
    counted = Transport(group)
    first, found = _one_layer(group, tokens, local, waves[0], counted), [[] for _ in waves]
    speed = flops(local, T * A) / seconds
    link = counted.sent_bytes / (rho * seconds) if rho else math.inf
    for clock in [None] + rounds * [time]:
        for number, n_waves in enumerate(waves):
            transport = PacedTransport(group, link, speed, clock=clock or FakeClock())
            dist.barrier(group)
            start = transport.now()
            out = _one_layer(group, tokens, local, n_waves, transport)
            taken = transport.now() - start
            found[number].append(_Round(taken, transport.late, transport.overslept, torch.equal(out, first)))
    return found


@torch.no_grad()
def _one_layer(group, tokens: list[Tensor], local: SpreadExperts, waves: int, transport: Transport) -> Tensor:
    """One layer in the formats of the report."""
    formats = dict(dispatch="fp8", combine="bf16")
    return expert_parallel_moe(*tokens, local, group, "waves", waves, **formats, transport=transport)
