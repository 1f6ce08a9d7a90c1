"""One row of tokens cut over ranks: each holds a stretch of it and fetches from the others what lies before.

B batch, T tokens of one rank, M tokens per entry, C entries, W window, K width of what is sent. Report section 3.5.3.
The model runs as it is. What it finds in its memory, a rank's memory fetches:

    stage 1  the W - 1 window entries before the rank's first token, and the raw series (values and gates) of the
             compression window that this token continues: up to M - 1 tokens, and M more where windows overlap
    stage 2  the finished entries of all ranks, in order; each rank makes those whose last token it owns

Positions are those of the whole row, wherever it is cut. Experts, norms and streams see one token at a time and need
nothing. In backward, gradients travel the same ways back: all ranks must call it, with a loss of all their tokens.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import torch
from einops import rearrange
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

from minidsv4.config import Config, LayerKind
from minidsv4.model.attention import ATTENTION
from minidsv4.model.cache import Cache, CompressorMemory, Series
from minidsv4.model.check import check_documents
from minidsv4.model.model import Model
from minidsv4.parallel.exchange import AllToAll, Exchange
from minidsv4.parallel.transport import Transport
from minidsv4.parallel.wire import Wire


def context_parallel_logits(
    model: Model,
    ids_BT: Tensor,
    group: dist.ProcessGroup | None = None,
    document_BT: Tensor | None = None,
    *,
    transport: Transport | None = None,
) -> Tensor:
    """Logits [B, T, V] of this rank's tokens; arguments and errors as of `context_parallel_streams`."""
    return model.logits(context_parallel_streams(model, ids_BT, group, document_BT, transport=transport))


def context_parallel_streams(
    model: Model,
    ids_BT: Tensor,
    group: dist.ProcessGroup | None = None,
    document_BT: Tensor | None = None,
    *,
    transport: Transport | None = None,
) -> Tensor:
    """What `model.streams` gives for this rank's stretch of a row that rank after rank holds. All ranks call it.

    model      the same on every rank
    ids_BT     this rank's tokens: any number from 1, not the same on all ranks
    group      None is all ranks
    document_BT   where each token's document begins, counted from the start of the whole row; None where all is one
    transport  counts the bytes that are sent; None makes one
    returns    [B, T, N, D]
    raises     ValueError, on every rank, for tokens that cannot be run or a batch that differs between ranks
               LostContact where another rank is gone
    """
    transport = transport or Transport(group or dist.group.WORLD)
    communicator = Communicator(transport, agreed_partition(model, ids_BT, document_BT, transport))
    return model.streams(ids_BT, distribute_cache(model.new_cache(len(ids_BT)), communicator), document_BT)


def context_parallel_mtp_logits(
    model: Model,
    streams_BTND: Tensor,
    next_BT: Tensor,
    group: dist.ProcessGroup | None = None,
    document_BT: Tensor | None = None,
    *,
    transport: Transport | None = None,
) -> Tensor:
    """What `model.mtp_logits` gives for this rank's stretch: logits [B, T, V] for tokens i + 2.

    streams_BTND  of positions i, from `context_parallel_streams`
    next_BT       tokens i + 1, so the last of them is the next rank's first; the last rank has one position less
    """
    transport = transport or Transport(group or dist.group.WORLD)
    communicator = Communicator(transport, agreed_partition(model, next_BT, document_BT, transport))
    cache = distribute_cache(model.new_draft_cache(len(next_BT)), communicator)
    return model.logits(model.draft(streams_BTND, next_BT, cache, document_BT), of=model.mtp_block)


# --- before anything is sent ---


def agreed_partition(model: Model, ids_BT: Tensor, document_BT: Tensor | None, transport: Transport) -> "Partition":
    """How many tokens each rank has, once all ranks mean the same and none has tokens that cannot be run."""
    wrong = what_is_wrong(model.check, ids_BT)
    n_tokens, n_batch = (0, 0) if wrong else (ids_BT.shape[1], len(ids_BT))
    lengths = transport.swap(torch.full((transport.n_ranks,), n_tokens, device=transport.device)).tolist()
    partition = Partition(tuple(lengths))
    if all(lengths):
        start, _ = partition.stretch(transport.rank)
        wrong = what_is_wrong(check_documents, model.config, ids_BT, document_BT, start)
    transport.agree(
        **{"what is wrong": wrong, "batch size": n_batch, "document_BT given": document_BT is not None},
        **{"config": model.config, "dtype": model.embed.weight.dtype, "parameters with a gradient": learning(model)},
    )
    if wrong:
        raise ValueError(wrong)
    return partition


def what_is_wrong(check: Callable[..., None], *arguments) -> str:
    """Why a check refuses this rank's tokens, in a sentence; empty if it does not."""
    try:
        check(*arguments)
    except ValueError as error:
        return str(error)
    return ""


