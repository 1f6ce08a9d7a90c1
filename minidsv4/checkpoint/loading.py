"""`load`: a model from a folder, in the released layout or as transformers writes it."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from minidsv4 import checksums, config_json
from minidsv4.checkpoint.checks import check_formats, check_names, check_numbers, check_shape, check_type
from minidsv4.checkpoint.names import from_released
from minidsv4.checkpoint.released import kept_of_main, paired, spelled_names, stored_tensor
from minidsv4.checkpoint.shards import Shards
from minidsv4.config import Config
from minidsv4.files import given_path
from minidsv4.model.indexer import Hadamard
from minidsv4.model.model import Model
from minidsv4.unfilled import unfilled

# Multiplied in the wider of their own type and that of what they read.
_OWN = re.compile(r"\bcompressor\.(wkv|wgate)\.weight$|\bweights_proj\.weight$")


def load(
    folder: str | Path,
    keep: Callable[[str], str | None] = str,
    adapt: Callable[[Model], object] = lambda model: model,
) -> Model:
    """Read a model from a folder in the released layout, or one that transformers'
    `save_pretrained` wrote.

    Tensors are compared with their checksums, and files with `SHA256SUMS`; a file without any is
    taken as it is, and the log says so (INFO).

    keep     the name to read a tensor under, from its released one; None leaves it in the file,
             unread
    adapt    changes the model before it has any numbers, so that it needs what is kept
    returns  a model that rounds no stored tensor: of the embedding's dtype, or of the widest that
             another matrix has; in float32 where matrices are in FP8 or FP4; without an MTP block
             if the file or the config has none always on the CPU
    raises   ValueError: no path, config or weights, a file cut off or damaged, tensors or scales
             missing, extra or of another shape, by name; a config that tells other formats
    """
    folder = given_path("load", folder)
    fields = config_json.read(folder)
    with config_json.naming(folder / "config.json"):
        check_formats(fields)
        config = Config.from_dict(fields)
    with on_cpu():  # whatever the default device is: one without numbers has none to check or copy
        shards = Shards(folder)
        checksums.verify_files(folder, but=shards.with_checksums())
        read = kept_of_main(keep) if config_json.DRAFTS_LEFT_OUT in fields else keep
        state = from_released(numbers(shards, read))
        if not any(name.startswith("mtp.") for name in state):
            config = config.replace(num_nextn_predict_layers=0)
        model = unfilled(Model, config)
        adapt(model)
        compare(model.state_dict(), state, config.n_routed_experts)
        take_types(model, state)
        model = model.to_empty(device="cpu")
        model.load_state_dict(state)
        rebuild_constants(model)
        return model


def on_cpu() -> AbstractContextManager[object]:
    """Within, tensors are made on the CPU; where they are anyway, no mode of torch's slows its calls."""
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


def numbers(shards: Shards, keep: Callable[[str], str | None]) -> dict[str, Tensor]:
    """Tensors under the names to keep them by, each compared with its checksum, without scales."""
    held = {}
    for name, spelled in spelled_names(shards, keep).items():
        held[name] = shards.mapped(spelled)
        shards.verify(spelled, held[name])
    return widened(held)


def widened(held: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without scales: in float32 where some are in FP8 or FP4, and as they are where none is.

    raises  ValueError, with the name, for a scale that is missing, of another type or shape, or one too many, and for 8
            bits without one
    """
    scales = paired(held)
    if not any(scales.values()):
        return held
    for name in (name for name, scale in scales.items() if scale is None):
        check_type(name, held[name].dtype)
    return {name: stored_tensor(name, scale, held.__getitem__).wide() for name, scale in scales.items()}


def compare(expected: dict[str, Tensor], found: dict[str, Tensor], n_experts: int) -> None:
    """Refuse a state dict that is not the model's: by names, types, shapes and numbers."""
    check_names(set(expected), set(found))
    for name, tensor in found.items():
        check_shape(name, tensor.shape, expected[name].shape)
        check_type(name, tensor.dtype)
        check_numbers(name, tensor, n_experts)


def take_types(model: Model, state: dict[str, Tensor]) -> None:
    """Give the model, on the meta device, the narrowest dtype that rounds no stored tensor, from
    the embedding's on.

    What is computed in float32 in any case keeps its own type where that is a wider one, as in
    float16 folders of transformers.
    """
    dtype = of_embedding = state["embed.weight"].dtype
    for name, held in model.to(dtype).state_dict().items():
        stored = state[name].dtype
        if held.is_floating_point() and torch.promote_types(held.dtype, stored) != held.dtype and not _OWN.search(name):
            dtype = torch.promote_types(dtype, stored)
    if dtype != of_embedding:
        model.to(dtype)
    for name, parameter in model.named_parameters():
        if _OWN.search(name):
            parameter.data = parameter.data.to(torch.promote_types(dtype, state[name].dtype))


def rebuild_constants(model: Model) -> None:
    """Fill the buffers that no checkpoint holds because they follow from the config."""
    for module in model.modules():
        if isinstance(module, Hadamard):
            module.reset_constants()
