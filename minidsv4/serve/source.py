"""A folder's tensors as the modules of a model ask for them: read through a store, written out for one product.

B batch, T tokens, D width, F expert width.
"""

import math
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minidsv4.checkpoint import ReleasedFolder, StoredTensor
from minidsv4.checkpoint.checks import check_numbers
from minidsv4.checkpoint.names import elsewhere
from minidsv4.checkpoint.released import shape_of
from minidsv4.lowbit import widen
from minidsv4.serve.store import Piece, Rooms, Store

TILE = 32 << 20  # bytes of the vocabulary head that are read as one piece
SMALL = 1 << 16  # bytes: matrices of products are larger, but in toys
ALIGNED = 64  # bytes: where products like their numbers to begin
_EXPERT = re.compile(r"(.*\bexperts\.\d+)\.w[123]\.weight")
_LOOKED_UP = ("embed.weight", "tid2eid")  # of these, single rows are read


class Part(NamedTuple):
    """The tensors, or rows of one, that are read as one piece."""

    names: list[str]
    rows: range | None = None


class Source:
    """A folder's tensors as the modules of a model ask for them.

    store  keeps what was read, within the budget
    """

    def __init__(self, folder: ReleasedFolder, budget: float):
        self.folder = folder
        self.parts = dict(self._parts())
        pieces = {key: self._piece(part) for key, part in self.parts.items()}
        largest = max(pieces, key=lambda key: pieces[key].room)
        if budget < pieces[largest].room:
            given, needed = math.floor(budget), pieces[largest].room
            raise ValueError(f"load: memory = {given:,} bytes does not hold {largest}; give at least {needed:,} bytes")
        self.store: Store[dict[str, StoredTensor]] = Store(
            self._read, pieces, budget, after={self.turn_of("head.weight"): 0}
        )
        self.scratch = Rooms(loose=True)

    def _parts(self) -> Iterable[tuple[str, Part]]:
        """Every piece by its key: an expert, a tile of the head, or one tensor."""
        experts: dict[str, Part] = {}
        for name in self.folder.names:
            expert = _EXPERT.fullmatch(name)
            if expert:
                experts.setdefault(expert[1], Part([])).names.append(name)
            elif name == "head.weight":
                yield from ((f"{name}[{rows.start}]", Part([name], rows)) for rows in self.head_tiles())
            elif not name.endswith(_LOOKED_UP):
                yield name, Part([name])
        yield from experts.items()

    def head_tiles(self) -> list[range]:
        """The rows of each tile of the vocabulary head."""
        n_rows = self.folder.shapes["head.weight"][0]
        n_tiles = math.ceil(self.folder.n_bytes("head.weight") / TILE)
        ends = [n_rows * tile // n_tiles for tile in range(n_tiles + 1)]
        return [range(first, last) for first, last in zip(ends, ends[1:])]

    def _piece(self, part: Part) -> Piece:
        n_bytes = sum(self.folder.n_bytes(name) for name in part.names)
        if part.rows is not None:
            n_bytes = n_bytes // self.folder.shapes[part.names[0]][0] * len(part.rows)
        room = n_bytes + 2 * ALIGNED * len(part.names)  # numbers and scale of each begin at a multiple
        return Piece(self.turn_of(part.names[0]), n_bytes, room, expert=bool(_EXPERT.fullmatch(part.names[0])))

    def turn_of(self, name: str) -> int:
        """When a step needs a tensor: layers by their number, then the head, then the MTP block."""
        layer = re.match(r"layers\.(\d+)\.", name)
        n_layers = self.folder.config.num_hidden_layers
        return int(layer[1]) if layer else n_layers + name.startswith("mtp.")

    def _read(self, key: str, room: Tensor) -> dict[str, StoredTensor]:
        left = [room]

        def cut(n_bytes: int) -> Tensor:
            part, left[0] = left[0][:n_bytes], left[0][math.ceil(n_bytes / ALIGNED) * ALIGNED :]
            return part

        names, rows = self.parts[key]
        return {name: self.folder.read(name, rows, cut, check=False) for name in names}

    def reader(self, module: str, own: str, like: Tensor) -> Callable[[], Any]:
        """A function that gives a module's tensor of that name, in the type of `like`."""
        name = elsewhere(f"{module}.{own}")
        stack = {"w13": ("w1", "w3"), "w2": ("w2",)}.get(own)
        if stack is not None:
            value = Stack(self, f"{module}.", stack, len(like), like.dtype)
            return lambda: value
        if name.endswith(_LOOKED_UP):
            rows = Rows(self, name, like.dtype)
            return lambda: rows
        if name == "head.weight":
            return lambda: torch.cat(list(self.head(like.dtype)))
        return partial(self.tensor, name, like.dtype)

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        """A tensor of the dense part."""
        return self.wide([self.store.get(name)[name]], dtype)

    def head(self, dtype: torch.dtype) -> Iterable[Tensor]:
        """The vocabulary head, a tile of rows at a time."""
        for rows in self.head_tiles():
            yield self.wide([self.store.get(f"head.weight[{rows.start}]")["head.weight"]], dtype)

    def wide(self, stored: list[StoredTensor], dtype: torch.dtype) -> Tensor:
        """Tensors on top of each other in one type.

        A single one that has it already is no copy, unless it is so small that a module may hold on to it.
        """
        if len(stored) == 1 and stored[0].data.dtype == dtype:
            data = stored[0].data
            return data if data.nbytes > SMALL else data.clone()
        shape = (sum(len(one.data) for one in stored), *shape_of(stored[0].name, stored[0].data)[1:])
        room = self.scratch.take(math.prod(shape) * dtype.itemsize)
        assert room is not None  # it has no limit
        out = room.view(dtype).view(shape)
        for part, one in zip(out.split([len(one.data) for one in stored]), stored):
            if one.scale is None:
                part.copy_(one.data)
            else:
                widen.fill(part, one.kind, one.data, one.scale)
        return out


class NotWhole(ValueError, AttributeError):
    """Something asks for all of a layer's matrices at once."""


class Stack:
    """The matrices of a layer's experts, each read when it is asked for, as `w13` or `w2` holds it."""

    def __init__(self, source: Source, prefix: str, parts: tuple[str, ...], n_experts: int, dtype: torch.dtype):
        self.source, self.prefix, self.parts, self.n_experts, self.dtype = source, prefix, parts, n_experts, dtype

    def __len__(self) -> int:
        return self.n_experts

    def key(self, e: int) -> str:
        """The key of an expert's piece, which is also the beginning of its names."""
        return f"{self.prefix}{e}"

    def __getitem__(self, e: int) -> Tensor:
        stored = self.source.store.get(self.key(e))
        return self.source.wide([stored[f"{self.key(e)}.{part}.weight"] for part in self.parts], self.dtype)

    def __getattr__(self, name: str) -> Any:
        raise NotWhole(
            f"experts: {name!r} is asked of all matrices of a layer, which lie on disk and are read one by one; "
            "load(folder) brings them all into memory"
        )


class Rows:
    """A table of which single rows are read: the embedding, and the experts of token ids in a hash layer."""

    device = torch.device("cpu")

    def __init__(self, source: Source, name: str, dtype: torch.dtype):
        self.source, self.name, self.dtype = source, name, dtype
        self.shape = torch.Size(source.folder.shapes[name])

    def __getitem__(self, ids: Tensor) -> Tensor:
        """The rows of these token ids [..., width]."""
        folder = self.source.folder
        wanted, place = ids.unique(return_inverse=True)
        rows = torch.cat([folder.read(self.name, range(i, i + 1), check=False).data for i in wanted.tolist()])
        check_numbers(self.name, rows, folder.config.n_routed_experts)
        self.source.store.past(rows.nbytes)
        return rows.to(self.dtype)[place]
