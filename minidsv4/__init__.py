"""minidsv4: DeepSeek-V4 at a small size, with the released semantics, to be read, run and checked.

Every name is imported when it is first asked for: a command can then answer, and be stopped, before torch is loaded.
"""

import sys

if sys.argv[:1] == ["-m"] and "minidsv4" in sys.orig_argv:  # `python -m minidsv4` is on its way to __main__
    from minidsv4 import interrupts

    interrupts.leave_on_ctrl_c()

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minidsv4 import checkpoint, config, cost, fast, model, ops, parallel, serve
    from minidsv4.checkpoint import export_hf, save
    from minidsv4.config import Config, LayerKind, Routing
    from minidsv4.fast import FAST
    from minidsv4.fast.compiled.table import COMPILED
    from minidsv4.model.losses import Losses
    from minidsv4.model.model import Model
    from minidsv4.ops import PLAIN
    from minidsv4.serve import chat_format
    from minidsv4.serve.completion import complete
    from minidsv4.serve.disk import load
    from minidsv4.serve.engine import Engine
    from minidsv4.serve.generation import generate
    from minidsv4.serve.prefix_store import PrefixStore
    from minidsv4.serve.ragged import padded_logits
    from minidsv4.serve.rollouts import rollouts
    from minidsv4.serve.speculate import Speculation
    from minidsv4.serve.speedup import measure_speedup
    from minidsv4.train.ship import load_pretrained, pretrained_tokenizer

__version__ = "0.2.0.dev0"
__all__ = [
    "COMPILED",
    "FAST",
    "PLAIN",
    "Config",
    "Engine",
    "LayerKind",
    "Losses",
    "Model",
    "PrefixStore",
    "Routing",
    "Speculation",
    "__version__",
    "chat_format",
    "checkpoint",
    "complete",
    "config",
    "cost",
    "export_hf",
    "fast",
    "generate",
    "load",
    "load_pretrained",
    "measure_speedup",
    "model",
    "ops",
    "padded_logits",
    "parallel",
    "pretrained_tokenizer",
    "rollouts",
    "save",
    "serve",
]

_HOMES = {  # module: the names in it, or none where the module itself is the name
    "checkpoint": ("export_hf", "save"),
    "config": ("Config", "LayerKind", "Routing"),
    "cost": (),
    "fast": ("FAST",),
    "fast.compiled.table": ("COMPILED",),
    "model": (),
    "model.losses": ("Losses",),
    "model.model": ("Model",),
    "ops": ("PLAIN",),
    "parallel": (),
    "serve": (),
    "serve.chat_format": (),
    "serve.completion": ("complete",),
    "serve.disk": ("load",),
    "serve.engine": ("Engine",),
    "serve.generation": ("generate",),
    "serve.prefix_store": ("PrefixStore",),
    "serve.ragged": ("padded_logits",),
    "serve.rollouts": ("rollouts",),
    "serve.speculate": ("Speculation",),
    "serve.speedup": ("measure_speedup",),
    "train.ship": ("load_pretrained", "pretrained_tokenizer"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
_MODULES = {home.split(".")[-1]: home for home, names in _HOMES.items() if not names or "." not in home}


def __getattr__(name: str):
    """A name of `__all__`, imported now: a room or module itself, or something in it."""
    if name in _HOME:
        return getattr(importlib.import_module(f"minidsv4.{_HOME[name]}"), name)
    if name not in _MODULES:
        raise AttributeError(f"module 'minidsv4' has no attribute {name!r}")
    return importlib.import_module(f"minidsv4.{_MODULES[name]}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
