"""Random weights in the exact layout of the released files, to try a reader on without a download.

`python -m minidsv4 mint --like flash --layers 3 FOLDER`. Names, types, scales, index, config and tokenizer files are
those of a release; real widths are included, where one layer of Flash takes 3.4 GB. Such a model writes nonsense.
"""

import argparse
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from minidsv4 import checksums, options
from minidsv4.checkpoint.released import layout, scale_shape
from minidsv4.checkpoint.saving import shard_name, stored_fields, write_index, write_json, write_shard
from minidsv4.config import Config
from minidsv4.files import given_path, new_folder
from minidsv4.lowbit import fp8
from minidsv4.lowbit.formats import scale_of, stored_as
from minidsv4.model.hyper_connection import HeadCollapse, HyperConnection
from minidsv4.model.moe import hash_table
from minidsv4.train.ship import SHIPPED, TOKENIZER

LIKE = {"flash": Config.flash, "pro": Config.pro}
WIDTHS = ("small", "real")
ITEM = {"fp4": 0.5, "fp8": 1, "bf16": 2, "fp32": 4, "int64": 8}  # bytes a number, scales apart
HEADER_BYTES = 400  # of a tensor in the header of its file and in the index, about
FP4_RMS = 2.93  # root mean square of the 16 numbers, each as often as the others


@dataclass(frozen=True)
class Plan:
    """What is written: a config, and the tensors of each file as released name: (format, shape of the numbers)."""

    config: Config
    shards: list[dict[str, tuple[str, tuple[int, ...]]]]

    def n_bytes(self) -> dict[str, int]:
        """Bytes of all tensors by format, their scales included."""
        sums = dict.fromkeys(ITEM, 0)
        for shard in self.shards:
            for kind, shape in shard.values():
                sums[kind] += stored_bytes(kind, shape)
        return sums

    def total(self) -> int:
        """Bytes of all tensors."""
        return sum(self.n_bytes().values())

    def on_disk(self) -> int:
        """Bytes that the folder takes, about: headers, index and tokenizer included."""
        n_tensors = sum(map(len, self.shards))
        return self.total() + 2 * HEADER_BYTES * n_tensors + 40 * self.config.vocab_size + 10**6


