"""A model that computes as the released one does: its weights, activations and indexer in their formats.

Its cache is packed by `model.new_cache(precision="released")`, which `generate(..., cache_precision="released")` asks
for. What is rounded here is rounded for good: this is for inference, `qat.py` is for training.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minidsv4.lowbit import fp8, mxfp4
from minidsv4.lowbit.activations import round_activations
from minidsv4.lowbit.formats import stored_as
from minidsv4.lowbit.qat import fp4_index_ops

if TYPE_CHECKING:  # the model stands above this room: it is handed in
    from minidsv4.model.model import Model

PRECISIONS = ("fp32", "bf16", "released")


def in_precision(model: "Model", precision: str | None) -> "Model":
    """The model itself, which from now on computes in this precision.

    precision  "fp32"; "bf16", with the released islands of float32; "released": as `as_released`; None: as it is
    raises     ValueError for another precision, and for a model with operations of its own
    """
    if precision is None:
        return model
    if precision not in PRECISIONS:
        raise ValueError(f"precision = {precision!r} is not known; it is one of {', '.join(PRECISIONS)}")
    if precision == "released":
        return as_released(model)
    return model.float() if precision == "fp32" else model.bfloat16()


def as_released(model: "Model") -> "Model":
    """The model itself: routed experts in MXFP4, dense matrices in FP8, the rest in BF16 with islands of float32.

    Activations are rounded to FP8 before products with these, index queries and keys to MXFP4. Matrices that are stored
    so already keep every bit. Nothing takes this back, nor does `model.use(FAST)`:
    load the model again without precision.

    raises  ValueError for a model with operations of its own
    """
    round_activations(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(rounded_weight(name, parameter))
    return model.bfloat16().use(fp4_index_ops(model.table))


def rounded_weight(name: str, weight: Tensor) -> Tensor:
    """A parameter rounded to its released format, in its own dtype; `name` as in the model."""
    kind = stored_as(name, experts="fp4")
    if kind == "fp4":
        return mxfp4.rounded(weight)
    if kind == "fp8":
        return fp8.rounded(weight, fp8.BLOCK, floor=0.0)
    return weight if kind == "fp32" else weight.bfloat16().to(weight.dtype)
