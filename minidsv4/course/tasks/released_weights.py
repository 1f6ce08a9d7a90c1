"""Inputs of the exercises in notebook 20_released_weights."""

import torch
from safetensors.torch import save

from minidsv4.config import Config
from minidsv4.cost import disk
from minidsv4.course.tasks import Task
from minidsv4.lowbit import mxfp4
from minidsv4.train import mint


def any_row(generator):
    """Bytes of FP4 with scales, and their numbers as the package opens them."""
    size = int(generator.integers(1, 4))
    packed = generator.integers(0, 256, 16 * size).tolist()
    scales = generator.integers(100, 140, size).tolist()
    codes = torch.tensor([packed], dtype=torch.uint8).view(torch.int8)
    powers = torch.tensor([scales], dtype=torch.uint8).view(torch.float8_e8m0fnu)
    return (packed, scales), mxfp4.dequantise(codes, powers)[0].tolist()


def opened():
    """The numbers of a row in FP4."""
    shown = ([0x2F] * 16, [128]), [-12.0, 2.0] * 16
    return Task([shown], any_row)


def any_model(generator):
    """A small model of random sizes, and the bytes that the package counts."""
    sizes = {"num_experts_per_tok": int(generator.integers(1, 5))}
    sizes["n_routed_experts"] = int(generator.choice([8, 12, 20]))
    planned = mint.plan(Config.mini().replace(**sizes))
    tensors = []
    for shard in planned.shards:
        for name, stored in shard.items():
            tensors.append((name, stored[1][0], mint.stored_bytes(*stored)))
    return (tensors, *sizes.values()), disk.touched(planned.config).total


def per_token():
    """The bytes that a token touches."""
    EXPERT = "layers.0.ffn.experts.0.w1.weight"
    shown = [("embed.weight", 10, 400), (EXPERT, 10, 400), ("norm.weight", 10, 400)]
    return Task([((shown, 1, 4), 540)], any_model)


def any_file(generator):
    """A file of three tensors with metadata, written by the library."""
    types = {"F32": torch.float32, "BF16": torch.bfloat16, "I8": torch.int8}
    tensors = {}
    for name, kind in zip(generator.permutation(["a", "b.c", "d"]).tolist(), types.values()):
        tensors[name] = torch.zeros(generator.integers(1, 9, size=2).tolist(), dtype=kind)
    content = save(tensors, metadata={"format": "pt"})
    kinds = {kind: name for name, kind in types.items()}
    size = int.from_bytes(content[:8], "little")
    place = {name: content[8 : 8 + size].index(f'"{name}"'.encode()) for name in tensors}
    order = sorted(tensors, key=place.get)
    return (content,), [(name, kinds[tensors[name].dtype], tensors[name].nbytes) for name in order]


def listed():
    """What a safetensors file holds."""
    header = b'{"b":{"dtype":"I8","shape":[3],"data_offsets":[4,7]},'
    header += b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    content = len(header).to_bytes(8, "little") + header + bytes(7)
    return Task([((content,), [("a", "F32", 4), ("b", "I8", 3)])], any_file)
