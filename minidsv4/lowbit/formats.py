"""Which format a released checkpoint keeps a tensor in, and a checkpoint's tensors in these formats and back.

Matrices of attention, experts, indexer queries and MTP are kept in FP8; compressors, router, embedding, head and norms
in BF16; sinks, position biases of compressors, router biases and everything of the residual streams in FP32; tables
of experts as integers. Instruct checkpoints keep their routed experts in MXFP4, which they were trained for; base
checkpoints keep them in FP8, and so does this package.
"""

import re

import torch
from torch import Tensor

from minidsv4.lowbit import fp8

_FP8 = re.compile(r"(?<!compressor)\.(wq_a|wq_b|wkv|wo_a|wo_b|e_proj|h_proj|w1|w2|w3)\.weight$|\bexperts\.(w13|w2)$")
_FP32 = re.compile(r"\b(ape|attn_sink|gate\.bias)$|\bhc_(attn|ffn|head)[._](fn|base|scale)$")
_HALF = {"bf16": torch.bfloat16, "fp32": torch.float32}

QUANTISATION = {  # the field `quantization_config` of the released config.json
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "scale_fmt": "ue8m0",
    "weight_block_size": list(fp8.BLOCK),
}


def stored_as(name: str) -> str:
    """`fp8`, `bf16` or `fp32`, for a tensor's released name or this package's; tables of integers stay integers."""
    if _FP8.search(name):
        return "fp8"
    return "fp32" if _FP32.search(name) else "bf16"


def to_stored(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under released names in their formats; `X.scale` stands beside each `X.weight` in FP8.

    raises  ValueError, with the name, for NaN and infinities in what becomes FP8
    """
    out = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            out[name] = tensor
        elif stored_as(name) == "fp8":
            try:
                out[name], out[scale_of(name)] = fp8.quantise(tensor)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        else:
            out[name] = tensor.to(_HALF[stored_as(name)])
    return out


def from_stored(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without scales: in float32 where some are in FP8, and as they are where none is.

    raises  ValueError, with the name, for packed FP4 and for a scale that is missing, of another shape, or one too many
    """
    for name, tensor in tensors.items():
        if name.endswith(".weight") and (tensor.dtype in (torch.int8, torch.uint8) or "float4" in str(tensor.dtype)):
            raise ValueError(f"checkpoint: {name} is packed FP4; load reads FP8 and wider, lowbit.mxfp4 what is packed")
    small = [name for name, tensor in tensors.items() if tensor.dtype == torch.float8_e4m3fn]
    scales = {scale_of(name) for name in tensors if name.endswith(".weight")} & set(tensors)
    if strange := sorted(scales - {scale_of(name) for name in small}):
        raise ValueError(f"checkpoint: {strange[0]} stands beside a weight that is not in FP8; only those have a scale")
    out = {name: tensor for name, tensor in tensors.items() if name not in scales}
    if not small:
        return out
    out |= {name: _wide(name, tensors) for name in small}
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in out.items()}


def _wide(name: str, tensors: dict[str, Tensor]) -> Tensor:
    """A tensor in FP8 with its scale, in float32."""
    scale = tensors.get(scale_of(name))
    if scale is None:
        raise ValueError(f"checkpoint: {name} is {tensors[name].dtype}; dequantise needs {scale_of(name)}: missing")
    if not scale.is_floating_point():
        raise ValueError(f"checkpoint: {scale_of(name)} is {scale.dtype}; scales are float8_e8m0fnu or wider floats")
    try:
        return fp8.dequantise(tensors[name], scale)
    except ValueError as error:
        raise ValueError(f"checkpoint: {scale_of(name)}: {error}") from error


def scale_of(name: str) -> str:
    """The name of a weight's scale."""
    return name.removesuffix("weight") + "scale"
