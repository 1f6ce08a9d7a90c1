"""What names a stored prefix: hashes of its tokens, and of all else that decides what a model remembers of them.

T tokens.
"""

import hashlib
import json

import numpy as np
from torch import Tensor

from minidsv4 import checksums
from minidsv4.fast.released import is_exact
from minidsv4.model.layer import Layer
from minidsv4.model.model import Model
from minidsv4.serve.checks import shown
from minidsv4.serve.disk import ModelOnDisk
from minidsv4.serve.prefix_files import Block
from minidsv4.serve.prefix_state import block_tokens

FORMAT = 1  # of files; another one is never read


def blocks_of(ids_T: Tensor, block: int, root: str) -> list[Block]:
    """The whole blocks of a text, in order.

    The hash of each covers all tokens up to its end.

    block  tokens
    root   the hash that the first block follows
    """
    n_whole = len(ids_T) // block
    tokens = ids_T.numpy(force=True)[: n_whole * block].astype("<i8")
    blocks = []
    before = root
    # np.split makes one part at least, of a text without a whole block too
    for part in np.split(tokens, max(1, n_whole))[:n_whole]:
        own = hashlib.sha256(before.encode() + part.tobytes()).hexdigest()
        blocks.append(Block(own, before))
        before = own
    return blocks


def check_operations(model: Model, tag: str) -> None:
    """Refuse a model whose weights do not tell what it computes, unless it is named."""
    if not isinstance(tag, str):
        raise ValueError(f"PrefixStore: tag = {shown(tag)} is no text; give a name of what the model computes")
    if tag or isinstance(model, ModelOnDisk):
        return
    tables = {id(module.table): module.table for module in model.modules() if isinstance(module, Layer)}
    exact = all(map(is_exact, tables.values()))
    if not exact or any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        own = "PrefixStore: model runs operations or hooks of its own, which its weights do not tell"
        raise ValueError(f"{own}; give a tag that names what it computes")


def root(model: Model, precision: str, tag: str) -> str:
    """The hash that every chain of blocks of this model begins with."""
    facts = {
        "format": FORMAT,
        "config": model.config.to_dict(),
        "weights": weights_digest(model),
        "dtype": str(model.embed.weight.dtype),
        "precision": precision,
        "tag": tag,
        "block": block_tokens(model.config),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def weights_digest(model: Model) -> str:
    """The SHA-256 of all weights; of weights on disk, of the names, sizes and times of their files."""
    if isinstance(model, ModelOnDisk):
        files = sorted(model.source.folder.path.iterdir())
        facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    sums = [checksums.digest(name, tensor) for name, tensor in model.state_dict().items()]
    return hashlib.sha256("".join(sums).encode()).hexdigest()
