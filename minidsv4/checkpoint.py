"""Checkpoints: a folder with `config.json` and safetensors, under the released tensor names.

`load` reads three spellings of the same tensors: the released names (`layers.0.attn.wq_a.weight`), those of a Hugging
Face model (`model.layers.0.self_attn.q_a_proj.weight`), and the mixture that `save_pretrained` writes. `save` and
`export_hf` write the released names, which transformers opens as well. Experts are stacked in this package and
separate in a checkpoint: `experts.w13[n]` is `experts.n.w1` over `experts.n.w3`. With `save(..., weights="fp8")` the
tensors are in the released formats as well (`lowbit/formats.py`), and `load` reads those. What is written holds a
checksum of every tensor (`checksums.py`), which `load` verifies.
"""

import json
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minidsv4 import checksums, config_json
from minidsv4.config import Config
from minidsv4.fast.released import check_released
from minidsv4.files import atomic_folder, given_path
from minidsv4.lowbit import formats
from minidsv4.model.indexer import Hadamard
from minidsv4.model.model import Model

T = TypeVar("T")

_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"

_TO_RELEASED = [  # (pattern, replacement), in order; a released name passes through unchanged
    *((r"^model\.", ""), (r"^embed_tokens\.", "embed."), (r"^lm_head\.", "head.")),
    *((r"\bhc_head\.hc_(fn|base|scale)$", r"hc_head_\1"), (r"\b(attn|ffn)_hc\.(fn|base|scale)$", r"hc_\1_\2")),
    *((r"\bself_attn\.", "attn."), (r"\bmlp\.", "ffn.")),
    *((r"\binput_layernorm\.", "attn_norm."), (r"\bpost_attention_layernorm\.", "ffn_norm.")),
    *((r"shared_experts\.gate_proj", "shared_experts.w1"), (r"shared_experts\.up_proj", "shared_experts.w3")),
    *((r"shared_experts\.down_proj", "shared_experts.w2"), (r"\bgate\.e_score_correction_bias$", "gate.bias")),
    (r"compressor\.indexer\.(kv_proj|gate_proj|kv_norm|position_bias)", r"indexer.compressor.\1"),
    (r"compressor\.indexer\.(scorer\.)?", "indexer."),
    *((r"indexer\.q_b_proj", "indexer.wq_b"), (r"compressor\.kv_norm", "compressor.norm")),
    *((r"\bq_a_proj\.", "wq_a."), (r"\bq_a_norm\.", "q_norm."), (r"\bq_b_proj\.", "wq_b."), (r"\bkv_proj\.", "wkv.")),
    *((r"compressor\.gate_proj\.", "compressor.wgate."), (r"\bposition_bias$", "ape"), (r"\bo_a_proj\.", "wo_a.")),
    *((r"\bo_b_proj\.", "wo_b."), (r"\bsinks$", "attn_sink"), (r"attn\.norm\.", "attn.kv_norm.")),
]
_OURS = (r"\bhc_(attn|ffn|head)_(fn|base|scale)$", r"hc_\1.\2")  # released spelling -> this package's
_RELEASED = (r"\bhc_(attn|ffn|head)\.(fn|base|scale)$", r"hc_\1_\2")
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)  # those that torch can sort
# Multiplied in the wider of their own type and that of what they read.
_OWN = re.compile(r"\bcompressor\.(wkv|wgate)\.weight$|\bweights_proj\.weight$")


def released_name(name: str) -> str:
    """The released spelling of a tensor name, from any of the three spellings."""
    for pattern, replacement in _TO_RELEASED:
        name = re.sub(pattern, replacement, name)
    return name


