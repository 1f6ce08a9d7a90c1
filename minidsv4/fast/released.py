"""Whether a model is V4 as released, part by part: what other programs, and the compiled loops, can take over."""

from typing import TYPE_CHECKING

from minidsv4.config import LayerKind
from minidsv4.fast import FAST
from minidsv4.fast.compiled.table import COMPILED
from minidsv4.ops import PLAIN, Ops
from minidsv4.unfilled import unfilled

if TYPE_CHECKING:  # the model stands above this room: it is handed in
    from minidsv4.model.model import Model

RELEASED = (LayerKind.WINDOW, LayerKind.CSA, LayerKind.HCA)


def check_released(model: "Model", caller: str, reader: str, instead: str) -> None:
    """Raise ValueError unless every layer, part and operation is one that V4 has, and no hook changes what is read.

    caller   opens the sentence, such as "export_hf"
    reader   who knows V4 alone, such as "transformers"
    instead  what can be done with such a model
    """
    for kind in model.config.layer_types:
        if kind not in RELEASED:
            raise ValueError(f"{caller}: {kind.name} layers are unknown to {reader}; {instead}")
    built = {name: type(module) for name, module in unfilled(type(model), model.config).named_modules()}
    for name, module in model.named_modules():
        if type(module) is built.get(name) and module._forward_pre_hooks:
            raise ValueError(
                f"{caller}: {name or 'the model'} has a hook on what it reads, unknown to {reader}; {instead}; "
                "or end round_activations, or load the model again without precision"
            )
    for name, module in model.named_modules():
        if type(module) is not built.get(name):
            raise ValueError(f"{caller}: {name} is of type {type(module).__name__}, unknown to {reader}; {instead}")
        if not is_exact(getattr(module, "ops", FAST)):
            place = name or "the model"
            raise ValueError(f"{caller}: {place} runs operations unknown to {reader}; {instead}, or model.use(FAST)")


def is_exact(ops: Ops) -> bool:
    """Whether each operation is one of PLAIN, FAST or COMPILED, which are exact forms of one another."""
    return all(operation in forms for operation, *forms in zip(ops, PLAIN, FAST, COMPILED))
