"""`save` and `export_hf`: a model into a folder, in the released layout or for transformers, whole or not at all."""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from minidsv4 import checksums, config_json
from minidsv4.checkpoint.names import to_released
from minidsv4.checkpoint.shards import FILE, INDEX, index_of
from minidsv4.fast.released import check_released
from minidsv4.files import atomic_folder, given_path, made_folder
from minidsv4.lowbit import formats
from minidsv4.model.model import Model
from minidsv4.options import check_memory

SHARD_BYTES = 5 * 10**9  # of one file, about: as the files of the releases
EXPERTS = {"fp8": "fp8", "released": "fp4"}  # format of routed experts, by precision
COVERED = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")  # by SHA256SUMS, if they are there


def save(
    model: Model, folder: str | Path, precision: str | None = None, shard_bytes: float | str | None = SHARD_BYTES
) -> Path:
    """Write a model into `folder` in the released layout; what stood there stays until all is
    whole.

    The folder gets `config.json`, the weights and `SHA256SUMS`, which also covers the tokenizer
    where one lies there.

    precision    None keeps every bit; "fp8" takes the formats of the released base models, FP8 for
                 most matrices, a third of float32's bytes; "released" those of the released
                 instruct models: routed experts in FP4
    shard_bytes  the weights are cut into files of about so many bytes, or such as "1 GB", with an
                 index, where they are more; None never cuts them
    raises       OSError with a sentence where nothing can be written; ValueError for other
                 `precision`, for `shard_bytes` that are no amount, for what is no model or has no
                 numbers, for what is no path, and where FP4 does not fit the width of the experts
    """
    folder = given_path("save", folder)
    most = check_memory(shard_bytes, "save: shard_bytes")
    _check_numbered("save", model)
    if precision not in (None, *EXPERTS):
        known = " or ".join(map(repr, EXPERTS))
        raise ValueError(
            f"save: precision = {precision!r} is not known; it is {known}, or None for the bits as they are"
        )
    config, tensors = model.config.to_dict(), to_released(model.state_dict())
    if precision is not None:
        config = config | stored_fields(precision)
        tensors = formats.to_stored(tensors, EXPERTS[precision])
    return _write(folder, config, tensors, most)


def stored_fields(precision: str) -> dict[str, object]:
    """The fields of the released config.json that tell how the weights are stored."""
    fields: dict[str, object] = {"quantization_config": formats.QUANTISATION, "torch_dtype": "bfloat16"}
    return fields | ({"expert_dtype": "fp4"} if EXPERTS[precision] == "fp4" else {})


def export_hf(model: Model, folder: str | Path) -> Path:
    """Write a folder that `transformers.AutoModelForCausalLM.from_pretrained` opens; it has no MTP
    block.

    raises  ValueError for layers, parts or operations that V4 does not have; both errors as `save`
    """
    folder = given_path("export_hf", folder)
    _check_numbered("export_hf", model)
    check_released(model, "export_hf", "transformers", "save writes it for this package")
    tensors = to_released(model.state_dict())
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("mtp.")}
    dtype = str(model.embed.weight.dtype).removeprefix("torch.")
    return _write(folder, config_json.for_transformers(model.config.to_dict(), dtype), kept, SHARD_BYTES)


def _check_numbered(call: str, model: Model) -> None:
    """Refuse what is no model, and a model on the meta device."""
    if not isinstance(model, Model):
        raise ValueError(f"{call}: {type(model).__name__} is no model; give a minidsv4.Model")
    empty = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if empty:
        raise ValueError(f"{call}: {empty[0]} is on the meta device and has no numbers; give a model that has them all")


def _write(folder: Path, config: dict, tensors: dict[str, Tensor], shard_bytes: float) -> Path:
    tensors = {name: tensor.cpu() for name, tensor in tensors.items()}  # once, and not for the checksum and the file
    try:
        with made_folder(folder), atomic_folder(folder) as scratch:
            old = set(index_of(folder).values())  # of an older checkpoint in pieces: they would be read instead
            files = write_weights(scratch, cut(tensors, shard_bytes))
            write_json(scratch / "config.json", config)
            covered = [folder / name for name in COVERED if (folder / name).is_file()]
            checksums.write_files(scratch, [*scratch.iterdir(), *covered])
        for name in (old | {FILE, INDEX}) - files:
            (folder / name).unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"save: cannot write into {folder.name!r} ({error}); what stood there is untouched. Free some space, or "
            "choose a folder you may write to"
        ) from error
    return folder


def cut(tensors: dict[str, Tensor], shard_bytes: float) -> list[dict[str, Tensor]]:
    """The tensors in as many parts as their bytes need; a part is full once it holds `shard_bytes`."""
    parts: list[dict[str, Tensor]] = [{}]
    n_bytes = 0
    for name, tensor in tensors.items():
        if n_bytes >= shard_bytes:
            parts.append({})
            n_bytes = 0
        parts[-1][name] = tensor
        n_bytes += tensor.nbytes
    return parts


def write_weights(folder: Path, parts: list[dict[str, Tensor]]) -> set[str]:
    """Write each part as a safetensors file, and an index where they are several.

    returns  the names of what was written
    """
    if len(parts) == 1:
        write_shard(folder / FILE, parts[0])
        return {FILE}
    names = [shard_name(n, len(parts)) for n in range(len(parts))]
    for name, part in zip(names, parts):
        write_shard(folder / name, part)
    write_index(folder, {name: part for name, part in zip(names, parts)})
    return {*names, INDEX}


def shard_name(n: int, n_shards: int) -> str:
    """The file name of the n-th of so many, counted from 0, as in the releases."""
    return f"model-{n + 1:05}-of-{n_shards:05}.safetensors"


def write_shard(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write one safetensors file with the checksums of its tensors."""
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata=checksums.metadata(tensors))
    path.chmod(mode)  # as readable as other files: the library leaves them to their owner
    checksums.sort_metadata(path)


def write_index(folder: Path, shards: dict[str, dict[str, Tensor]]) -> None:
    """Write which file holds each tensor, and the bytes of all."""
    total = sum(tensor.nbytes for part in shards.values() for tensor in part.values())
    weight_map = {name: file for file, part in shards.items() for name in part}
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})


def write_json(path: Path, fields: dict) -> None:
    """Write fields and values as JSON in UTF-8."""
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
