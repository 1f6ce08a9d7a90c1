"""How rows travel between ranks: at once, or at the pace of a chip and a link that this machine does not have.

`Transport` sends with torch's `all_to_all_single` and waits for nothing that it need not. `PacedTransport` does the
same and then waits until the emulated link would be done, and likewise after each product: real ranks, rows and
products, and a clock that shows what overlapping buys. Without pacing nothing can be measured on a CPU, where sending
and multiplying use the same cores.
"""

import math
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from minidsv4.parallel.launch import contact, names

SLACK = 1e-3  # seconds: real work that ends so little after its time has not slowed the emulation


class Transport:
    """Sends rows within a group of ranks. `sent_bytes` counts what this rank sent to others."""

    def __init__(self, group: dist.ProcessGroup):
        self.group, self.rank, self.n_ranks, self.sent_bytes = group, group.rank(), group.size(), 0

    def issue(self, rows: Tensor, sent: list[int], received: list[int]) -> "Handle":
        """Begin to send rows. All ranks must call this in the same order, also those that have nothing to send.

        rows      sorted by the rank that they go to
        sent      how many go to each rank
        received  how many come from each rank
        returns   a handle; `handle.wait()` gives the rows that came, sorted by the rank they come from
        """
        rows, out = rows.contiguous(), rows.new_empty(sum(received), *rows.shape[1:])
        with contact(self.rank, "sending rows"):
            work = dist.all_to_all_single(out, rows, received, sent, group=self.group, async_op=True)
        row_bytes = rows.element_size() * math.prod(rows.shape[1:])
        leaving, arriving = (row_bytes * (sum(counts) - counts[self.rank]) for counts in (sent, received))
        self.sent_bytes += leaving
        return Handle(self, work, rows, out, self.deadline(max(leaving, arriving)))

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of all ranks' tensors; a ring sends `2 (ranks - 1) / ranks` of its bytes."""
        out = x.contiguous().clone()
        with contact(self.rank, "summing over the ranks"):
            dist.all_reduce(out, group=self.group)
        self.sent_bytes += 2 * (self.n_ranks - 1) * x.numel() * x.element_size() // self.n_ranks
        return out

    def swap(self, counts: Tensor) -> Tensor:
        """Counts [ranks, ...] of what goes to each rank become counts of what comes from each rank."""
        counts, out = counts.contiguous(), torch.empty_like(counts)
        with contact(self.rank, "sending counts"):
            dist.all_to_all_single(out, counts, group=self.group)
        return out

    def agree(self, **meant) -> None:
        """See that all ranks mean the same, before they wait for each other for ever.

        meant   what this rank means, by name: numbers, words or tuples of them
        raises  ValueError on every rank, naming the first thing that differs and who has which
        """
        prints = torch.tensor([zlib.crc32(repr(value).encode()) for value in meant.values()], device=self.device)
        found, everyone = [torch.empty_like(prints) for _ in range(self.n_ranks)], [None] * self.n_ranks
        with contact(self.rank, f"comparing {', '.join(meant)}"):
            dist.all_gather(found, prints, group=self.group)
            if all(torch.equal(other, prints) for other in found):
                return
            dist.all_gather_object(everyone, meant, group=self.group)
        name = next(name for name in meant if len({repr(other[name]) for other in everyone}) > 1)
        who = _who_has([other[name] for other in everyone])
        raise ValueError(f"{name} differs between ranks: {who}; it must be the same on all")

    @property
    def device(self) -> torch.device:
        """Where tensors must lie to be sent."""
        kind = {"nccl": "cuda", "hccl": "npu"}.get(dist.get_backend(self.group), "cpu")
        return torch.device(kind, getattr(torch, kind).current_device()) if kind != "cpu" else torch.device("cpu")

    def deadline(self, _n_bytes: int) -> float:
        """When the link will have carried so many bytes more; here as soon as they are there."""
        return 0.0

    def settle(self, _deadline: float, _asked: float) -> None:
        """Called when rows have come."""

    def now(self) -> float:
        return 0.0

    @contextmanager
    def computing(self, _flops: float) -> Iterator[None]:
        """Around a product of so many FLOPs; here it takes the time that it takes."""
        yield


@dataclass
class Handle:
    """Rows on their way."""

    transport: Transport
    work: Any
    rows: Tensor  # kept alive until they have been sent
    out: Tensor
    deadline: float

    def wait(self) -> Tensor:
        """The rows that came, once they are there."""
        asked = self.transport.now()
        with contact(self.transport.rank, "waiting for rows"):
            self.work.wait()
        self.transport.settle(self.deadline, asked)
        return self.out


class PacedTransport(Transport):
    """A transport whose rows and products take the time of another chip: they are done for real, and then waited for.

    link     bytes per second that a rank can send, and at once receive; all exchanges share it, first come first served
    device   FLOP/s
    latency  seconds that each exchange takes besides
    clock    has `monotonic()` and `sleep(seconds)`; a fake one gives the times without any waiting (`FakeClock`)

    `late` tells whether this machine was quick enough, `overslept` how many seconds too late it woke the rank in all.
    """

    def __init__(self, group: dist.ProcessGroup, link: float, device: float, latency: float = 0.0, clock=time):
        if not (link > 0 and device > 0 and latency >= 0):
            raise ValueError(f"PacedTransport: link = {link}, device = {device} are speeds above 0, latency from 0")
        super().__init__(group)
        self.link, self.speed, self.latency, self.clock = link, device, latency, clock
        self.link_free, self.overruns, self.overslept = -math.inf, [], 0.0

    def now(self) -> float:
        return self.clock.monotonic()

    def deadline(self, n_bytes: int) -> float:
        self.link_free = max(self.now(), self.link_free) + self.latency + n_bytes / self.link
        return self.link_free

    def settle(self, deadline: float, asked: float) -> None:
        self._sleep_until(deadline, earliest=asked)

    @contextmanager
    def computing(self, flops: float) -> Iterator[None]:
        start = self.now()
        yield
        self._sleep_until(start + flops / self.speed, earliest=start)

    @property
    def late(self) -> float:
        """The share of exchanges and products whose real work took longer than its emulated time; 0 in a fair run."""
        return sum(overrun > SLACK for overrun in self.overruns) / max(1, len(self.overruns))

    def _sleep_until(self, deadline: float, earliest: float) -> None:
        now = self.now()
        self.overruns.append(now - max(deadline, earliest))
        if now < deadline:
            self.clock.sleep(deadline - now)
            self.overslept += self.now() - deadline


class FakeClock:
    """A clock that only sleeping moves: emulated times alone, exact and at once."""

    def __init__(self):
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


def _who_has(column: list) -> str:
    """`3 on rank 2, 1 on ranks 0, 1, 3`: the rarest first."""
    holders = {repr(value): [rank for rank, other in enumerate(column) if other == value] for value in column}
    groups = sorted(holders.items(), key=lambda item: len(item[1]))
    return ", ".join(f"{value} on {names(ranks)}" for value, ranks in groups)
