"""The released layout: which tensors a model has in its files, in which shape and format, and a
reader of them.

`open_released` reads the headers of a folder, compares them with `config.json`, and gives each
tensor when it is asked for, as it is stored. Formats: routed experts FP4 (base models FP8), dense
matrices FP8, the rest BF16, FP32 and int64.
"""

import math
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from minidsv4 import checksums, config_json
from minidsv4.checkpoint.checks import check_formats, check_names, check_numbers, check_shape, check_type
from minidsv4.checkpoint.names import is_copy, released_name, to_released
from minidsv4.checkpoint.shards import Entry, Room, Shards, fresh
from minidsv4.config import Config
from minidsv4.config_check import nearest
from minidsv4.files import given_path
from minidsv4.lowbit import fp8, mxfp4
from minidsv4.lowbit.formats import scale_of, stored_as
from minidsv4.model.model import Model
from minidsv4.unfilled import unfilled

_WIDE = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64"}
_PACKED = (torch.int8, torch.uint8)  # two numbers of FP4 a byte


class Held(Protocol):
    """What a header tells of a tensor, and a tensor of itself."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


class StoredTensor(NamedTuple):
    """A tensor as a file holds it.

    name   released name
    kind   "fp4", "fp8", "bf16", "fp16", "fp32", "fp64" or "int"
    data   its numbers: int8 [rows, columns / 2] in FP4, float8_e4m3fn [rows, columns] in FP8, else
           of their own type
    scale  float8_e8m0fnu: [rows, columns / 32] in FP4, a number for each block of 128 x 128 in FP8,
           else None
    """

    name: str
    kind: str
    data: Tensor
    scale: Tensor | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes in the file, the scale's included."""
        return self.data.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def wide(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Its numbers times their scales: exact in float32, and FP4 and FP8 in bfloat16 too.

        Tables are given as they are.
        """
        if self.scale is None:
            return self.data.to(dtype) if self.data.is_floating_point() else self.data
        dequantise = mxfp4.dequantise if self.kind == "fp4" else fp8.dequantise
        return dequantise(self.data, self.scale, dtype)

    def check(self, n_experts: int) -> None:
        """Raise ValueError, with the name, for NaN, infinities, and a table that names no experts."""
        if self.scale is not None:  # a number is finite where both of its factors are, and their product
            check_numbers(scale_of(self.name), self.scale.float() * fp8.LARGEST, n_experts)
        if self.kind != "fp4":  # all 16 codes are numbers
            numbers = self.data.to(torch.bfloat16) if self.kind == "fp8" else self.data
            check_numbers(self.name, numbers, n_experts)


def paired(found: Mapping[str, Held]) -> dict[str, str | None]:
    """Every tensor that is no scale, with the name of its scale where it has one.

    raises  ValueError, with the name, for a scale that is missing, of another type or shape, or
            beside a wide weight
    """
    narrow = {name: kind for name, held in found.items() if (kind := narrow_kind(name, held.dtype))}
    scales = {scale_of(name) for name in found if name.endswith(".weight")} & set(found)
    if strange := sorted(scales - {scale_of(name) for name in narrow}):
        raise ValueError(
            f"checkpoint: {strange[0]} stands beside a weight that is not in FP8 or FP4; only those have a scale"
        )
    for name, kind in narrow.items():
        _check_scale(name, kind, found)
    return {name: scale_of(name) if name in narrow else None for name in found if name not in scales}


def narrow_kind(name: str, dtype: torch.dtype) -> str | None:
    """ "fp4" or "fp8" for a matrix that has a scale; None for all else."""
    if dtype == torch.float8_e4m3fn:
        return "fp8"
    return "fp4" if dtype in _PACKED and stored_as(name, "fp4") == "fp4" else None


def kind_of(name: str, dtype: torch.dtype) -> str:
    """How a tensor of this name is stored, as `StoredTensor.kind` says it."""
    return narrow_kind(name, dtype) or _WIDE.get(dtype, "int")


def stored_tensor(name: str, scale: str | None, take: Callable[[str], Tensor]) -> StoredTensor:
    """A tensor with its scale, put together from the two that `take` gives by their names."""
    data = take(name)
    return StoredTensor(name, kind_of(name, data.dtype), data, None if scale is None else take(scale))


def shape_of(name: str, held: Held) -> tuple[int, ...]:
    """The shape of the numbers: FP4 has two in a byte."""
    shape = tuple(held.shape)
    packed = narrow_kind(name, held.dtype) == "fp4" and shape
    return (*shape[:-1], 2 * shape[-1]) if packed else shape


def _check_scale(name: str, kind: str, found: Mapping[str, Held]) -> None:
    scale, held = found.get(scale_of(name)), found[name]
    if scale is None:
        raise ValueError(f"checkpoint: {name} is {held.dtype}; dequantise needs {scale_of(name)}: missing")
    shape = shape_of(name, held)
    if len(shape) != 2 or stored_as(name) != "fp8":
        raise ValueError(f"checkpoint: {name} is {held.dtype} of shape {shape}; only V4's large matrices are")
    if not scale.dtype.is_floating_point:
        raise ValueError(f"checkpoint: {scale_of(name)} is {scale.dtype}; scales are float8_e8m0fnu or wider floats")
    right = scale_shape(kind, shape)
    if tuple(scale.shape) != right:
        given = tuple(scale.shape)
        raise ValueError(f"checkpoint: {scale_of(name)}: scale has shape {given}; {name} {shape} needs {right}")


def scale_shape(kind: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the scale of a matrix in FP4 or FP8: a number a block, of which the last may be smaller."""
    block = (1, mxfp4.GROUP) if kind == "fp4" else fp8.BLOCK
    return tuple(math.ceil(size / of) for size, of in zip(shape, block))


def layout(config: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that the files of such a model hold, by its released name; scales come on top."""
    state = unfilled(Model, config).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in to_released(state).items()}


def spelled_names(shards: Shards, keep: Callable[[str], str | None]) -> dict[str, str]:
    """The name in the files of every tensor that is kept, by the name to keep it under.

    keep    the name to keep a tensor under, from its released one; None leaves it in the file
    raises  ValueError for a tensor that is there in two spellings
    """
    spelled: dict[str, str] = {}
    for name in shards.entries:
        released = released_name(name)
        wanted = None if is_copy(released) else keep(released)
        if wanted in spelled:
            raise ValueError(f"checkpoint: {name} is another spelling of {wanted}, which is there as well")
        if wanted is not None:
            spelled[wanted] = name
    return spelled


def kept_of_main(keep: Callable[[str], str | None] = str) -> Callable[[str], str | None]:
    """`keep` that leaves in the file what drafts tokens."""
    return lambda name: None if name.startswith("mtp.") else keep(name)


class ReleasedFolder:
    """The tensors of a folder in the released layout, each read when it is asked for;
    `open_released` makes one.

    path    the folder
    config  of the model, without an MTP block where the files have none
    fields  all of `config.json`, in the released spelling
    shapes  released name: shape of the numbers; in the order of the model's parts
    """

    def __init__(self, path: Path):
        self.path = path
        self.fields = config_json.read(path)
        with config_json.naming(path / "config.json"):
            check_formats(self.fields)
            self.config = Config.from_dict(self.fields)
        self._shards = Shards(path)
        keep = kept_of_main() if config_json.DRAFTS_LEFT_OUT in self.fields else str
        self._spelled = spelled_names(self._shards, keep)
        entries = {name: self._shards.entries[spelled] for name, spelled in self._spelled.items()}
        self._scales = paired(entries)
        if not any(name.startswith("mtp.") for name in entries):
            self.config = self.config.replace(num_nextn_predict_layers=0)
        self.shapes = layout(self.config)
        check_names(set(self.shapes), set(self._scales))
        for name, right in self.shapes.items():
            if self._scales[name] is None:
                check_type(name, entries[name].dtype)
            check_shape(name, shape_of(name, entries[name]), right)

    @property
    def names(self) -> list[str]:
        """The released names of all tensors; scales are no tensors of their own."""
        return list(self.shapes)

    def kind(self, name: str) -> str:
        """How a tensor is stored: "fp4", "fp8", "bf16", "fp16", "fp32", "fp64" or "int"."""
        return kind_of(name, self.dtype(name))

    def dtype(self, name: str) -> torch.dtype:
        """The type in the file; of FP4 int8, which holds two numbers."""
        self._check_known(name)
        return self._entry(name).dtype

    @property
    def is_narrow(self) -> bool:
        """Whether anything is in FP4 or FP8."""
        return any(scale is not None for scale in self._scales.values())

    def n_bytes(self, name: str) -> int:
        """Bytes of a tensor in the file, its scale's included."""
        self._check_known(name)
        scale = self._scales[name]
        return self._entry(name).n_bytes + (0 if scale is None else self._entry(scale).n_bytes)

    def stored(self, name: str) -> StoredTensor:
        """A tensor mapped into memory: nothing of it is read or checked before it is used; see `Shards.mapped`."""
        return self._take(name, self._shards.mapped)

    def read(self, name: str, rows: range | None = None, room: Room = fresh, check: bool = True) -> StoredTensor:
        """A tensor in memory of its own, read now and checked: numbers are finite, tables name
        experts.

        rows    only these rows, of a tensor without a scale; None is all of them
        room    gives memory for so many bytes, of the numbers and of the scale
        check   False takes the numbers as they are: looking at each takes longer than reading it
        raises  ValueError with the name of the tensor or file
        """
        self._check_known(name)
        if rows is not None:
            self._check_rows(name, rows)
        stored = self._take(name, lambda spelled: self._shards.read(spelled, rows, room))
        if check:
            stored.check(self.config.n_routed_experts)
        return stored

    def verify(self) -> None:
        """Read everything once and compare it with the checksums in the files and in `SHA256SUMS`,
        if there are any.

        raises  ValueError with the name of the tensor or file that differs
        """
        checksums.verify_files(self.path, self._shards.with_checksums())
        for spelled in self._shards.entries:
            self._shards.verify(spelled, self._shards.mapped(spelled))

    def _check_known(self, name: str) -> None:
        if not isinstance(name, str) or name not in self._scales:
            near = nearest(name, self.names) if isinstance(name, str) else None
            right = "names has them all" if near is None else f"did you mean {near}?"
            raise ValueError(f"open_released: {reprlib.repr(name)} is no tensor of this folder; {right}")

    def _check_rows(self, name: str, rows: range) -> None:
        if self._scales[name] is not None:
            raise ValueError(
                f"open_released: rows = {rows!r} of {name}, which has a scale; give None and read it whole"
            )
        n_rows = [*self.shapes[name], 0][0]
        fits = isinstance(rows, range) and rows.step == 1 and 0 <= rows.start < rows.stop <= n_rows
        if not fits:
            right = f"give a range of step 1 within range(0, {n_rows})" if n_rows else "it has none; give None"
            raise ValueError(f"open_released: rows = {reprlib.repr(rows)} of {name} cannot be read; {right}")

    def _take(self, name: str, take: Callable[[str], Tensor]) -> StoredTensor:
        self._check_known(name)
        return stored_tensor(name, self._scales[name], lambda part: take(self._spelled[part]))

    def _entry(self, name: str) -> Entry:
        return self._shards.entries[self._spelled[name]]


def open_released(folder: str | Path) -> ReleasedFolder:
    """Open a folder in the released layout: config, headers and index are read and compared, no
    numbers are.

    raises  ValueError, with the name of the tensor or file: no folder of V4's, files missing, cut
            off or not what the index says; tensors missing, not known, of another type or shape;
            scales missing or of another shape; a config that tells other formats; at a read, a
            tensor that is not there and a file that has changed since
    """
    return ReleasedFolder(given_path("open_released", folder))
