"""The safetensors files of a folder: where each tensor lies, and its bytes when they are asked for.

A folder holds `model.safetensors`, or several files and an index (`model.safetensors.index.json`)
that tells which tensor is in which. Only headers are read on opening.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minidsv4 import checksums

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
_LENGTH = 8  # bytes at the beginning, which tell the header's length


Room = Callable[[int], Tensor]


def fresh(n_bytes: int) -> Tensor:
    """Memory of its own for so many bytes."""
    return torch.empty(n_bytes, dtype=torch.uint8)


class Entry(NamedTuple):
    """One tensor in a file, by its header: type, shape, and where its bytes lie."""

    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int  # byte of the file
    n_bytes: int

    def part(self, rows: range) -> "Entry":
        """Rows of it that follow each other."""
        row_bytes = self.n_bytes // self.shape[0]
        begin = self.begin + rows.start * row_bytes
        return self._replace(shape=(len(rows), *self.shape[1:]), begin=begin, n_bytes=len(rows) * row_bytes)


class Shards:
    """The tensors of a folder, by the names that the files give them.

    entries  name: Entry

    raises   ValueError with the file's name: missing, cut off, damaged, or not what the index says;
             at a read, where the file is another one than at the opening
    """

    def __init__(self, folder: Path):
        self.folder = folder
        weight_map = index_of(folder)
        self.entries: dict[str, Entry] = {}
        self._files: dict[str, Any] = {}  # open ones, whose tensors are mapped into memory
        self._sums: dict[str, dict[str, str] | None] = {}
        self._identities: dict[str, tuple[int, ...]] = {}
        for file in sorted(set(weight_map.values()) or [FILE]):
            self._open(file)
        _compare_index(weight_map, self.entries)

    def _open(self, file: str) -> None:
        path = self.folder / file
        if not path.is_file():
            raise ValueError(
                f"checkpoint: {self.folder.name!r} has no {file}; give the folder that holds it and its config.json"
            )
        with readable(file):
            self._identities[file] = identity(path.stat())  # before its header: one that comes later differs
            opened = self._files[file] = safe_open(path, framework="pt")  # checks the header, and the file's length
            self._sums[file] = checksums.noted(file, opened.metadata())
            for name, entry in _entries(path, opened):
                if name in self.entries:
                    raise ValueError(f"checkpoint: {name} is in {self.entries[name].file} and in {file}; keep one")
                self.entries[name] = entry

    def mapped(self, name: str) -> Tensor:
        """The tensor, mapped into memory: the system reads a page of the file when it is touched,
        and may drop it.

        A file that shrinks afterwards ends the process when a page beyond its end is touched;
        `read` sees that.
        """
        file = self.entries[name].file
        with readable(file):
            self._check_unchanged(file, (self.folder / file).stat())
            return self._files[file].get_tensor(name)

    def read(self, name: str, rows: range | None = None, room: Room = fresh) -> Tensor:
        """The tensor in memory of its own, or rows of it that follow each other, read from the file now.

        room    gives memory for so many bytes
        raises  ValueError with the names of tensor and file where it cannot be read to its end
        """
        entry = self.entries[name] if rows is None else self.entries[name].part(rows)
        buffer = room(entry.n_bytes)
        with readable(entry.file):
            with open(self.folder / entry.file, "rb", buffering=0) as file:
                self._check_unchanged(entry.file, os.fstat(file.fileno()))
                file.seek(entry.begin)
                place = buffer.numpy().data
                while n_read := file.readinto(place):
                    place = place[n_read:]
            if len(place):
                raise OSError(f"{len(place):,} bytes of {name} are missing")
        return buffer.view(entry.dtype).view(entry.shape)

    def verify(self, name: str, tensor: Tensor) -> None:
        """Raise ValueError, with the tensor's name, unless its checksum is the one in its file, if there is any."""
        file = self.entries[name].file
        checksums.verify(file, self._sums[file], name, tensor)

    def with_checksums(self) -> set[str]:
        """The files that hold a checksum of each of their tensors."""
        return {file for file, sums in self._sums.items() if sums is not None}

    def _check_unchanged(self, file: str, status: os.stat_result) -> None:
        """Refuse a file that was written anew: its header no longer tells where tensors lie."""
        if identity(status) != self._identities[file]:
            raise ValueError(f"checkpoint: {file} has changed since it was opened; open the folder again")


def identity(status: os.stat_result) -> tuple[int, ...]:
    """Inode, bytes and time of the last change, in nanoseconds: a file written anew differs."""
    return status.st_ino, status.st_size, status.st_mtime_ns


@contextmanager
def readable(file: str) -> Iterator[None]:
    """Within, an error of reading is a ValueError that names the file and says what can be done."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise ValueError(f"checkpoint: {file} cannot be read ({error}); it may be cut off, copy it again") from error


def index_of(folder: Path) -> dict[str, str]:
    """The file of each tensor by an index; empty where the folder has none.

    raises  ValueError where it cannot be read, or names no files beside it
    """
    if not (folder / INDEX).is_file():
        return {}
    try:
        weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        files = set(weight_map.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise ValueError(f"checkpoint: {INDEX} cannot be read ({error}); it may be cut off, copy it again") from error
    for name in files:
        plain = isinstance(name, str) and len(name) < 256 and "\0" not in name
        beside = plain and name.endswith(".safetensors") and Path(name).name == name
        if not beside:
            raise ValueError(f"checkpoint: {INDEX} names {str(name)[:80]!r}; it names safetensors files beside it")
    return weight_map


def _entries(path: Path, opened: Any) -> Iterator[tuple[str, Entry]]:
    """Every tensor of a file whose header is sound."""
    with path.open("rb") as file:
        n_header = int.from_bytes(file.read(_LENGTH), "little")
        header = json.loads(file.read(n_header))
    for name in opened.keys():
        begin, end = header[name]["data_offsets"]
        dtype = torch_dtype(path.name, name, header[name]["dtype"])
        shape = tuple(header[name]["shape"])
        yield name, Entry(path.name, dtype, shape, _LENGTH + n_header + begin, end - begin)


_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
    **{"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "BOOL": torch.bool, "C64": torch.complex64},
}


def torch_dtype(file: str, name: str, letters: str) -> torch.dtype:
    """torch's type for one of safetensors.

    raises  ValueError, with the names of tensor and file, for a type that holds no weights of V4
    """
    if letters not in _DTYPES:
        raise ValueError(f"checkpoint: {name} in {file} is {letters}; V4's weights are in {', '.join(_DTYPES)}")
    return _DTYPES[letters]


def _compare_index(weight_map: dict[str, str], entries: dict[str, Entry]) -> None:
    """Refuse an index that names another file than the one that a tensor is in."""
    for name in sorted(set(weight_map) | set(entries) if weight_map else ()):
        told, held = weight_map.get(name), entries[name].file if name in entries else None
        if told != held:
            raise ValueError(
                f"checkpoint: {INDEX} says that {name[:200]} is in {told or 'no file'}, and it is in "
                f"{held or 'none of them'}; copy the folder again"
            )
