"""The kinds of layers and routers, YaRN's settings, and what of them follows from the released fields.

Report sections 2.1 and 2.3; the released `compress_ratios`, `num_hash_layers` and `rope_scaling`.
"""

import enum
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from minidsv4 import config_json
from minidsv4.config_check import check_names, require


class LayerKind(enum.Enum):
    """What a layer attends to besides its window; the value is the name that transformers uses."""

    WINDOW = config_json.WINDOW
    CSA = config_json.CSA
    HCA = config_json.HCA


class Routing(enum.Enum):
    """How a layer chooses experts: a frozen table of token ids, or the learned router."""

    HASH = "hash_moe"
    LEARNED = "moe"


class YaRN(NamedTuple):
    """How far positions are stretched, the length that was trained on, and the turns between which the ramp lies."""

    factor: float
    original_max_position_embeddings: int  # tokens
    beta_fast: float = 32
    beta_slow: float = 1


RELEASED_CSA_RATIO = 4  # released code calls a layer overlapped (CSA) exactly when its ratio is 4
Kind = TypeVar("Kind", LayerKind, Routing)


def alternating(first: int, stop: int) -> list[int]:
    """The released ratios of the layers `first .. stop - 1`: CSA in even layers, HCA in odd ones."""
    return [4 if layer % 2 == 0 else 128 for layer in range(first, stop)]


def released_kinds(ratios: Sequence[int]) -> tuple[LayerKind, ...]:
    """The kinds of layers that the released code takes from their ratios."""
    kinds = {0: LayerKind.WINDOW, RELEASED_CSA_RATIO: LayerKind.CSA}
    return tuple(kinds.get(ratio, LayerKind.HCA) for ratio in ratios)


def hash_first(n_hash: int, n_layers: int) -> tuple[Routing, ...]:
    """The first `n_hash` of the layers route by a table, the others by a learned router."""
    return tuple(Routing.HASH if layer < n_hash else Routing.LEARNED for layer in range(n_layers))


def released_routing(fields: dict) -> tuple[Routing, ...]:
    """The routing of each layer that follows from `num_hash_layers` and `num_hidden_layers`."""
    return hash_first(fields.get("num_hash_layers", 3), fields.get("num_hidden_layers", 0))


def yarn(settings: dict | YaRN) -> YaRN:
    """YaRN's settings from a dictionary, which may hold others beside them, and leave out both betas."""
    if isinstance(settings, YaRN):
        return settings
    require(isinstance(settings, dict), "rope_scaling", settings, "it is a table of YaRN's settings, in braces")
    check_names(settings, config_json.ROPE_NAMES, "rope_scaling.")
    given = {name: settings[name] for name in YaRN._fields if settings.get(name) is not None}
    missing = [name for name in YaRN._fields if name not in given and name not in YaRN._field_defaults]
    require(not missing, "rope_scaling", settings, f"YaRN needs {', '.join(missing)}")
    return YaRN(**given)


def named(field: str, names: Sequence[object], kinds: type[Kind]) -> tuple[Kind, ...]:
    """The kinds that a schedule names, by value or as they are."""
    known = [kind.value for kind in kinds]
    wrong = [name for name in names if getattr(name, "value", name) not in known]
    require(not wrong, field, wrong[:1], f"each layer is one of {', '.join(known)}")
    return tuple(kinds(name) for name in names)