def to_released(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """This package's state dict under the released names, experts apart."""
    out = {}
    for name, tensor in state.items():
        name = re.sub(*_RELEASED, name)
        if name.endswith("experts.w13"):
            for n, (gate, up) in enumerate(zip(*tensor.chunk(2, dim=1))):
                out[name.replace("w13", f"{n}.w1.weight")] = gate
                out[name.replace("w13", f"{n}.w3.weight")] = up
        elif name.endswith("experts.w2"):
            out |= {name.replace("w2", f"{n}.w2.weight"): matrix for n, matrix in enumerate(tensor)}
        else:
            out[name] = tensor
    return {name: tensor.detach().contiguous().clone() for name, tensor in out.items()}


def from_released(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """This package's state dict from tensors in any of the three spellings; experts are stacked.

    raises  ValueError for a tensor that stands there in two spellings, and for experts that are missing
    """
    state: dict[str, Tensor] = {}
    experts: dict[str, dict[tuple[int, str], Tensor]] = {}
    for name, tensor in tensors.items():
        released = released_name(name)
        stacked = re.fullmatch(r"(.*experts\.)(gate_up_proj|down_proj)", released)
        apart = re.fullmatch(r"(.*\bexperts\.)(0|[1-9][0-9]{0,8})\.(w[123])\.weight", released)
        if stacked:
            _add(state, stacked[1] + ("w13" if stacked[2] == "gate_up_proj" else "w2"), tensor, name)
        elif apart:
            _add(experts.setdefault(apart[1], {}), (int(apart[2]), apart[3]), tensor, name)
        else:
            _add(state, re.sub(*_OURS, released), tensor, name)
    for prefix, parts in experts.items():
        for name, tensor in _stack(prefix, parts).items():
            _add(state, name, tensor, f"{prefix}0.w{'1' if name.endswith('w13') else '2'}.weight")
    return state


def _add(table: dict[T, Tensor], key: T, tensor: Tensor, name: str) -> None:
    """Put a tensor into a table, unless another spelling of its name has been there."""
    if key in table:
        whole = key if isinstance(key, str) else "that expert"
        raise ValueError(f"checkpoint: {name} is another spelling of {whole}, which is there as well; keep one of them")
    table[key] = tensor


def _stack(prefix: str, parts: dict[tuple[int, str], Tensor]) -> dict[str, Tensor]:
    n_experts = 1 + max(n for n, _ in parts)
    n_missing = 3 * n_experts - len(parts)
    if n_missing:
        needed = ((n, w) for n in range(n_experts) for w in ("w1", "w2", "w3"))
        first = [f"{prefix}{n}.{w}.weight" for n, w in islice((part for part in needed if part not in parts), 4)]
        raise ValueError(f"checkpoint: {_few(first, n_missing)} missing; a model of {n_experts} experts has them all")
    stacks = {w: [parts[n, w] for n in range(n_experts)] for w in ("w1", "w2", "w3")}
    for w, matrices in stacks.items():
        shapes = {tuple(matrix.shape) for matrix in matrices}
        if len(shapes) > 1:
            raise ValueError(
                f"checkpoint: {prefix}N.{w}.weight have shapes {sorted(shapes)}; all experts have the same"
            )
    w1, w2, w3 = (torch.stack(stacks[w]) for w in ("w1", "w2", "w3"))
    return {prefix + "w13": torch.cat([w1, w3], dim=1), prefix + "w2": w2}


def save(model: Model, folder: str | Path, weights: str | None = None) -> Path:
    """Write `config.json` and `model.safetensors` into `folder`; what stood there stays until both are whole.

    weights  None keeps every bit; "fp8" takes the formats of the released files, FP8 for most matrices, a third of
             float32's bytes
    raises   OSError with a sentence where nothing can be written; ValueError for other `weights`, for what is no model
             or has no numbers, and for what is no path
    """
    folder = given_path("save", folder)
    _check_numbered("save", model)
    if weights not in (None, "fp8"):
        raise ValueError(f"save: weights = {weights!r} is not known; it is 'fp8', or None for the bits as they are")
    config, tensors = model.config.to_dict(), to_released(model.state_dict())
    if weights == "fp8":
        config, tensors = config | {"quantization_config": formats.QUANTISATION}, formats.to_stored(tensors)
    return _write(folder, config, tensors)


def export_hf(model: Model, folder: str | Path) -> Path:
    """Write a folder that `transformers.AutoModelForCausalLM.from_pretrained` opens; it has no MTP block.

    raises  ValueError for layers, parts or operations that V4 does not have; both errors as `save`
    """
    folder = given_path("export_hf", folder)
    _check_numbered("export_hf", model)
    check_released(model, "export_hf", "transformers", "save writes it for this package")
    tensors = to_released(model.state_dict())
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("mtp.")}
    dtype = str(model.embed.weight.dtype).removeprefix("torch.")
    return _write(folder, config_json.for_transformers(model.config.to_dict(), dtype), kept)


def _check_numbered(call: str, model: Model) -> None:
    """Refuse what is no model, and a model on the meta device."""
    if not isinstance(model, Model):
        raise ValueError(f"{call}: {type(model).__name__} is no model; give a minidsv4.Model")
    empty = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if empty:
        raise ValueError(f"{call}: {empty[0]} is on the meta device and has no numbers; give a model that has them all")


def _write(folder: Path, config: dict, tensors: dict[str, Tensor]) -> Path:
    tensors = {name: tensor.cpu() for name, tensor in tensors.items()}  # once, and not for the checksum and the file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shards = _shards(folder)  # of an older checkpoint in pieces: they would be read instead
        with atomic_folder(folder) as scratch:
            save_file(tensors, scratch / _FILE, metadata=checksums.metadata(tensors))
            checksums.sort_metadata(scratch / _FILE)
            (scratch / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name in shards - {_FILE} | ({_INDEX} if shards else set()):
            (folder / name).unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"save: cannot write into {folder.name!r} ({error}); what stood there is untouched. Free some space, or "
            "choose a folder you may write to"
        ) from error
    return folder


def load(
    folder: str | Path,
    keep: Callable[[str], str | None] = lambda name: name,
    adapt: Callable[[Model], object] = lambda model: model,
) -> Model:
    """Read a model from a folder in the released layout, or one that transformers' `save_pretrained` wrote.

    Tensors are compared with their checksums; a file without any is taken as it is, and the log says so (INFO).

    keep     the name to read a tensor under, from its released one; None leaves it in the file, unread
    adapt    changes the model before it has any numbers, so that it needs what is kept
    returns  a model that rounds no stored tensor: of the embedding's dtype, or of the widest that another matrix has;
             in float32 where matrices are in FP8 or FP4; without an MTP block if the file or the config has none
             always on the CPU
    raises   ValueError: no path, config or weights, a file cut off or damaged, tensors or scales missing, extra or of
             another shape, by name
    """
    folder = given_path("load", folder)
    fields = config_json.read(folder)
    with config_json.naming(folder / "config.json"):
        config = Config.from_dict(fields)
    with torch.device("cpu"):  # whatever the default is: one without numbers has none to check or copy
        read = without_drafts(keep) if config_json.DRAFTS_LEFT_OUT in fields else keep
        state = from_released(formats.from_stored(_read(folder, read)))
        if not any(name.startswith("mtp.") for name in state):
            config = config.replace(num_nextn_predict_layers=0)
        with torch.device("meta"):
            model = Model(config)
        adapt(model)
        _compare(model.state_dict(), state, config.n_routed_experts)
        take_types(model, state)
        model = model.to_empty(device="cpu")
        model.load_state_dict(state)
        rebuild_constants(model)
        return model


def without_drafts(keep: Callable[[str], str | None]) -> Callable[[str], str | None]:
    """`keep` that leaves in the file what drafts tokens."""
    return lambda name: None if name.startswith("mtp.") else keep(name)


def take_types(model: Model, state: dict[str, Tensor]) -> None:
    """Give the model, on the meta device, the narrowest dtype that rounds no stored tensor, from the embedding's on.

    What is computed in float32 in any case keeps its own type where that is a wider one, as in float16 folders of
    transformers.
    """
    dtype = state["embed.weight"].dtype
    for name, held in model.to(dtype).state_dict().items():
        stored = state[name].dtype
        if held.is_floating_point() and torch.promote_types(held.dtype, stored) != held.dtype and not _OWN.search(name):
            dtype = torch.promote_types(dtype, stored)
    for name, parameter in model.to(dtype).named_parameters():
        if _OWN.search(name):
            parameter.data = parameter.data.to(torch.promote_types(dtype, state[name].dtype))


def rebuild_constants(model: Model) -> None:
    """Fill the buffers that no checkpoint holds because they follow from the config."""
    for module in model.modules():
        if isinstance(module, Hadamard):
            module.reset_constants()


def _read(folder: Path, keep: Callable[[str], str | None]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name in sorted(_shards(folder) or [_FILE]):
        if not (folder / name).is_file():
            raise ValueError(
                f"checkpoint: {folder.name!r} has no {name}; give the folder that holds it and its config.json"
            )
        try:
            with safe_open(folder / name, framework="pt") as file:
                sums = checksums.noted(name, file.metadata())
                for key in file.keys():
                    wanted = keep(released_name(key))
                    if wanted in tensors:
                        raise ValueError(f"checkpoint: {key} is another spelling of {wanted}, which is there as well")
                    if wanted is not None:
                        tensors[wanted] = file.get_tensor(key)
                        checksums.verify(name, sums, key, tensors[wanted])
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"checkpoint: {name} cannot be read ({error}); it may be cut off, copy it again"
            ) from error
    return tensors


def _shards(folder: Path) -> set[str]:
    """The files that an index names; empty where the folder has none."""
    if not (folder / _INDEX).is_file():
        return set()
    try:
        files = set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise ValueError(f"checkpoint: {_INDEX} cannot be read ({error}); it may be cut off, copy it again") from error
    for name in files:
        plain = isinstance(name, str) and len(name) < 256 and "\0" not in name
        beside = plain and name.endswith(".safetensors") and Path(name).name == name
        if not beside:
            raise ValueError(f"checkpoint: {_INDEX} names {str(name)[:80]!r}; it names safetensors files beside it")
    return files


def _compare(expected: dict[str, Tensor], found: dict[str, Tensor], n_experts: int) -> None:
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or extra:
        parts = [
            f"{word}: {_few(names, len(names))}"
            for word, names in (("missing", missing), ("not known", extra))
            if names
        ]
        raise ValueError(f"checkpoint: tensors do not fit the config; {'; '.join(parts)}")
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            right, given = tuple(expected[name].shape), tuple(tensor.shape)
            raise ValueError(f"checkpoint: {name} has shape {given}, the config needs {right}")
        if name.endswith("tid2eid"):
            _check_table(name, tensor, n_experts)
        else:
            _check_numbers(name, tensor)


def _check_numbers(name: str, tensor: Tensor) -> None:
    """Refuse a weight that is held in integers, in 8 bits without a scale, or is not finite."""
    if not tensor.is_floating_point():
        raise ValueError(f"checkpoint: {name} is {tensor.dtype}; weights are floats of 16 bits and more")
    if tensor.dtype.itemsize < 2:
        raise ValueError(f"checkpoint: {name} is {tensor.dtype}; dequantise it first, load reads 16 bits and more")
    wrong = tensor[~tensor.isfinite()]
    if len(wrong):
        raise ValueError(f"checkpoint: {name} holds {wrong[0].item()} ({len(wrong)} not finite); weights are finite")


def _check_table(name: str, table_VA: Tensor, n_experts: int) -> None:
    """Refuse a table that does not name, for every token id, distinct experts by integers from 0."""
    if table_VA.dtype not in _INTEGERS:
        raise ValueError(f"checkpoint: {name} is {table_VA.dtype}; a table of experts holds integers, best int64")
    low, high = (int(end) for end in table_VA.aminmax())
    if low < 0 or high >= n_experts:
        wrong = low if low < 0 else high
        raise ValueError(f"checkpoint: {name} names expert {wrong}; n_routed_experts allows 0 .. {n_experts - 1}")
    ascending = table_VA.sort(dim=-1).values
    twice = (ascending[:, 1:] == ascending[:, :-1]).any(-1).nonzero()
    if len(twice):
        token = int(twice[0])
        raise ValueError(f"checkpoint: {name} gives token {token} experts {table_VA[token].tolist()}; they must differ")


def _few(names: list[str], n_names: int) -> str:
    """The first four of so many names, long ones cut, and how many more there are."""
    first = [name if len(name) <= 200 else f"{name[:200]}..." for name in names[:4]]
    return ", ".join(first) + (f" and {n_names - 4} more" if n_names > 4 else "")
