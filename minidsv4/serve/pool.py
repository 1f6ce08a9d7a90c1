"""A pool of cache memory that many texts share: blocks of compressed entries, and a state for each text.

M tokens per entry, W window. Report section 3.6.1. A block holds the entries and indexer keys that lcm(m, m') tokens
give in every layer; it is lent to one text and comes back when the text ends. The state is what does not grow: the
window and the raw series of the open windows. The blocks of a text lie side by side, so that attention reads its
entries where they are: measured on `Config.mini` in float32, a step of 8 texts of 8,192 tokens takes 94 ms of one core,
as with caches of their own (93 ms), and 107 ms where a table of scattered blocks is gathered for every layer. What is
paid for it is that all texts move up when free blocks lie scattered and a text needs them as one.
"""

import math

from torch import Tensor

from minidsv4.lowbit.entries import Form
from minidsv4.model.cache import Cache, CompressorMemory, Series
from minidsv4.model.model import Model
from minidsv4.options import readable


class RoomSeries(Series):
    """A series in a room of fixed size: what is new is written behind what is there, and nothing moves.

    room  [1, most, width], whatever it holds from before
    """

    def __init__(self, room: Tensor, form: Form):
        self.form = form
        self.data, self.low, self.high = room, 0, 0

    def append(self, new: Tensor) -> Tensor:
        """Add `new` [1, T, width] and return everything remembered, the new part included."""
        self.extend(new.shape[1])
        self.data[:, self.high - new.shape[1] : self.high] = self.form.pack(new)
        return self.contents()

    def extend(self, n: int) -> None:
        """Add `n` places, for the caller to fill before anything reads them."""
        assert self.high + n <= self.data.shape[1], "a text outgrew the blocks that were lent to it"
        self.high += n

    def move(self, room: Tensor) -> None:
        """Go on in another room, which may overlap with this one."""
        room[:, : len(self)] = self.held().clone()
        self.data = room


class Pool:
    """Blocks and states, lent to texts as caches.

    n_blocks   blocks in all, allocated at once
    n_texts    states in all: so many texts have a cache at a time
    precision  of the caches, as in `Model.new_cache`
    """

    def __init__(self, model: Model, n_blocks: int, n_texts: int, precision: str = "model"):
        self.model = model
        self.n_blocks = n_blocks
        self.n_texts = n_texts
        self.precision = precision
        self.sizes = Sizes(model, precision)
        try:
            self.arenas = self.sizes.arenas(n_blocks)
        except (RuntimeError, TypeError, OverflowError):  # more than there is, or than torch counts
            found = f"engine: memory for {n_blocks:,} blocks of {self.sizes.block_bytes:,} bytes cannot be had"
            raise ValueError(f"{found}; give less") from None
        self.lent: dict[Cache, range] = {}  # the blocks of each text, in the order in which they lie

    @property
    def n_free(self) -> int:
        """Blocks that no text has."""
        return self.n_blocks - sum(map(len, self.lent.values()))

    def n_bytes(self) -> int:
        """Bytes of all blocks and states."""
        return self.sizes.n_bytes(self.n_blocks, self.n_texts)

    def check_size(self, n_tokens: int) -> None:
        """Refuse a text for which there is no room though no other has any."""
        n = self.sizes.blocks(n_tokens)
        if n > self.n_blocks:
            found = f"a text of {n_tokens:,} tokens takes {n:,} blocks of {self.sizes.block_tokens}"
            raise ValueError(f"engine: {found}, and memory has {self.n_blocks:,}; give fewer n_tokens or more memory")

    def has_room(self, n_tokens: int) -> bool:
        """Whether a text of so many tokens can have a cache now."""
        return len(self.lent) < self.n_texts and self.sizes.blocks(n_tokens) <= self.n_free

    def lend(self, n_tokens: int) -> Cache:
        """An empty cache with blocks for so many tokens, of which there is room."""
        assert self.has_room(n_tokens)
        cache = self.model.new_cache(precision=self.precision)
        blocks = self.find(self.sizes.blocks(n_tokens))
        for part, arena in zip(compressors(cache), self.arenas):
            part.entries = RoomSeries(self.room(part, arena, blocks), part.entries.form)
        self.lent[cache] = blocks
        self.lent = dict(sorted(self.lent.items(), key=lambda item: item[1].start))
        return cache

    def take_back(self, cache: Cache) -> None:
        """Let others have the blocks and the state of a text that has ended; its cache is not used again."""
        del self.lent[cache]

    def find(self, n: int) -> range:
        """So many free blocks side by side; where free ones lie scattered, all texts move up to make them one."""
        end = 0
        for blocks in [*self.lent.values(), range(self.n_blocks, self.n_blocks)]:
            if blocks.start - end >= n:
                return range(end, end + n)
            end = blocks.stop
        return self.gathered(n)

    def gathered(self, n: int) -> range:
        """So many free blocks, behind the texts, which move up to the beginning."""
        end = 0
        for cache, blocks in self.lent.items():
            self.lent[cache] = range(end, end + len(blocks))
            end += len(blocks)
            for part, arena in zip(compressors(cache), self.arenas):
                assert isinstance(part.entries, RoomSeries)
                part.entries.move(self.room(part, arena, self.lent[cache]))
        return range(end, end + n)

    def room(self, part: CompressorMemory, arena: Tensor, blocks: range) -> Tensor:
        """The part of an arena [1, entries, width] that these blocks are."""
        each = arena.shape[1] // max(1, self.n_blocks)
        return arena[:, blocks.start * each : blocks.stop * each]


