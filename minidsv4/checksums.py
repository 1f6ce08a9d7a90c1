"""Checksums of a folder: the SHA-256 of every tensor, in its own file, and of every file, in
`SHA256SUMS`.

A tensor's covers its name, type, shape and bytes. So a bit that changed on a disk or on the way is
refused with the name of its tensor, and a part of a file can be checked alone. `SHA256SUMS` covers
what holds no tensors: `config.json`, the index, the tokenizer. It lists the weight files too, for
`sha256sum -c SHA256SUMS` and for files without the others.
"""

import hashlib
import json
import logging
import re
from collections.abc import Collection, Iterable
from pathlib import Path

import torch
from torch import Tensor

LOG = logging.getLogger(__name__)
KEY = "sha256"  # of the header's metadata
FILE = "SHA256SUMS"  # a line a file: its SHA-256, two spaces, its name
SEAL_BYTES = 32  # of a SHA-256
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
    """The checksums in the metadata of a file, by tensor; None where it has none, which the log
    says.

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


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(name: str, content: bytes | memoryview) -> bytes:
    """The SHA-256 of a name and a content together, 32 bytes."""
    hashed = hashlib.sha256(f"{name}\0".encode())
    hashed.update(content)
    return hashed.digest()


def unsealed(name: str, data: bytes) -> memoryview:
    """The content of a file that holds `seal(name, content) + content`.

    raises  ValueError where any bit of it has changed, and for what was sealed under another name
    """
    content = memoryview(data)[SEAL_BYTES:]
    if seal(name, content) != data[:SEAL_BYTES]:
        raise ValueError(f"{name} is not what was written, its SHA-256 differs; it is damaged, remove it")
    return content


def write_files(folder: Path, paths: Iterable[Path]) -> None:
    """Write `SHA256SUMS` into the folder: the checksums of these files, by their names."""
    lines = {path.name: file_digest(path) for path in paths}
    text = "".join(f"{lines[name]}  {name}\n" for name in sorted(lines))
    (folder / FILE).write_text(text, encoding="utf-8")


def noted_files(folder: Path) -> dict[str, str]:
    """The checksums of a folder's `SHA256SUMS`, by file; none where it has no such file.

    raises  ValueError where it cannot be read
    """
    if not (folder / FILE).is_file():
        return {}
    try:
        lines = (folder / FILE).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"checkpoint: {FILE} cannot be read ({error}); copy it again, or remove it") from error
    sums = {}
    for number, line in enumerate(filter(str.strip, lines), 1):
        found = re.fullmatch(r"([0-9a-fA-F]{64}) [ *]([^/\\\0]+)", line)
        if found is None or found[2] in sums:
            raise ValueError(
                f"checkpoint: {FILE} has {line[:80]!r} as line {number}; each line is 64 hexadecimal digits, two "
                "spaces and the name of another file; copy it again, or remove it"
            )
        sums[found[2]] = found[1].lower()
    return sums


def verify_files(folder: Path, but: Collection[str] = ()) -> None:
    """Compare a folder's files with its `SHA256SUMS`, if it has one.

    but     files that are compared otherwise: those whose tensors have checksums
    raises  ValueError with the name of the file that is missing or differs
    """
    for name, right in noted_files(folder).items():
        if not (folder / name).is_file():
            raise ValueError(f"checkpoint: {name} is missing, {FILE} lists it; copy it again")
        if name not in but and file_digest(folder / name) != right:
            raise ValueError(
                f"checkpoint: {name} is not what {FILE} says; it is damaged, copy it again. If you changed it "
                f"yourself, remove {FILE}"
            )
