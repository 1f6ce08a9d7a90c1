"""The key-value cache: what each layer keeps of earlier tokens, and going back in it.

B batch, W window, C entries, K head width, Z index width, M tokens per entry. Report
section 3.6.1. Per layer: the last W window entries, the raw series of the open
compression window, the previous window's half for the overlap, the finished entries,
the indexer's keys.
"""

import bisect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minidsv4.config import Config, LayerKind
from minidsv4.lowbit.entries import AS_COMPUTED, AS_MODEL, Form, Forms, forms_of

# of bytes, in `Cache.report`
KINDS = ("window", "tail state", "CSA entries", "indexer keys", "HCA entries")
Kinds = Sequence[LayerKind] | None  # of a cache's layers; None: all but the MTP block
MOST_SEQUENCES = 1 << 31  # side by side


class Series:
    """A tensor [B, S, width] that grows at its end; its oldest values can be dropped.

    Finished values are never overwritten: a full buffer is copied into one half as
    large again, so that appending costs O(1) a token on average and an older view (or
    snapshot) stays what it was.

    form  how values are kept in `data`: as they are, or packed; what is read is what
          was kept
    """

    def __init__(self, empty: Tensor, form: Form = AS_COMPUTED):
        self.form = form
        self.data, self.low, self.high = form.pack(empty), 0, 0

    def __len__(self) -> int:
        return self.high - self.low

    def contents(self) -> Tensor:
        """Everything remembered, [B, S, width], oldest first."""
        return self.form.unpack(self.held())

    def held(self) -> Tensor:
        """What is kept of it, [B, S, any]."""
        return self.data[:, self.low : self.high]

    def append(self, new: Tensor) -> Tensor:
        """Add `new` [B, T, width]; returns everything remembered, the new included."""
        n_new, kept = new.shape[1], self.form.pack(new)
        if self.high == self.low:
            # nothing to join: no copy, and gradients flow
            self.data, self.low, self.high = kept, 0, n_new
            return self.contents()
        self.extend(n_new)
        self.data[:, self.high - n_new : self.high] = kept
        return self.contents()

    def extend(self, n: int) -> None:
        """Add `n` places, for the caller to fill before anything reads them."""
        # torch then forbids writing
        frozen = self.data.is_inference() and not torch.is_inference_mode_enabled()
        if frozen or self.high + n > self.data.shape[1]:
            self._grow(len(self) + n)
        self.high += n

    def _grow(self, needed: int) -> None:
        n_batch, _, width = self.data.shape
        roomy = self.data.new_empty(n_batch, needed + needed // 2 + 8, width)
        roomy[:, : len(self)] = self.held()
        self.data, self.low, self.high = roomy, 0, len(self)

    def drop(self, n: int) -> None:
        """Forget the oldest `n`; a small buffer replaces a mostly forgotten one."""
        self.low += n
        if self.data.shape[1] > 4 * len(self) + 64:
            self.data, self.low, self.high = self.held().clone(), 0, len(self)

    def keep(self, n: int) -> None:
        """Forget all but the newest `n`."""
        self.drop(max(0, len(self) - n))

    def replace(self, new: Tensor) -> None:
        """Forget everything and remember `new` [B, T, width]."""
        self.drop(len(self))
        self.append(new)

    def ends(self) -> "SeriesState":
        """What to give back to `set_ends` to return to this point."""
        return self.data, self.low, self.high

    def set_ends(self, ends: "SeriesState") -> None:
        """Return to a point that `ends` gave."""
        self.data, self.low, self.high = ends

    def n_bytes(self) -> int:
        """Bytes of what is remembered, without the spare room of the buffer."""
        return self.held().nbytes


SeriesState = tuple[Tensor, int, int]  # the buffer, where what is kept begins and ends


@dataclass
class CompressorMemory:
    """What one compressor keeps.

    open      values and gates of the tokens of the unfinished window,
              [B, S < M, all halves]
    previous  values and gates of the last finished window, one half,
              [B, M, ...]; CSA only
    entries   finished entries [B, C, K]
    """

    open: Series
    previous: Series
    entries: Series


@dataclass
class LayerMemory:
    """What a layer keeps: the window, and in CSA and HCA what its compressors keep."""

    kind: LayerKind
    window: Series
    main: CompressorMemory | None = None
    index: CompressorMemory | None = None

    def compressors(self) -> list[CompressorMemory]:
        return [memory for memory in (self.main, self.index) if memory is not None]

    def series(self) -> list[Series]:
        found = [self.window]
        for memory in self.compressors():
            found += [memory.open, memory.previous, memory.entries]
        return found


@dataclass(frozen=True)
class Snapshot:
    """A state of one cache, to be given to `Cache.restore`."""

    owner: "Cache" = field(repr=False)
    number: int
    n_tokens: int
    ends: list[SeriesState] = field(repr=False)  # of every series


class Cache:
    """The key-value cache of a batch of sequences of equal length.

    config      of the model it belongs to
    batch_size  sequences side by side
    kinds       LayerKinds of its layers, or None for the model's own
    precision   "model": entries as computed; "released": FP8 entries and FP4 indexer
                keys, in bytes
    raises      ValueError for a batch size that is no integer from 1, other kinds or
                precisions
    """

    def __init__(
        self,
        config: Config,
        batch_size: int,
        dtype: torch.dtype,
        device: torch.device,
        kinds: Kinds = None,
        precision: str = "model",
    ):
        is_count = isinstance(batch_size, int) and not isinstance(batch_size, bool)
        if not is_count or not 1 <= batch_size <= MOST_SEQUENCES:
            found = f"cache: batch_size = {batch_size!r} cannot be"
            raise ValueError(f"{found}; it counts sequences, an integer from 1")
        self.config = config
        self.batch_size = batch_size
        self.dtype = dtype
        self.device = device
        self.precision = precision
        self.n_tokens = 0
        if kinds is None:
            kinds = config.layer_types[: config.num_hidden_layers]
        self.kinds = known_kinds(kinds)
        forms = forms_of(config, dtype, precision)
        self.layers: list[LayerMemory] = []
        for kind in self.kinds:
            memory = new_layer_memory(config, kind, batch_size, dtype, device, forms)
            self.layers.append(memory)
        self._numbers: list[int] = []  # of snapshots that are not void, oldest first
        self._n_taken = 0

    def report(self) -> dict[str, int]:
        """Bytes by kind: window, tail state, CSA entries, indexer keys, HCA entries."""
        total = dict.fromkeys(KINDS, 0)
        for layer in self.layers:
            total["window"] += layer.window.n_bytes()
            for memory in layer.compressors():
                total["tail state"] += memory.open.n_bytes() + memory.previous.n_bytes()
            if layer.main is not None:
                total[f"{layer.kind.name} entries"] += layer.main.entries.n_bytes()
            if layer.index is not None:
                total["indexer keys"] += layer.index.entries.n_bytes()
        return total

    def n_bytes(self) -> int:
        """Bytes remembered; the closed form `cost.memory.cache` plus the tail state."""
        return sum(self.report().values())

    def spare_bytes(self) -> int:
        """Bytes that the growing buffers hold in advance."""
        return sum(series.data.nbytes - series.n_bytes() for series in self.series())

    def series(self) -> list[Series]:
        """Every series of every layer."""
        return [series for layer in self.layers for series in layer.series()]

    def snapshot(self) -> Snapshot:
        """The present state; a few numbers a layer: values are never overwritten."""
        self._n_taken += 1
        self._numbers.append(self._n_taken)
        ends = [series.ends() for series in self.series()]
        return Snapshot(self, self._n_taken, self.n_tokens, ends)

    def restore(self, snapshot: Snapshot) -> None:
        """Go back exactly to `snapshot`; it stays valid, those taken after it do not.

        raises  ValueError for what is no snapshot of this cache, or one that is void
        """
        if getattr(snapshot, "owner", None) is not self:
            found = "cache: this snapshot belongs to another cache"
            raise ValueError(f"{found}; restore one that this cache took")
        place = bisect.bisect_left(self._numbers, snapshot.number)
        if self._numbers[place : place + 1] != [snapshot.number]:
            found = f"cache: the snapshot at token {snapshot.n_tokens} is void"
            raise ValueError(f"{found}; the cache was rewound to an older one")
        del self._numbers[place + 1 :]
        self.go_back(snapshot.n_tokens, snapshot.ends)

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Whatever goes wrong inside, the cache is then as it was before."""
        n_tokens = self.n_tokens
        ends = [series.ends() for series in self.series()]
        try:
            yield
        except BaseException:
            self.go_back(n_tokens, ends)
            raise

    def go_back(self, n_tokens: int, ends: list[SeriesState]) -> None:
        """Put every series back to where it was at `n_tokens` tokens."""
        self.n_tokens = n_tokens
        for series, series_ends in zip(self.series(), ends):
            series.set_ends(series_ends)


def known_kinds(kinds: Kinds) -> tuple[LayerKind, ...]:
    """The kinds as a tuple, or ValueError unless they are LayerKinds, at least one."""
    given = kinds if isinstance(kinds, list | tuple) else ()
    if not given or not all(isinstance(kind, LayerKind) for kind in given):
        right = "give a list of LayerKinds, or None for the model's own"
        raise ValueError(f"cache: kinds = {kinds!r} cannot be; {right}")
    return tuple(given)


def new_layer_memory(
    config: Config,
    kind: LayerKind,
    batch_size: int,
    dtype: torch.dtype,
    device: torch.device,
    forms: Forms = AS_MODEL,
) -> LayerMemory:
    """Nothing kept yet, for a layer of this kind; raw series are float32 at least."""
    raw = torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype

    def series(width: int, dtype: torch.dtype, form: Form = AS_COMPUTED) -> Series:
        empty = torch.empty(batch_size, 0, width, dtype=dtype, device=device)
        return Series(empty, form)

    def compressor(width: int, n_halves: int, form: Form) -> CompressorMemory:
        return CompressorMemory(
            open=series(2 * n_halves * width, raw),
            previous=series(2 * width, raw),
            entries=series(width, dtype, form),
        )

    window = series(config.head_dim, dtype, forms.entry)
    if kind is LayerKind.WINDOW:
        return LayerMemory(kind, window)
    if kind is LayerKind.CSA:
        main = compressor(config.head_dim, 2, forms.entry)
        keys = compressor(config.index_head_dim, 2, forms.key)
        return LayerMemory(kind, window, main, keys)
    return LayerMemory(kind, window, compressor(config.head_dim, 1, forms.entry))
