"""`PrefixStore`: what a model remembers of the beginnings of texts, on disk, for every later text that begins alike.

B batch, T tokens, L layers, M tokens per entry, W window, V vocabulary. Report section 3.6.2. Entries and indexer keys
are stored of every whole block of lcm(M, M') tokens. Of the window entries, which are about eight times as many bytes,
one of three strategies stores

    full      those of every token
    periodic  those of W tokens, every so many tokens
    zero      none

and what is missing at a hit is computed again from stored entries (`prefix_state.py`): M tokens, up to `every` more, or
W + (L - 1)(W - 1). Whatever was stored by any strategy is used by all. A text goes on from the end of the last block
that it shares with a stored one; what it shares inside a block is computed again.

A block is named by a hash of all tokens up to its end, of the model's weights, config and type, and of the format. So a
file never serves another text or model, and none is ever changed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from minidsv4.files import given_path
from minidsv4.model.cache import Cache
from minidsv4.model.model import PREFILL_CHUNK, Model
from minidsv4.options import check_memory
from minidsv4.serve import checks
from minidsv4.serve.disk import ModelOnDisk
from minidsv4.serve.prefix_files import Block, PrefixFiles
from minidsv4.serve.prefix_identity import blocks_of, check_operations, root
from minidsv4.serve.prefix_state import (
    Layout,
    block_tokens,
    cone_tokens,
    from_bytes,
    overlap_tokens,
    recomputed,
    seen_windows,
    to_bytes,
    watched,
)

STRATEGIES = ("full", "periodic", "zero")


@dataclass
class Counts:
    """Tokens since a store was opened.

    found  of blocks that were stored
    again  of these, computed again
    new    of texts, computed for the first time
    """

    found: int = 0
    again: int = 0
    new: int = 0


class PrefixStore:
    """Prefixes of texts in a folder, which any number of processes may share.

    Each call of `prefill`, `longest` and `keep` hashes all weights, so that no change of them goes unseen, whoever made
    it: 42 ms of one core for the 37 MB of `Config.mini`, a quarter of what 256 tokens of a prompt take. Of weights on
    disk only names, sizes and times of files are read, and once.

    folder     made if need be
    model      whose prefixes they are; after a change of weights or type, in place too, nothing stored before is found
    strategy   which window entries `prefill` stores: "full", "periodic" or "zero"
    limit      bytes of files at most, or such as "1 GB": what was not used for longest goes first; None: no limit
    every      tokens between two stored windows, a multiple of `block`; for "periodic" alone
    precision  of the caches: "model" or "released", as in `Model.new_cache`
    tag        names what a model computes that runs operations or hooks of its own, which its weights do not tell
    block      tokens of a block
    cone       tokens that "zero" computes again
    counts     tokens found, and computed
    raises     ValueError for what is none of these
    """

    @checks.refusing("PrefixStore")
    def __init__(
        self,
        folder: str | Path,
        model: Model,
        strategy: str = "zero",
        limit: float | str | None = None,
        every: int | None = None,
        precision: str = "model",
        tag: str = "",
    ):
        self.model = checks.check_model(model)
        self.strategy, self.precision, self.tag = strategy, precision, tag
        self.block = block_tokens(model.config)
        self.every = check_strategy(strategy, every, self.block)
        self._root = ""
        self._renew()
        self.overlap, self.cone = overlap_tokens(model.config), cone_tokens(model.config)
        limit = check_memory(limit, "PrefixStore: limit")
        self.files = PrefixFiles(given_path("PrefixStore", folder), limit)
        self.counts = Counts()

    @checks.refusing("longest")
    def longest(self, ids: Sequence[int] | Tensor) -> tuple[Cache, int]:
        """A cache of the longest stored prefix of a text, which leaves at least one token to run, and its tokens.

        raises  ValueError for ids that are no prompt
        """
        ids_T = checks.check_prompt(ids, self.model)[:-1]
        cache, _ = self._resume(ids_T, self.chain(ids_T))
        return cache, cache.n_tokens

    def prefill(self, ids_BT: Tensor, cache: Cache) -> Tensor:
        """What `Model.prefill` gives and does, for one text from its beginning: only what is not stored is computed.

        Each chunk is stored once it is computed.

        ids_BT   [1, T]
        cache    an empty one of the store's model and precision; takes the text in
        returns  logits [1, V] at its end
        raises   ValueError as `Model.prefill`, for several texts, and for a cache that is not empty
        """
        self.model.check(ids_BT, cache)
        if len(ids_BT) > 1:
            raise ValueError(f"ids: shape {tuple(ids_BT.shape)} is {len(ids_BT)} texts; a store takes one at a time")
        self._check_cache(cache, at_most=0)
        ids_T = ids_BT[0]
        chain = self.chain(ids_T)
        working, logits_BV = self._resume(ids_T, chain)
        self.counts.new += len(ids_T) - working.n_tokens
        step = max(1, PREFILL_CHUNK // self.block) * self.block
        for first in range(working.n_tokens, len(ids_T), step):
            logits_BV = self.model.prefill(ids_BT[:, first : first + step], watched(working))
            self.files.add(self._files(chain, working, first))
        assert logits_BV is not None
        cache.go_back(working.n_tokens, [series.ends() for series in working.series()])
        return logits_BV

    @checks.refusing("keep")
    def keep(self, ids: Sequence[int] | Tensor, cache: Cache) -> None:
        """Store what a cache holds of a text: entries and keys of every whole block; of windows nothing.

        ids     the first tokens that the cache took in, or all of them
        raises  ValueError for a cache of another model, size or precision, or of fewer tokens
        """
        ids_T = checks.check_prompt(ids, self.model)
        if cache is None:
            raise ValueError("keep: cache = None holds no text; give the cache that took these ids in")
        self.model.check(ids_T[None], cache)
        self._check_cache(cache)
        if len(ids_T) > cache.n_tokens:
            held = f"keep: ids: {len(ids_T)} tokens, of which the cache holds {cache.n_tokens}"
            raise ValueError(f"{held}; give those that it took in")
        self.files.add(self._files(self.chain(ids_T), cache, cache.n_tokens))

    def chain(self, ids_T: Tensor) -> list[Block]:
        """The whole blocks of a text, in order.

        raises  ValueError where the model runs operations of its own by now
        """
        self._renew()
        return blocks_of(ids_T, self.block, self._root)

    def _renew(self) -> None:
        """All that follows from the model as it is now. Weights on disk are named once: their reader notices changes.

        raises  ValueError where the model runs operations of its own by now
        """
        check_operations(self.model, self.tag)
        if not self._root or not isinstance(self.model, ModelOnDisk):
            self._root = root(self.model, self.precision, self.tag)
        self.empty = self.model.new_cache(precision=self.precision)
        self.layout = Layout(self.empty, self.block)

    def report(self) -> dict[str, int]:
        """Bytes in the folder: entries (with keys), window of "full", state of "periodic", checksums."""
        return self.files.report()

    # ---- a hit ----

    def _resume(self, ids_T: Tensor, chain: list[Block]) -> tuple[Cache, Tensor | None]:
        """A cache of the whole blocks of these tokens that are stored, and the logits [1, V] at its end, if any are."""
        pieces = []
        for block in chain:
            piece = self.files.read(block.file("entries"))
            if piece is None:
                break
            pieces.append(piece)
        n = len(pieces) * self.block
        if n == 0:
            return self.model.new_cache(precision=self.precision), None
        start, window = self._window_before(chain, n)
        self.counts.found += n
        self.counts.again += n - start
        entries = from_bytes(pieces, self.layout.entries, self.empty.device)
        return recomputed(self.model, ids_T[:n], start, entries, window, self.precision)

    def _window_before(self, chain: list[Block], n: int) -> tuple[int, list[Tensor]]:
        """From which token on to compute again for the state after `n` tokens, and every layer's window there."""
        for border in range(n, max(0, n - self.cone), -self.block):
            start = border - self.overlap
            if start <= n - self.cone:
                break
            window = self._window_of_state(chain, border) or self._window_of_blocks(chain, start)
            if window is not None:
                return start, window
        return max(0, n - self.cone), [layer.window.held() for layer in self.empty.layers]

    def _window_of_state(self, chain: list[Block], border: int) -> list[Tensor] | None:
        """Every layer's window before the overlap of a border, as "periodic" stored it."""
        piece = self.files.read(chain[border // self.block - 1].file("state"))
        parts = self.layout.state(self._n_window(border - self.overlap))
        return None if piece is None else from_bytes([piece], parts, self.empty.device)

    def _window_of_blocks(self, chain: list[Block], start: int) -> list[Tensor] | None:
        """Every layer's window before the token `start`, of what "full" stored."""
        first = start - self._n_window(start)
        oldest = first // self.block
        pieces = [self.files.read(block.file("window")) for block in chain[oldest : -(-start // self.block)]]
        found = [piece for piece in pieces if piece is not None]
        if not found or len(found) < len(pieces):
            return None
        rows = from_bytes(found, self.layout.window, self.empty.device)
        return [part[:, first - oldest * self.block : start - oldest * self.block] for part in rows]

    def _n_window(self, n: int) -> int:
        """How many entries a window holds after `n` tokens."""
        return min(self.model.config.sliding_window, n)

    # ---- what is stored ----

    def _files(self, chain: list[Block], cache: Cache, computed: int) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """Name and content of each file of the blocks that the cache holds, those of windows from `computed` on."""
        for number, block in enumerate(chain[: cache.n_tokens // self.block]):
            first, border = number * self.block, (number + 1) * self.block
            yield block.file("entries"), partial(self._entries, cache, number)
            if self.strategy == "full" and first >= computed:
                yield block.file("window"), partial(self._windows, cache, first, border)
            if self.strategy == "periodic" and first >= computed and border % self.every == 0:
                stop = border - self.overlap
                yield block.file("state"), partial(self._windows, cache, stop - self._n_window(stop), stop)

    def _entries(self, cache: Cache, number: int) -> bytes:
        """Entries and keys of a block."""
        return to_bytes(self.layout.entries_of(cache, number))

    def _windows(self, cache: Cache, first: int, stop: int) -> bytes:
        """Window entries of tokens that the last call read or made."""
        return to_bytes(seen_windows(cache, first, stop))

    def _check_cache(self, cache: Cache, at_most: float = float("inf")) -> None:
        """Refuse a cache that this store cannot read or fill; that it is the model's has been checked."""
        if cache.precision != self.precision:
            held = f"cache: precision = {cache.precision!r}, and the store's is {self.precision!r}"
            raise ValueError(f"{held}; give model.new_cache(precision={self.precision!r})")
        if cache.n_tokens > at_most:
            raise ValueError(f"cache: holds {cache.n_tokens} tokens; a text is read from its beginning, give a new one")


def check_strategy(strategy: str, every: int | None, block: int) -> int:
    """The tokens between two stored windows, 0 where none are; ValueError for what cannot be."""
    if strategy not in STRATEGIES:
        raise ValueError(f"PrefixStore: strategy = {strategy!r} is not known; it is one of {', '.join(STRATEGIES)}")
    if strategy != "periodic":
        if every is not None:
            raise ValueError(f"PrefixStore: every = {every!r} goes with strategy='periodic'; leave it out")
        return 0
    if not isinstance(every, int) or isinstance(every, bool) or every < 1 or every % block:
        raise ValueError(
            f"PrefixStore: every = {every!r} cannot be; windows are stored every {block} tokens or a multiple"
        )
    return every


def check_prefixes(prefixes: PrefixStore | None, model: Model, speculate: object) -> PrefixStore | None:
    """The store that `generate` is to use, or None; ValueError unless it is one of this model, used without drafts."""
    if prefixes is None:
        return None
    if not isinstance(prefixes, PrefixStore):
        right = "give a PrefixStore of the model, or None"
        raise ValueError(f"generate: prefixes = {checks.shown(prefixes)} is {checks.kind(prefixes)}; {right}")
    if prefixes.model is not model:
        raise ValueError("generate: prefixes: a store of another model; give PrefixStore(folder, model) of this one")
    if speculate is not False:
        drafts = f"generate: speculate = {checks.shown(speculate)} reads the streams of every token of the prompt"
        raise ValueError(f"{drafts}, which are not stored; leave it or prefixes out")
    return prefixes
