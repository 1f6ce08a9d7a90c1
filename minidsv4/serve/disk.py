"""A model whose weights stay in its folder: `load(folder, weights="disk", memory="8 GB")`.

What a step touches is read when its turn comes: the dense part of a layer, and the experts that
tokens visit. It is kept as it is stored, in FP4, FP8 or 16 bits, within a budget (`store.py`), and
one matrix at a time is written out in the model's type for its product. So the products are those
of a model that was loaded whole, and so is every bit of the logits. The model's own modules run:
of each, `module.weight` reads what it asks for. The vocabulary head is multiplied in tiles of rows.

B batch, T tokens, N streams, D width, F expert width.
"""

import math
import re
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from minidsv4 import checkpoint
from minidsv4.checkpoint import ReleasedFolder, StoredTensor, from_released, open_released
from minidsv4.checkpoint.checks import check_numbers
from minidsv4.checkpoint.loading import take_types
from minidsv4.checkpoint.names import elsewhere
from minidsv4.checkpoint.released import shape_of
from minidsv4.lowbit import widen
from minidsv4.model.autocast import autocasting, linear
from minidsv4.model.cache import Cache
from minidsv4.model.indexer import Hadamard
from minidsv4.model.losses import MTP_WEIGHT, Losses
from minidsv4.model.model import Model
from minidsv4.model.moe import Experts
from minidsv4.model.mtp import MTP
from minidsv4.options import check_memory, readable
from minidsv4.serve.store import Piece, Rooms, Store

TILE = 32 << 20  # bytes of the vocabulary head that are read as one piece
SMALL = 1 << 16  # bytes: matrices of products are larger, but in toys
ALIGNED = 64  # bytes: where products like their numbers to begin
_EXPERT = re.compile(r"(.*\bexperts\.\d+)\.w[123]\.weight")
_LOOKED_UP = ("embed.weight", "tid2eid")  # of these, single rows are read
_LEARNS_NOT = "model: its weights lie on disk, {}; load(folder) brings them all into memory"


def load(
    folder: str | Path,
    keep: Callable[[str], str | None] = str,
    adapt: Callable[[Model], object] = lambda model: model,
    *,
    weights: str | None = None,
    memory: float | str | None = None,
) -> Model:
    """Read a model from a folder, whole or as it runs.

    keep, adapt  as in `checkpoint.load`, for a model that is read whole
    weights      None reads all of it, as `checkpoint.load` does; "disk" leaves it in its folder,
                 which is to be in the released layout
    memory       budget of stored weights in memory at once: bytes, or "8 GB"; None sets no limit.
                 On top come two matrices in the model's type, the larger ones of attention, and
                 the cache and activations of a model that was loaded whole
    returns      with "disk" a model that computes what the other does, bit for bit; it takes no
                 gradient, no other type or device, and is not saved. Checksums are not compared
    raises       ValueError as `checkpoint.load` and `open_released`, for other `weights`, for a
                 `memory` that is no amount or smaller than the largest piece; while it runs, where
                 a file is gone or cut off
    """
    if weights is None:
        if memory is not None:
            raise ValueError(f"load: memory = {memory!r} limits weights on disk; give weights='disk' with it")
        return checkpoint.load(folder, keep, adapt)
    if weights != "disk":
        raise ValueError(f"load: weights = {weights!r} is not known; it is 'disk', or None for all of them in memory")
    return from_disk(open_released(folder), check_memory(memory))


def from_disk(folder: ReleasedFolder, budget: float) -> "ModelOnDisk":
    """A model of a folder's config whose tensors are read from there, within a budget in bytes."""
    narrow = folder.is_narrow
    with torch.device("meta"):
        model = Model(folder.config)
        types = {name: folder.dtype(name) for name in folder.names}
        wide = {
            name: torch.float32 if narrow and folder.kind(name) != "int" else dtype for name, dtype in types.items()
        }
        take_types(model, from_released({name: torch.empty(folder.shapes[name], dtype=wide[name]) for name in wide}))
    source = Source(folder, budget)
    for name, module in model.named_modules():
        if isinstance(module, Hadamard):
            module.to_empty(device="cpu").reset_constants()
        elif held := {**module._parameters, **module._buffers}:
            own = {own: tensor for own, tensor in held.items() if tensor is not None}
            leave_on_disk(module, {part: source.reader(name, part, tensor) for part, tensor in own.items()})
    model.__class__ = ModelOnDisk
    assert isinstance(model, ModelOnDisk)
    model.source = source
    turns = [*model.layers, *model.mtp]
    for block in turns:
        turn = source.turn_of("mtp.") if isinstance(block, MTP) else turns.index(block)
        block.register_forward_pre_hook(lambda *_, turn=turn: source.store.begin(turn))
    return model


