"""Which format a released checkpoint keeps a tensor in, and a checkpoint's tensors in these formats and back.

Matrices of attention, experts, indexer queries and MTP are kept in FP8; compressors, router, embedding, head and norms
in BF16; sinks, position biases of compressors, router biases and everything of the residual streams in FP32; tables
of experts as integers. Instruct checkpoints keep their routed experts in MXFP4, which they were trained for; base
checkpoints keep them in FP8.
"""

import re

import torch
from torch import Tensor

from minidsv4.lowbit import fp8, mxfp4

_FP8 = re.compile(r"(?<!compressor)\.(wq_a|wq_b|wkv|wo_a|wo_b|e_proj|h_proj|w1|w2|w3)\.weight$|\bexperts\.(w13|w2)$")
_ROUTED = re.compile(r"\bexperts\.([0-9]+\.w[123]\.weight|w13|w2)$")
_FP32 = re.compile(r"\b(ape|attn_sink|gate\.bias)$|\bhc_(attn|ffn|head)[._](fn|base|scale)$")
_HALF = {"bf16": torch.bfloat16, "fp32": torch.float32}
_ROUNDING = {"fp8": fp8, "fp4": mxfp4}  # each with `quantise`

QUANTISATION = {  # the field `quantization_config` of the released config.json
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "scale_fmt": "ue8m0",
    "weight_block_size": list(fp8.BLOCK),
}


def stored_as(name: str, experts: str = "fp8") -> str:
    """`fp8`, `bf16` or `fp32`, for a tensor's released name or this package's; tables of integers stay integers.

    experts  the format of routed experts: `fp8` as in base checkpoints, `fp4` as in instruct checkpoints
    raises   ValueError for another format
    """
    if experts not in [*_ROUNDING]:
        raise ValueError(f"stored_as: experts = {experts!r} is not known; it is one of {', '.join(_ROUNDING)}")
    if _FP8.search(name):
        return experts if _ROUTED.search(name) else "fp8"
    return "fp32" if _FP32.search(name) else "bf16"


def to_stored(tensors: dict[str, Tensor], experts: str = "fp8") -> dict[str, Tensor]:
    """Tensors under released names in their formats; `X.scale` stands beside each `X.weight` in FP8 or FP4.

    experts  the format of routed experts, as in `stored_as`
    raises   ValueError for another format, and, with the name, for NaN and infinities in what becomes FP8 or FP4, and
             for rows that 32 does not divide in what becomes FP4
    """
    out = {}
    for name, tensor in tensors.items():
        kind = stored_as(name, experts)
        if not tensor.is_floating_point():
            out[name] = tensor
        elif kind in _HALF:
            out[name] = tensor.to(_HALF[kind])
        else:
            try:
                out[name], out[scale_of(name)] = _ROUNDING[kind].quantise(tensor)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
    return out


def scale_of(name: str) -> str:
    """The name of a weight's scale."""
    return name.removesuffix("weight") + "scale"