def learning(model: Model) -> list[str]:
    """Names of what backward would give a gradient."""
    return [name for name, p in model.named_parameters() if p.requires_grad and torch.is_grad_enabled()]


# --- who needs what ---


@dataclass(frozen=True)
class Partition:
    """A row's tokens by rank, each with a stretch of it. Counting only: nothing is sent.

    lengths  tokens of each rank
    """

    lengths: tuple[int, ...]

    def stretch(self, rank: int) -> tuple[int, int]:
        """First position of a rank, and the one behind its last."""
        edges = list(accumulate(self.lengths, initial=0))
        return edges[rank], edges[rank + 1]

    def tails(self, reach: Callable[[int], int]) -> list[list[int]]:
        """How many of its last tokens each rank sends to each: `[from][to]`.

        What a short rank does not hold, the ranks before it send.

        reach  how many tokens before position `start` a rank that starts there needs
        """
        ranks = range(len(self.lengths))
        stretches = [self.stretch(rank) for rank in ranks]
        oldest = [start - reach(start) for start, _ in stretches]
        return [
            [max(0, stop - max(start, oldest[to])) if rank < to else 0 for to in ranks]
            for rank, (start, stop) in enumerate(stretches)
        ]

    def n_entries(self, ratio: int) -> list[int]:
        """How many entries each rank makes: those whose last token it owns."""
        stretches = [self.stretch(rank) for rank in range(len(self.lengths))]
        return [stop // ratio - start // ratio for start, stop in stretches]

    def n_emitted(self, ratio: int) -> int:
        """Entries that every rank emits, padding included: `s / m + 1`, s being the longest stretch."""
        return max(self.lengths) // ratio + 1


def window_reach(start: int, window: int) -> int:
    """Tokens before `start` that the query there sees."""
    return min(start, window - 1)


def raw_reach(start: int, ratio: int, n_halves: int) -> int:
    """Tokens before `start` that the first entry which ends there or later pools.

    They are M more where windows overlap.
    """
    return min(start, start % ratio + (n_halves - 1) * ratio)


def sent_bytes(config: Config, lengths: tuple[int, ...], number_bytes: int, n_batch: int = 1) -> dict[str, int]:
    """Bytes that all ranks together send to others in one forward pass, by what they are: a closed form.

    lengths       tokens of each rank
    number_bytes  bytes of one number
    returns       bytes of window entries, raw series, and entries (main ones and indexer keys)
    """
    partition = Partition(lengths)
    numbers = {"window": 0, "raw series": 0, "entries": 0}
    for kind in config.layer_types[: config.num_hidden_layers]:
        ratio, n_halves = config.ratio_of(kind), n_halves_of(kind)
        width = config.head_dim + (config.index_head_dim if kind is LayerKind.CSA else 0)
        for start, _ in map(partition.stretch, range(1, len(lengths))):
            numbers["window"] += window_reach(start, config.sliding_window) * config.head_dim
            if n_halves:
                numbers["raw series"] += raw_reach(start, ratio, n_halves) * 2 * n_halves * width
        if n_halves and sum(partition.n_entries(ratio)):
            numbers["entries"] += len(lengths) * (len(lengths) - 1) * partition.n_emitted(ratio) * width
    return {name: number * number_bytes * n_batch for name, number in numbers.items()}


def n_halves_of(kind: LayerKind) -> int:
    """Series per token of this kind's compressor: 2 where windows overlap; 0 without one."""
    return 0 if kind is LayerKind.WINDOW else ATTENTION[kind].compressor_class.n_halves


# --- sending ---


@dataclass
class Communicator:
    """The exchanges of a row cut over ranks, as one rank takes part in them."""

    transport: Transport
    partition: Partition

    @property
    def start(self) -> int:
        """Position of this rank's first token."""
        return self.partition.stretch(self.transport.rank)[0]

    def halo(self, new_BTK: Tensor, reach: Callable[[int], int]) -> Tensor:
        """Stage 1: what the ranks before hold for the tokens before this rank's.

        reach    how many tokens before position `start` are fetched
        returns  [B, S, K]
        """
        rank = self.transport.rank
        tails = self.partition.tails(reach)
        sent = tails[rank]
        received = [row[rank] for row in tails]
        rows = rearrange(new_BTK, "b t k -> t (b k)")
        leaving = torch.cat([rows[len(rows) - n :] for n in sent])
        fetched = self.exchange(leaving, sent, received)
        return rearrange(fetched, "s (b k) -> b s k", b=len(new_BTK))

    def all_gather(self, new_BCK: Tensor, ratio: int) -> Tensor:
        """Stage 2: the entries [B, C, K] of all ranks in order, padding last.

        Nothing is sent if there is none.
        """
        n_ranks = self.transport.n_ranks
        n_emitted = self.partition.n_emitted(ratio)
        counts = self.partition.n_entries(ratio)
        length = n_ranks * max(self.partition.lengths) // ratio
        if not sum(counts):
            return new_BCK.new_zeros(len(new_BCK), length, new_BCK.shape[2])
        padded = F.pad(new_BCK, (0, 0, 0, n_emitted - new_BCK.shape[1]))
        rows = rearrange(padded, "b c k -> c (b k)").repeat(n_ranks, 1)
        by_rank = [n_emitted] * n_ranks
        emitted = self.exchange(rows, by_rank, by_rank).unflatten(0, (n_ranks, n_emitted))
        listed = select_and_pad(emitted, counts, length)
        return rearrange(listed, "c (b k) -> b c k", b=len(new_BCK))

    def exchange(self, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Rows to other ranks, theirs to this one; their gradients take the way back."""
        all_to_all = AllToAll(self.transport, sent, received, Wire(), Wire())
        came = Exchange.apply(rows, all_to_all)
        all_to_all.wait()
        return came


def select_and_pad(emitted: Tensor, counts: list[int], length: int) -> Tensor:
    """What the ranks emitted, as one list: all entries in order, then padding.

    emitted  [ranks, entries of one rank, ...], of each rank its entries, then padding
    counts   how many of each rank's are entries
    length   of the list
    """
    is_padding = torch.arange(emitted.shape[1]) >= torch.tensor(counts)[:, None]
    order = is_padding.flatten().int().argsort(stable=True)
    return emitted.flatten(0, 1)[order[:length].to(emitted.device)]


# --- a rank's cache, which fetches what it lacks ---


def distribute_cache(cache: Cache, communicator: Communicator) -> Cache:
    """An empty cache whose every series fetches what it holds of other ranks' tokens.

    It serves one call.
    """
    config = cache.config
    cache.n_tokens = communicator.start
    for memory in cache.layers:
        ratio = config.ratio_of(memory.kind)
        n_halves = n_halves_of(memory.kind)
        reach = functools.partial(window_reach, window=config.sliding_window)
        memory.window = HaloSeries(memory.window.data, communicator, reach)
        for part in memory.compressors():
            part.open = RawHaloSeries(part, ratio, n_halves, communicator)
            part.entries = GatheredEntries(part, ratio, communicator)
    return cache


class HaloSeries(Series):
    """A series that begins on other ranks.

    What this rank appends comes after what it fetches, its halo.

    reach  how many tokens before position `start` are fetched
    """

    def __init__(
        self,
        empty: Tensor,
        communicator: Communicator,
        reach: Callable[[int], int],
    ):
        super().__init__(empty)
        self.communicator = communicator
        self.reach = reach

    def append(self, new: Tensor) -> Tensor:
        halo = self.communicator.halo(new, self.reach)
        return super().append(torch.cat([halo, new], dim=1))


class RawHaloSeries(HaloSeries):
    """Raw series from the first token of the window that this rank continues.

    The window before goes to `previous`.
    """

    def __init__(
        self,
        memory: CompressorMemory,
        ratio: int,
        n_halves: int,
        communicator: Communicator,
    ):
        reach = functools.partial(raw_reach, ratio=ratio, n_halves=n_halves)
        super().__init__(memory.open.data, communicator, reach)
        self.memory = memory
        self.ratio = ratio

    def append(self, new: Tensor) -> Tensor:
        series = super().append(new)
        if series.shape[1] - new.shape[1] >= self.ratio:
            as_previous, _ = rearrange(
                series[:, : self.ratio],
                "b m (two half k) -> half b m (two k)",
                two=2,
                half=2,
            )
            self.memory.previous.append(as_previous)
            self.drop(self.ratio)
        return self.contents()


class GatheredEntries:
    """Finished entries of all ranks, in order.

    The length counts those up to this rank's last token.
    """

    def __init__(
        self,
        memory: CompressorMemory,
        ratio: int,
        communicator: Communicator,
    ):
        self.memory = memory
        self.ratio = ratio
        self.communicator = communicator
        self.width = memory.entries.data.shape[-1]
        self.count = communicator.start // ratio

    def __len__(self) -> int:
        return self.count

    def append(self, new_BCK: Tensor) -> Tensor:
        """Add this rank's entries, return those of all ranks."""
        self.count += new_BCK.shape[1]
        return self.communicator.all_gather(new_BCK, self.ratio)

    def contents(self) -> Tensor:
        """Those of all ranks, where this rank finishes none.

        What it adds is an empty part of its raw series, so that gradients go on.
        """
        return self.append(self.memory.open.contents()[:, :0, : self.width])
