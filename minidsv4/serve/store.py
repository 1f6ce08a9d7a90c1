"""`Store`: weights that are read from files when they are asked for, and kept within a budget of bytes.

A step of a model needs the dense part of every layer, always in the same order, and few of the experts. So the dense
part has the first claim on the budget: experts that were not used for longest are dropped first; where none is left,
what the order needs latest. While one layer computes, a thread reads what the next one needs.
"""

import math
import mmap
import threading
import weakref
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

Held = TypeVar("Held")


class Rooms:
    """Memory that is lent, and lent again once no tensor stands on it: fresh pages cost more than filling them.

    limit  bytes that there are at most
    loose  whether a larger room than asked for will do; then those that were too small are given up
    peak   the most bytes that there were
    """

    def __init__(self, limit: float = math.inf, loose: bool = False):
        self.limit, self.loose = limit, loose
        self.n_bytes = self.peak = 0
        self.changed = threading.Condition()  # of an RLock: a room comes back wherever its last tensor dies
        self._free: list[np.ndarray] = []

    def take(self, n_bytes: int, beyond: bool = False) -> Tensor | None:
        """Bytes without numbers yet; None where the limit leaves no room, unless it may be gone `beyond`."""
        with self.changed:
            fitting = [
                (len(room), i)
                for i, room in enumerate(self._free)
                if len(room) == n_bytes or (self.loose and len(room) > n_bytes)
            ]
            if fitting:
                return self._lend(self._free.pop(min(fitting)[1]), n_bytes)
            while self._free and (self.loose or self.n_bytes + n_bytes > self.limit):
                self.n_bytes -= len(self._free.pop())
            if self.n_bytes + n_bytes > self.limit and not beyond:
                return None
            self.n_bytes += n_bytes
            self.peak = max(self.peak, self.n_bytes)
            return self._lend(np.frombuffer(mmap.mmap(-1, max(1, n_bytes)), np.uint8), n_bytes)

    def _lend(self, room: np.ndarray, n_bytes: int) -> Tensor:
        lent = room[:n_bytes]  # which torch holds as long as any tensor stands on it
        weakref.finalize(lent, self._back, room).atexit = False
        return torch.from_numpy(lent)

    def _back(self, room: np.ndarray) -> None:
        with self.changed:
            if self.n_bytes > self.limit:  # somebody went beyond it
                self.n_bytes -= len(room)
            else:
                self._free.append(room)
            self.changed.notify_all()


class Piece(NamedTuple):
    """What is read, kept and dropped as one: a tensor, a tile of one, or an expert.

    turn     place of its layer in the order of a step
    n_bytes  in the files
    room     bytes in memory, where each of its tensors begins at a multiple of 64
    expert   whether only some of the tokens need it
    """

    turn: int
    n_bytes: int
    room: int
    expert: bool = False