def compressors(cache: Cache) -> list[CompressorMemory]:
    """What the compressors of all layers keep, in one order."""
    return [part for layer in cache.layers for part in layer.compressors()]


class Sizes:
    """Tokens and bytes of a block, and the most bytes that a state's buffers take.

    block_tokens  lcm(m, m')
    """

    def __init__(self, model: Model, precision: str):
        cache = model.new_cache(precision=precision)
        config = model.config
        self.block_tokens = config.document_grid
        self.parts = compressors(cache)
        ratios = [config.ratio_of(layer.kind) for layer in cache.layers for _ in layer.compressors()]
        self.entries = [self.block_tokens // ratio for ratio in ratios]  # of each part, in a block
        self.block_bytes = sum(n * row_bytes(part.entries) for n, part in zip(self.entries, self.parts))
        state = sum(buffer_bytes(layer.window, config.sliding_window) for layer in cache.layers)
        for part, ratio in zip(self.parts, ratios):
            state += buffer_bytes(part.open, ratio) + buffer_bytes(part.previous, ratio)
        self.state_bytes = state

    def blocks(self, n_tokens: int) -> int:
        """How many blocks a text of so many tokens needs: none where no layer compresses."""
        return math.ceil(n_tokens / self.block_tokens) if self.parts else 0

    def n_bytes(self, n_blocks: int, n_texts: int) -> int:
        """Bytes of so many blocks and states."""
        return n_blocks * self.block_bytes + n_texts * self.state_bytes

    def arenas(self, n_blocks: int) -> list[Tensor]:
        """Room for so many blocks of each part [1, entries, width], not filled."""
        empty = [part.entries.data for part in self.parts]
        return [data.new_empty(1, n_blocks * n, data.shape[2]) for n, data in zip(self.entries, empty)]

    def blocks_in(self, memory: float, n_texts: int) -> int:
        """How many blocks a budget in bytes has room for, besides the states of so many texts.

        raises  ValueError where there is not one
        """
        if math.isinf(memory):
            raise ValueError("engine: memory = None or inf has no end; give bytes, or such as '8 GB'")
        least = self.n_bytes(1, n_texts)
        if memory < least:
            right = f"{n_texts} texts need {readable(least)} at least, {readable(self.state_bytes)} of state each"
            raise ValueError(f"engine: memory = {readable(memory)} is too little; {right}")
        return int((memory - n_texts * self.state_bytes) // max(1, self.block_bytes))


def row_bytes(series: Series) -> int:
    """Bytes of one row of a series."""
    return series.data.shape[2] * series.data.element_size()


def buffer_bytes(series: Series, n_held: int) -> int:
    """The most bytes of the buffer of a series that forgets all but so many rows after each call."""
    return (4 * n_held + 64) * row_bytes(series)
