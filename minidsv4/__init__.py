"""minidsv4: DeepSeek-V4 at a small size, with the released semantics, to be read, run and checked."""

from minidsv4 import cost, parallel
from minidsv4.checkpoint import export_hf, load, save
from minidsv4.config import Config, LayerKind, Routing
from minidsv4.model.losses import Losses
from minidsv4.model.model import Model
from minidsv4.serve.generation import generate
from minidsv4.serve.speculate import Speculation
from minidsv4.serve.speedup import measure_speedup
from minidsv4.train.ship import load_pretrained, pretrained_tokenizer

__version__ = "0.1.0"
__all__ = [
    "Config",
    "LayerKind",
    "Losses",
    "Model",
    "Routing",
    "Speculation",
    "__version__",
    "cost",
    "export_hf",
    "generate",
    "load",
    "load_pretrained",
    "measure_speedup",
    "parallel",
    "pretrained_tokenizer",
    "save",
]