@dataclass
class Traffic:
    """Bytes since the beginning.

    touched  of what was asked for, once a layer and pass
    read     from the files
    passes   times that the first layer was reached
    """

    touched: int = 0
    read: int = 0
    passes: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of the bytes touched that were in memory already."""
        return 1 - self.read / max(1, self.touched, self.read)


class Store(Generic[Held]):
    """Pieces by their key: `get` gives one, reading it if need be.

    read     reads the piece of a key into a room
    pieces   every piece there is
    budget   bytes of pieces in memory at most, those being read included
    after    the turn that follows each, where that is not the next; put right as turns come
    traffic  bytes touched and read
    rooms    the memory of the pieces
    watch    called at every turn, with the store
    """

    def __init__(
        self, read: Callable[[str, Tensor], Held], pieces: dict[str, Piece], budget: float, after: dict[int, int]
    ):
        self.read, self.pieces = read, pieces
        self.rooms = Rooms(budget)
        self.traffic = Traffic()
        self.turn = -1  # before the first
        self.watch: Callable[[Store], object] | None = None
        self._kept: dict[str, Held] = {}  # least recently used first
        self._coming: dict[str, Future] = {}  # being read ahead, or waiting for it
        self._wanted: set[str] = set()  # read ahead and not used yet
        self._touched: set[str] = set()  # in this turn
        self._dense: dict[int, list[str]] = {}  # keys by turn
        for key, piece in pieces.items():
            self._dense.setdefault(piece.turn, []).extend([] if piece.expert else [key])
        self._after = dict(after)
        self._in_use = ""
        self._n_reading = 0  # ahead, just now
        self._one_at_a_time = threading.RLock()
        self._state = self.rooms.changed
        self._thread = ThreadPoolExecutor(2, "read-ahead")  # the next layer, and experts of this one

    def get(self, key: str) -> Held:
        """A piece. It stays in memory until the next one is asked for, and as long as the budget allows.

        raises  what reading it raises
        """
        with self._one_at_a_time:
            self._in_use = key
            coming = self._coming.pop(key, None)
            if coming is not None and not coming.cancel():
                coming.result()
            with self._state:
                held = self._kept.pop(key, None)
            if held is None:
                held = self._fetch(key, ahead=False)
            assert held is not None
            with self._state:
                self._kept[key] = held  # now the most recently used
                self._wanted.discard(key)
                if key not in self._touched:
                    self._touched.add(key)
                    self.traffic.touched += self.pieces[key].n_bytes
            return held

    def past(self, n_bytes: int) -> None:
        """Count bytes that were read past the store, and are not kept."""
        with self._state:
            self.traffic.touched += n_bytes
            self.traffic.read += n_bytes

    def begin(self, turn: int) -> None:
        """A layer's turn has come: what is dense in the one that followed it last time is read ahead."""
        with self._one_at_a_time:
            self._after[self.turn] = turn
            self.turn = turn
            self.traffic.passes += turn == 0
            self._touched.clear()
            following = self._after.get(turn, turn + 1)
            near = {turn, following}
            with self._state:
                self._wanted = {key for key in self._wanted if self.pieces[key].turn in near}
            self._coming = {key: future for key, future in self._coming.items() if not self._stale(key, future, near)}
            self.ahead(self._dense.get(following, ()))
        if self.watch is not None:
            self.watch(self)

    def ahead(self, keys: Sequence[str]) -> None:
        """Read these pieces in another thread, in this order, as far as nothing has to go that is needed sooner."""
        with self._one_at_a_time:
            for key in keys:
                if key not in self._kept and key not in self._coming:
                    self._coming[key] = self._thread.submit(self._fetch_ahead, key)

    def _stale(self, key: str, future: Future, near: Collection[int]) -> bool:
        """Whether a piece need not be waited for: it is there, or nobody will ask for it soon."""
        return future.done() or (self.pieces[key].turn not in near and future.cancel())

    def _fetch_ahead(self, key: str) -> None:
        held = None
        with self._state:
            self._n_reading += 1
        try:
            held = self._fetch(key, ahead=True)
        finally:
            with self._state:
                self._n_reading -= 1
                if held is not None:
                    self._kept[key] = held
                    self._wanted.add(key)
                self._state.notify_all()

    def _fetch(self, key: str, ahead: bool) -> Held | None:
        """A piece read now, its bytes counted; None where it would be read ahead and there is no room."""
        room = self._room(key, ahead)
        if room is None:
            return None
        held = self.read(key, room)
        with self._state:
            self.traffic.read += self.pieces[key].n_bytes
        return held

    def _room(self, key: str, ahead: bool) -> Tensor | None:
        """Memory for a piece, for which others go; None where none of them may go for one that is read ahead."""
        with self._state:
            while (room := self.rooms.take(self.pieces[key].room)) is None:
                victim = self._victim(key, ahead)
                if victim is not None:
                    del self._kept[victim]
                    self._wanted.discard(victim)
                elif ahead:
                    return None
                elif self._n_reading:
                    self._state.wait()  # then what was being read can go
                else:  # the caller holds on to a piece that has gone
                    return self.rooms.take(self.pieces[key].room, beyond=True)
            return room

    def _victim(self, key: str, ahead: bool) -> str | None:
        """What goes first: the expert that was not used for longest, else the dense piece that is needed latest."""
        free = [other for other in self._kept if other != self._in_use]
        unwanted = [other for other in free if other not in self._wanted]
        expert = next((other for other in unwanted if self.pieces[other].expert), None)
        latest = expert or max(unwanted, key=self._distance, default=None)
        if ahead:
            return latest if expert or (latest and self._distance(latest) > self._distance(key)) else None
        return latest or next(iter(free), None)

    def _distance(self, key: str) -> int:
        """How many turns from now a piece is needed, if turns follow each other in order."""
        return (self.pieces[key].turn - self.turn) % len(self._dense)
