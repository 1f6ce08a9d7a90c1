"""What is refused of a checkpoint's tensors, each with the name of the tensor and what would be
right.

V tokens of the vocabulary, A experts of a token.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from minidsv4.checkpoint.names import few
from minidsv4.config_check import TABLE, Rule, check_values
from minidsv4.lowbit import formats

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)  # those that torch can sort

_METHOD, _BLOCK = (formats.QUANTISATION[name] for name in ("quant_method", "weight_block_size"))
_QUANTISED = {
    "quant_method": Rule(lambda value: value == _METHOD, f"files of V4 hold {_METHOD!r}, or wide weights and no field"),
    "weight_block_size": Rule(lambda value: value == _BLOCK, f"a scale of V4 is that of a block of {_BLOCK}"),
}
_FORMATS = {
    "expert_dtype": Rule(lambda value: value in ("fp4", "fp8", "bf16"), "V4's experts are in 'fp4', 'fp8' or 'bf16'"),
    "quantization_config": TABLE,
}


def check_formats(fields: Mapping[str, object]) -> None:
    """Refuse a `config.json` that tells of formats in which no file of V4 holds its weights."""
    check_values(fields, _FORMATS)
    told = fields.get("quantization_config")
    check_values(told if isinstance(told, dict) else {}, _QUANTISED, "quantization_config.")


def check_names(expected: set[str], found: set[str]) -> None:
    """Refuse tensors that are missing, and those that the model does not have."""
    parts = {"missing": sorted(expected - found), "not known": sorted(found - expected)}
    told = [f"{word}: {few(names, len(names))}" for word, names in parts.items() if names]
    if told:
        raise ValueError(f"checkpoint: tensors do not fit the config; {'; '.join(told)}")


def check_shape(name: str, shape: tuple[int, ...], right: tuple[int, ...]) -> None:
    """Refuse another shape than the model's."""
    if tuple(shape) != tuple(right):
        raise ValueError(f"checkpoint: {name} has shape {tuple(shape)}, the config needs {tuple(right)}")


def check_type(name: str, dtype: torch.dtype) -> None:
    """Refuse a table that is not held in integers, and a weight in integers or in 8 bits without a scale."""
    if name.endswith("tid2eid"):
        if dtype not in _INTEGERS:
            raise ValueError(f"checkpoint: {name} is {dtype}; a table of experts holds integers, best int64")
    elif not dtype.is_floating_point:
        raise ValueError(f"checkpoint: {name} is {dtype}; weights are floats of 16 bits and more")
    elif dtype.itemsize < 2:
        raise ValueError(f"checkpoint: {name} is {dtype}; dequantise it first, load reads 16 bits and more")


def check_numbers(name: str, tensor: Tensor, n_experts: int) -> None:
    """Refuse weights and scales that are not finite, and tables that do not name experts."""
    if name.endswith("tid2eid"):
        _check_table(name, tensor, n_experts)
        return
    wrong = tensor[~tensor.isfinite()]
    if len(wrong):
        raise ValueError(f"checkpoint: {name} holds {wrong[0].item()} ({len(wrong)} not finite); weights are finite")


def _check_table(name: str, table_VA: Tensor, n_experts: int) -> None:
    """Refuse a table that does not name, for every token id, distinct experts by integers from 0."""
    low, high = (int(end) for end in table_VA.aminmax())
    if low < 0 or high >= n_experts:
        wrong = low if low < 0 else high
        raise ValueError(f"checkpoint: {name} names expert {wrong}; n_routed_experts allows 0 .. {n_experts - 1}")
    ascending = table_VA.sort(dim=-1).values
    twice = (ascending[:, 1:] == ascending[:, :-1]).any(-1).nonzero()
    if len(twice):
        token = int(twice[0])
        raise ValueError(f"checkpoint: {name} gives token {token} experts {table_VA[token].tolist()}; they must differ")
