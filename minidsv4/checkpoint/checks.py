"""What is refused of a checkpoint's tensors, each with the name of the tensor and what would be
right.

V tokens of the vocabulary, A experts of a token.
"""

import torch
from torch import Tensor

from minidsv4.checkpoint.names import few

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)  # those that torch can sort


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
