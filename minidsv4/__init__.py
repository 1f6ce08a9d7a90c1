"""minidsv4: DeepSeek-V4 at a small size, with the released semantics, to be read, run and checked."""

import importlib
from typing import TYPE_CHECKING

from minidsv4 import cost, ops, parallel
from minidsv4.checkpoint import export_hf, load, save
from minidsv4.config import Config, LayerKind, Routing
from minidsv4.fast import FAST
from minidsv4.model.losses import Losses
from minidsv4.model.model import Model
from minidsv4.ops import PLAIN
from minidsv4.serve.generation import generate
from minidsv4.serve.speculate import Speculation
from minidsv4.serve.speedup import measure_speedup

if TYPE_CHECKING:
    from minidsv4.serve.completion import complete
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

_LATER = {  # names whose modules need tokenizers: imported when first asked for
    "complete": "minidsv4.serve.completion",
    "load_pretrained": "minidsv4.train.ship",
    "pretrained_tokenizer": "minidsv4.train.ship",
}


def __getattr__(name: str):
    """A name of `_LATER`, imported now."""
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module 'minidsv4' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
