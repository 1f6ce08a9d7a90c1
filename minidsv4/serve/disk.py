"""A model whose weights stay in its folder: `load(folder, weights="disk", memory="8 GB")`.

What a step touches is read when its turn comes: the dense part of a layer, and the experts that
tokens visit. It is kept as it is stored, in FP4, FP8 or 16 bits, within a budget (`store.py`), and
one matrix at a time is written out in the model's type for its product. So the products are those
of a model that was loaded whole, and so is every bit of the logits. The model's own modules run:
of each, `module.weight` reads what it asks for. The vocabulary head is multiplied in tiles of rows.

B batch, T tokens, N streams, D width, F expert width.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minidsv4 import checkpoint
from minidsv4.checkpoint import ReleasedFolder, from_released, open_released
from minidsv4.checkpoint.loading import take_types
from minidsv4.files import given_path
from minidsv4.model.autocast import autocasting, linear
from minidsv4.model.cache import Cache
from minidsv4.model.indexer import Hadamard
from minidsv4.model.losses import MTP_WEIGHT, Losses
from minidsv4.model.model import Model
from minidsv4.model.moe import Experts
from minidsv4.model.mtp import MTP
from minidsv4.options import check_memory
from minidsv4.serve.source import Source, Stack
from minidsv4.unfilled import unfilled

_LEARNS_NOT = "model: its weights lie on disk, {}; load(folder) brings them all into memory"


def unchanged(model: Model) -> Model:
    """The model as it is."""
    return model


def load(
    folder: str | Path,
    keep: Callable[[str], str | None] = str,
    adapt: Callable[[Model], object] = unchanged,
    *,
    weights: str | None = None,
    memory: float | str | None = None,
) -> Model:
    """Read a model from a folder, whole or as it runs.

    keep, adapt  as in `checkpoint.load`, only for a model that is read whole
    weights      None reads all of it, as `checkpoint.load` does; "disk" leaves it in its folder,
                 which is to be in the released layout
    memory       budget of stored weights in memory at once: bytes, or "8 GB"; None sets no limit.
                 On top come two matrices in the model's type, the larger ones of attention, and
                 the cache and activations of a model that was loaded whole
    returns      with "disk" a model that computes what the other does, bit for bit; it takes no
                 gradient, no other type or device, and is not saved. Checksums are not compared
    raises       ValueError as `checkpoint.load` and `open_released`, for other `weights`, for a
                 `memory` that is no amount or smaller than the largest piece; while it runs, where
                 a file is gone, or has changed since the folder was opened
    """
    if weights is None:
        if memory is not None:
            raise ValueError(f"load: memory = {memory!r} limits weights on disk; give weights='disk' with it")
        return checkpoint.load(folder, keep, adapt)
    if weights != "disk":
        raise ValueError(f"load: weights = {weights!r} is not known; it is 'disk', or None for all of them in memory")
    for name, given, default in (("keep", keep, str), ("adapt", adapt, unchanged)):
        if given is not default:
            raise ValueError(f"load: {name} = {given!r} is for a model read whole; leave it or weights='disk' out")
    return from_disk(open_released(given_path("load", folder)), check_memory(memory))


def from_disk(folder: ReleasedFolder, budget: float) -> "ModelOnDisk":
    """A model of a folder's config whose tensors are read from there, within a budget in bytes."""
    narrow = folder.is_narrow
    model = unfilled(Model, folder.config)
    types = {name: folder.dtype(name) for name in folder.names}
    wide = {name: torch.float32 if narrow and folder.kind(name) != "int" else dtype for name, dtype in types.items()}
    with torch.device("meta"):
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
    """Take a module's own tensors away: from now on they are what these functions give.

    Parameters stay on the meta device, without numbers: `parameters()` of a part says what the part has.
    """
    for name in set(reads) & set(module._buffers):
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