def stored_bytes(kind: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor in a format, its scale included."""
    scales = math.prod(scale_shape(kind, shape)) if kind in ("fp4", "fp8") else 0
    return int(math.prod(shape) * ITEM[kind]) + scales


def config_like(like: str, n_layers: int, width: str, mtp: bool) -> Config:
    """The config of the first layers of Flash or Pro, of real width or as narrow as `Config.mini`.

    raises  ValueError for other words, and for more layers than there are
    """
    if like not in [*LIKE] or width not in WIDTHS:
        raise ValueError(f"mint: like = {like!r}, width = {width!r}; give 'flash' or 'pro', and 'small' or 'real'")
    released = LIKE[like]()
    most = released.num_hidden_layers
    if not is_integer(n_layers) or not 1 <= n_layers <= most:
        raise ValueError(f"mint: layers = {n_layers!r} cannot be; V4-{like.title()} has {most}, give 1 to {most}")
    if not isinstance(mtp, bool):
        raise ValueError(f"mint: mtp = {mtp!r} cannot be; give True or False")
    base = released if width == "real" else Config.mini().replace(routed_scaling_factor=released.routed_scaling_factor)
    return base.replace(
        num_hidden_layers=n_layers,
        compress_ratios=[*released.compress_ratios[:n_layers], 0],
        num_hash_layers=min(n_layers, released.num_hash_layers),
        num_nextn_predict_layers=int(mtp),
    )


def is_integer(value: object) -> bool:
    """Whether a value counts something; True and False do not."""
    return isinstance(value, int) and not isinstance(value, bool)


def plan(config: Config) -> Plan:
    """A file for each layer, one for the embedding, and one for what comes after the last layer."""
    shards: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}
    for name, shape in layout(config).items():
        kind = "int64" if name.endswith("tid2eid") else stored_as(name, "fp4")
        place = ".".join(name.split(".")[:2]) if name.startswith("layers.") else name.startswith("embed") and "embed"
        shards.setdefault(place or "last", {})[name] = (kind, shape)
    return Plan(config, list(shards.values()))


def mint(
    folder: str | Path, like: str = "flash", layers: int = 3, width: str = "small", mtp: bool = True, seed: int = 0
) -> Path:
    """Write random weights in the layout of a release into a new folder, which is there once all of it is whole.

    like     "flash" or "pro"
    layers   the first so many of its layers
    width    "real", or "small": that of `Config.mini`
    mtp      with the MTP block or without
    seed     an integer
    returns  the folder
    raises   ValueError for other values, and for a folder that exists; OSError with a sentence where there is too
             little space or nothing can be written
    """
    if not is_integer(seed):
        raise ValueError(f"mint: seed = {seed!r} cannot be; give an integer")
    return write(new_place(folder), plan(config_like(like, layers, width, mtp)), seed)


def new_place(folder: str | Path) -> Path:
    """The path of a folder that does not exist.

    raises  ValueError where there is one, or something else
    """
    folder = given_path("mint", folder)
    if folder.exists() or folder.is_symlink():
        raise ValueError(f"mint: {folder.name!r} exists, and is left as it is; give a new folder")
    return folder


def write(folder: Path, planned: Plan, seed: int, show: bool = False) -> Path:
    """Draw and write what is planned, a file at a time; `show` tells how far it is on stderr."""
    check_space(folder, planned.on_disk())
    names = [shard_name(n, len(planned.shards)) for n in range(len(planned.shards))]
    try:
        with new_folder(folder) as scratch:
            held = {}
            for name, shard in zip(names, tqdm(planned.shards, unit=" files", disable=not show)):
                tensors = draw(shard, planned.config, seed)
                write_shard(scratch / name, tensors)
                held[name] = {key: tensor.to("meta") for key, tensor in tensors.items()}
            write_index(scratch, held)
            write_texts(scratch, planned.config)
            checksums.write_files(scratch, list(scratch.iterdir()))
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"mint: cannot write {folder.name!r} ({error}); nothing of it is left. Free some space, or give another "
            "place"
        ) from error
    return folder


def check_space(folder: Path, n_bytes: int) -> None:
    """Raise OSError unless the disk has so many bytes free."""
    place = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(place).free
    if free < n_bytes:
        raise OSError(
            f"mint: {n_bytes:,} bytes are needed and {free:,} are free; take fewer layers or --width small, or give a "
            "place on another disk"
        )


def draw(shard: dict[str, tuple[str, tuple[int, ...]]], config: Config, seed: int) -> dict[str, Tensor]:
    """The tensors of one file: each has random numbers of its own, whatever else is written."""
    tensors: dict[str, Tensor] = {}
    for name, (kind, shape) in shard.items():
        random = np.random.default_rng([seed % 2**64, *name.encode()])
        if kind in ("fp4", "fp8"):
            tensors[name], tensors[scale_of(name)] = draw_narrow(random, kind, shape)
        elif kind == "int64":
            tensors[name] = hash_table(*shape[:1], config.n_routed_experts, shape[1], seed=int(random.integers(2**31)))
        else:
            wide = draw_wide(random, name, shape, config)
            tensors[name] = wide.to(torch.bfloat16 if kind == "bf16" else torch.float32)
    return tensors


def draw_narrow(random: np.random.Generator, kind: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A matrix and its scales; products of unit size, with scales that differ by powers of two."""
    n_rows, n_columns = shape
    if kind == "fp4":
        data = torch.from_numpy(random.integers(-128, 128, (n_rows, n_columns // 2), dtype=np.int8))
        rms = FP4_RMS
    else:
        rms = 2.0**5  # far from both ends of e4m3
        data = fp8.to_e4m3(normal(random, shape) * rms)
    middle = round(math.log2(n_columns**-0.5 / rms))
    exponent = torch.from_numpy(random.integers(middle - 1, middle + 2, scale_shape(kind, shape)))
    return data, fp8.e8m0(exponent)


def draw_wide(random: np.random.Generator, name: str, shape: tuple[int, ...], config: Config) -> Tensor:
    """A tensor of another format: norms near 1, gates and biases of the streams as an untrained model has them."""
    site, _, part = name.rpartition("_")
    if "hc_" in name and part in ("base", "scale"):
        module = (HeadCollapse if site.endswith("head") else HyperConnection)(config)
        return getattr(module, part).detach()
    noise = normal(random, shape)
    if name.endswith("norm.weight"):
        return 1 + 0.1 * noise
    is_matrix = len(shape) == 2 and not name.endswith(("ape", "embed.weight"))
    return noise * (shape[-1] ** -0.5 if is_matrix else 0.1)


def normal(random: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    """Normal numbers in float32."""
    return torch.from_numpy(random.standard_normal(shape, dtype=np.float32))


# --- texts ---


def write_texts(folder: Path, config: Config) -> None:
    """Write `config.json`, and the tokenizer and generation files of a release."""
    write_json(folder / "config.json", config.to_dict() | stored_fields("released"))
    tokenizer = json.loads((SHIPPED / TOKENIZER).read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]  # the shipped one; what a release has beyond it is written as a number
    vocabulary |= {f"<{token}>": token for token in range(len(vocabulary), config.vocab_size)}
    (folder / TOKENIZER).write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    special = {"bos_token": "<bos>", "eos_token": "<eos>"}
    length = {"model_max_length": config.max_position_embeddings}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"} | special | length)
    tokens = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    write_json(folder / "generation_config.json", tokens | {"do_sample": True, "temperature": 1.0, "top_p": 1.0})


# --- the command ---


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m minidsv4 mint`."""
    parser.add_argument("folder", type=options.folder, help="a folder to make; one that exists is left alone")
    parser.add_argument("--like", choices=[*LIKE], default="flash", help="the release whose layers are taken")
    parser.add_argument("--layers", type=options.whole(1, 61), default=3, help="the first so many of its layers")
    parser.add_argument("--width", choices=WIDTHS, default="small", help="real, or small: that of the shipped model")
    parser.add_argument("--no-mtp", action="store_true", help="leave the MTP block out, which is a layer more")
    parser.add_argument("--seed", type=options.seed, default=0, help="another one gives other numbers")


def main(arguments: argparse.Namespace) -> int:
    """Say how large the folder will be, and make it."""
    folder = new_place(arguments.folder)
    planned = plan(config_like(arguments.like, arguments.layers, arguments.width, not arguments.no_mtp))
    for kind, n_bytes in planned.n_bytes().items():
        print(f"{n_bytes:>18,} bytes in {kind}")
    print(f"{planned.total():>18,} bytes in {len(planned.shards)} files", flush=True)
    write(folder, planned, arguments.seed, show=True)
    print(f"python -m minidsv4 generate --model {options.pasted(folder)} 'def f(' writes with it: nonsense")
    return 0
