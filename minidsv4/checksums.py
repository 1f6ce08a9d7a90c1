"""Checksums: the SHA-256 of every tensor in a safetensors file, kept in the file's own header.

Each covers a tensor's name, type, shape and bytes. So a bit that changed on a disk or on the way is refused with the
name of its tensor, and a part of a file can be checked alone.
"""

import hashlib
import json
import logging
from pathlib import Path

import torch
from torch import Tensor

LOG = logging.getLogger(__name__)
KEY = "sha256"  # of the header's metadata
LENGTH_BYTES = 8  # a file begins with the length of its header


def digest(name: str, tensor: Tensor) -> str:
    """The SHA-256 of a tensor's name, type, shape and bytes, in hexadecimal."""
    hashed = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
    hashed.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def metadata(tensors: dict[str, Tensor]) -> dict[str, str]:
    """The metadata of a file of these tensors: what transformers asks for, and the checksums."""
    sums = {name: digest(name, tensor) for name, tensor in tensors.items()}
    return {"format": "pt", KEY: json.dumps(sums, sort_keys=True, separators=(",", ":"))}


def sort_metadata(path: Path) -> None:
    """Put the metadata of a written file in order; safetensors leaves it in another order in every process."""
    with path.open("r+b") as file:
        n_bytes = int.from_bytes(file.read(LENGTH_BYTES), "little")
        header = json.loads(file.read(n_bytes))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= n_bytes  # the same words, in another order
        file.seek(LENGTH_BYTES)
        file.write(text.ljust(n_bytes))


def noted(file: str, metadata: dict[str, str] | None) -> dict[str, str] | None:
    """The checksums in the metadata of a file, by tensor; None where it has none, which the log says.

    raises  ValueError where they cannot be read
    """
    if metadata is None or KEY not in metadata:
        LOG.info("checkpoint: %s holds no checksums; its bytes are taken as they are", file)
        return None
    try:
        sums = json.loads(metadata[KEY])
        if not isinstance(sums, dict):
            raise TypeError("no table of names")
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"checkpoint: the checksums of {file} cannot be read ({error}); copy it again") from error
    return sums


def verify(file: str, sums: dict[str, str] | None, name: str, tensor: Tensor) -> None:
    """Raise ValueError, with the tensor's name, unless it is the one whose checksum was noted, if any was."""
    if sums is not None and sums.get(name) != digest(name, tensor):
        raise ValueError(
            f"checkpoint: {name} in {file} is not what was saved, its SHA-256 differs; the file is damaged, "
            "copy it again"
        )
