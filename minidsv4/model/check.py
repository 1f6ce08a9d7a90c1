"""Input checks of a model: its config and operations, token ids, documents, caches of another
model.

B batch, T tokens.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minidsv4.config import Config, LayerKind
from minidsv4.model.cache import Cache
from minidsv4.ops import Ops

if TYPE_CHECKING:
    from minidsv4.model.model import Model


def check_config(config: Config) -> None:
    """Raise ValueError unless `config` is one."""
    if not isinstance(config, Config):
        raise ValueError(f"config: {config!r} is no Config; give one, such as Config.mini()")


def check_table(ops: Ops) -> None:
    """Raise ValueError unless `ops` is a table in which every operation is a function."""
    kind = type(ops).__name__
    for name in Ops._fields:
        if not (isinstance(ops, Ops) and callable(getattr(ops, name))):
            raise ValueError(f"ops: {kind} has no operation {name}; give PLAIN, FAST or a _replace of one")


def check_ids(model: "Model", ids_BT: Tensor) -> None:
    """Raise ValueError unless `ids_BT` is a batch of token ids of this model's vocabulary, on its
    device.
    """
    check_integers("ids", ids_BT, "cannot name tokens")
    shape = tuple(ids_BT.shape)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"ids: shape {shape} is no batch of prompts; give [batch, tokens], at least one token")
    check_device("ids", ids_BT, model.embed.weight.device)
    if has_numbers(ids_BT):
        last = model.config.vocab_size - 1
        for extreme in map(int, ids_BT.aminmax()):
            if not 0 <= extreme <= last:
                raise ValueError(f"ids: {extreme} is no token id; vocab_size allows 0 .. {last}")


def check_documents(config: Config, ids_BT: Tensor, document_BT: Tensor | None, start: int) -> None:
    """Raise ValueError unless `document_BT` says where the document of each token begins.

    start  position of the first of these tokens in its row
    """
    if document_BT is None:
        return
    check_integers("document_BT", document_BT, "holds no positions")
    if document_BT.shape != ids_BT.shape:
        raise ValueError(
            f"document_BT: shape {tuple(document_BT.shape)}; it goes with ids_BT, whose shape is {tuple(ids_BT.shape)}"
        )
    check_device("document_BT", document_BT, ids_BT.device)
    if has_numbers(document_BT):
        check_places(config.document_grid, document_BT, start)


def check_places(grid: int, document_BT: Tensor, start: int) -> None:
    """Raise ValueError for a document that begins elsewhere than its tokens say, or off the grid.

    A document of one token, as padding is, may begin anywhere.
    """
    position_T = torch.arange(start, start + document_BT.shape[1], device=document_BT.device)
    before_BT = torch.cat([document_BT[:, :1], document_BT[:, :-1]], dim=1)
    begins_here = document_BT == position_T
    rules = {
        "from 0 to its position": (document_BT >= 0) & (document_BT <= position_T),
        "that of the token before, or its own position": begins_here | (document_BT == before_BT),
        f"a multiple of {grid}, unless its document is one token": begins_here | (document_BT % grid == 0),
    }
    for right, holds_BT in rules.items():
        if not holds_BT.all():
            b, t = (~holds_BT).nonzero()[0].tolist()
            found = f"document_BT = {int(document_BT[b, t])} for position {start + t} of row {b}"
            raise ValueError(f"{found}; it is {right}")


def check_integers(name: str, x: Tensor, otherwise: str) -> None:
    """Raise ValueError, with what is wrong `otherwise`, unless `x` is a dense tensor of integers."""
    found = x.dtype if isinstance(x, Tensor) else type(x).__name__
    if found not in (torch.int64, torch.int32):
        raise ValueError(f"{name}: {found} {otherwise}; give a tensor of int64 or int32 integers")
    if x.layout != torch.strided:
        raise ValueError(f"{name}: a tensor of layout {x.layout} {otherwise}; x.to_dense() is one that does")


def check_device(name: str, x: Tensor, device: torch.device) -> None:
    """Raise ValueError unless `x` is on the device of what it goes with."""
    if x.device != device:
        raise ValueError(f"{name}: on {x.device}, which is not where it is needed; move it with .to('{device}')")


def has_numbers(x_BT: Tensor) -> bool:
    """Whether values can be looked at: not on the meta device, under `torch.func.vmap` or
    `torch.compile`.
    """
    if torch.compiler.is_compiling():
        return False
    try:
        x_BT[0, 0].item()
    except RuntimeError:
        return False
    return True


def check_cache(model: "Model", ids_BT: Tensor, cache: Cache, drafts: bool = False) -> None:
    """Raise ValueError unless `ids_BT` are token ids and `cache` is one that this model made for as
    many sequences.

    drafts  whether the cache is to be one of the MTP block
    """
    check_ids(model, ids_BT)
    maker = "new_draft_cache()" if drafts else "new_cache()"
    if not isinstance(cache, Cache):
        raise ValueError(f"cache: {type(cache).__name__} is no cache; give what this model's {maker} makes")
    if cache.batch_size != len(ids_BT):
        raise ValueError(
            f"cache: made for batch_size = {cache.batch_size}, not {len(ids_BT)}; make one for these sequences"
        )
    weight = model.embed.weight
    if (cache.config, cache.dtype, cache.device) != (model.config, weight.dtype, weight.device):
        raise ValueError(f"cache: made for a model of another config, dtype or device; use this model's {maker}")
    if cache.kinds != ((LayerKind.WINDOW,) if drafts else model.config.layer_types[: len(model.layers)]):
        raise ValueError(f"cache: its layers are of other kinds; use this model's {maker}")


def check_count(name: str, n: int, otherwise: str) -> int:
    """`n`, or ValueError, with what `otherwise` would happen, unless it is an integer from 1."""
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError(f"{name} = {n!r} {otherwise}; it counts tokens, an integer from 1")
    return n