# ---- what is read, and what it becomes ------------------------------------------------------------------------------


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
            needed = f"{readable(pieces[largest].room)} ({pieces[largest].room:,} bytes)"
            raise ValueError(f"load: memory = {readable(budget)} does not hold {largest}; give at least {needed}")
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
        if isinstance(stack := {"w13": ("w1", "w3"), "w2": ("w2",)}.get(own), tuple):
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


# ---- the model's modules, over it -----------------------------------------------------------------------------------


class OnDisk(nn.Module):
    """A module whose own tensors are read when they are asked for."""

    reads: dict[str, Callable[[], Any]]

    def __getattr__(self, name: str) -> Any:
        reads = self.__dict__.get("reads", {})
        return reads[name]() if name in reads else super().__getattr__(name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        raise ValueError(_LEARNS_NOT.format("and stay in their types on the CPU"))


class EmbeddingOnDisk(OnDisk, nn.Embedding):
    """The embedding of token ids, row by row."""

    def forward(self, ids_BT: Tensor) -> Tensor:
        return self.weight[ids_BT]


class ExpertsOnDisk(OnDisk, Experts):
    """The routed experts of a layer: those picked are read ahead, in the order in which they are used."""

    def forward(self, x: Tensor, picked: Tensor, weight: Tensor) -> Tensor:
        stack: Stack = self.reads["w13"]()
        stack.source.store.ahead([stack.key(e) for e in picked.unique().tolist()])
        return super().forward(x, picked, weight)


@cache
def on_disk(kind: Any) -> type[nn.Module]:
    """The class of such a module whose tensors are read."""
    special: dict[type, type[nn.Module]] = {nn.Embedding: EmbeddingOnDisk, Experts: ExpertsOnDisk}
    return special.get(kind) or type(f"{kind.__name__}OnDisk", (OnDisk, kind), {})


def leave_on_disk(module: nn.Module, reads: dict[str, Callable[[], Any]]) -> None:
    """Take a module's own tensors away: from now on they are what these functions give."""
    for name in reads:
        delattr(module, name)
    kind: Any = type(module)
    module.__class__ = on_disk(kind)
    assert isinstance(module, OnDisk)
    module.reads = reads


class ModelOnDisk(OnDisk, Model):
    """The model over weights on disk; it computes without gradients.

    source  where its weights come from; `source.store.traffic` counts bytes
    """

    source: Source

    def __init__(self, *_: object):
        raise ValueError(_LEARNS_NOT.format("and no other program takes it over"))

    @torch.no_grad()
    def streams(self, ids_BT: Tensor, cache: Cache, document_BT: Tensor | None = None) -> Tensor:
        if autocasting():
            raise ValueError(_LEARNS_NOT.format("which torch.autocast cannot round"))
        return super().streams(ids_BT, cache, document_BT)

    @torch.no_grad()
    def logits(self, streams_BTND: Tensor, of: MTP | None = None) -> Tensor:
        hidden_BTD = self.hidden(streams_BTND, of)
        self.source.store.begin(self.source.turn_of("head.weight"))
        return torch.cat([linear(hidden_BTD, tile) for tile in self.source.head(self.embed.weight.dtype)], dim=-1)

    @torch.no_grad()
    def draft(self, *arguments: Any, **named: Any) -> Tensor:
        return super().draft(*arguments, **named)

    def loss(self, ids_BT: Tensor, document_BT: Tensor | None = None, mtp_weight: float = MTP_WEIGHT) -> Losses:
        if torch.is_grad_enabled():
            raise ValueError(_LEARNS_NOT.format("so it has no gradient: torch.no_grad() measures the loss"))
        return super().loss(ids_BT, document_BT, mtp_weight)

    def named_parameters(self, *arguments: Any, **named: Any) -> Any:
        raise ValueError(_LEARNS_NOT.format("so nothing of it learns"))

    def state_dict(self, *arguments: Any, **named: Any) -> Any:
        raise ValueError(_LEARNS_NOT.format("and its folder is the checkpoint"))

    def __reduce_ex__(self, protocol: object) -> Any:
        raise ValueError(_LEARNS_NOT.format("of which there are no copies: load the folder again"))

    def load_state_dict(self, *arguments: Any, **named: Any) -> Any:
        raise ValueError(_LEARNS_NOT.format("and takes no others"))
