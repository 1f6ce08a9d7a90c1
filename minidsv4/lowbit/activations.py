"""Activations as released: rounded to FP8 by 128 neighbours before every product with an FP8 or FP4 matrix.

D width, F expert width. The released formats of weights are in `formats.py`: what is multiplied with BF16 and FP32
weights stays as it is, and so does the input of `wo_a`, whose product released code computes in BF16. Weights are not
touched: `rounding.py` and `qat.py` do that.
"""

from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minidsv4 import ops
from minidsv4.fast.released import is_exact
from minidsv4.lowbit import fp8
from minidsv4.lowbit.formats import stored_as
from minidsv4.lowbit.qat import straight_through

if TYPE_CHECKING:  # the model stands above this room: it is handed in
    from minidsv4.model.model import Model


def as_fp8(x: Tensor) -> Tensor:
    """Activations [..., width] rounded to FP8; gradients pass."""
    return straight_through(fp8.rounded, x)


def round_activations(model: "Model") -> ExitStack:
    """From now on the model rounds what its FP8 and FP4 matrices are multiplied with.

    Weights are read as they are; `model.use(fp4_ops(model.table))` afterwards rounds those of the routed experts too.

    returns  what ends it, and nothing else does: `with round_activations(model): ...`, or its `close()`.
             `model.use(FAST)` ends the rounding of routed experts' inputs alone
    raises   ValueError for what is no model, and where it runs other operations than those of PLAIN, FAST and COMPILED
    """
    if not isinstance(getattr(model, "table", None), ops.Ops):
        raise ValueError(f"round_activations: {type(model).__name__} is no model; give a minidsv4.Model")
    if not is_exact(model.table):
        raise ValueError("round_activations: the model runs operations of its own; call model.use(FAST) first")
    undo = ExitStack()
    undo.callback(model.use, model.table)
    model.use(model.table._replace(experts=experts))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and stored_as(f"{name}.weight") == "fp8":
            undo.callback(module.register_forward_pre_hook(_rounded_input).remove)
    return undo


def _rounded_input(_module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (as_fp8(inputs[0]),)


def experts(x: Tensor, picked: Tensor, weight: Tensor, w13_EFD: Tensor, w2_EDF: Tensor, limit: float) -> Tensor:
    """`ops.experts` of rounded activations: the tokens, and what each expert's second product reads.

    The routing weight comes before the second rounding, as released.
    """
    x_TD, picked_TA, weight_TA = (part.reshape(-1, part.shape[-1]) for part in (as_fp8(x), picked, weight))
    total_TD = torch.zeros_like(ops.upcast(x_TD))
    for e in picked_TA.unique().tolist():
        token, slot = (picked_TA == e).nonzero(as_tuple=True)
        gate, up = F.linear(x_TD[token], w13_EFD[e]).chunk(2, dim=-1)
        inner = ops.swiglu(gate, up, limit) * weight_TA[token, slot, None]
        out = F.linear(as_fp8(inner.to(x_TD.dtype)), w2_EDF[e])
        total_TD = total_TD.index_add(0, token, ops.upcast(out))
    return total_TD.to(x.dtype).view(x.shape)
