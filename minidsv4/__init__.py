"""minidsv4: DeepSeek-V4 at a small size, with the released semantics, to be read, run and checked."""

import importlib
from typing import TYPE_CHECKING

from minidsv4 import ops
from minidsv4.checkpoint import export_hf, load, save
from minidsv4.config import Config, LayerKind, Routing
from minidsv4.fast import FAST
from minidsv4.model.losses import Losses
from minidsv4.model.model import Model
from minidsv4.ops import PLAIN
from minidsv4.serve.generation import generate
from minidsv4.serve.speculate import Speculation

if TYPE_CHECKING:
    from minidsv4 import cost, parallel
    from minidsv4.serve.completion import complete
    from minidsv4.serve.speedup import measure_speedup
    from minidsv4.train.ship import load_pretrained, pretrained_tokenizer

__version__ = "0.1.0"
__all__ = [
    "FAST",
    "PLAIN",
    "Config",
    "LayerKind",
    "Losses",
    "Model",
    "Routing",
    "Speculation",
    "__version__",
    "complete",
    "cost",
    "export_hf",
    "generate",
    "load",
    "load_pretrained",
    "measure_speedup",
    "ops",
    "parallel",
    "pretrained_tokenizer",
    "save",
]

_LATER = {  # imported when first asked for: rooms that a first call does not need, and what needs tokenizers
    "complete": "minidsv4.serve.completion",
    "cost": "minidsv4.cost",
    "load_pretrained": "minidsv4.train.ship",
    "measure_speedup": "minidsv4.serve.speedup",
    "parallel": "minidsv4.parallel",
    "pretrained_tokenizer": "minidsv4.train.ship",
}


def __getattr__(name: str):
    """A name of `_LATER`, imported now: a room itself, or something in it."""
    if name not in _LATER:
        raise AttributeError(f"module 'minidsv4' has no attribute {name!r}")
    module = importlib.import_module(_LATER[name])
    return module if _LATER[name] == f"minidsv4.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
