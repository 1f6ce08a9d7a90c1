"""Small parts of the package with random weights, and the reader's parts with the same ones.

The weights of a module go over under their released names, experts apart.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from unittest.mock import patch

import torch
from torch import Tensor, nn

from minidsv4.checkpoint import to_released
from minidsv4.config import Config, LayerKind, Routing, YaRN
from minidsv4.course.build.steps import Draw
from minidsv4.model import rope
from minidsv4.model.cache import LayerMemory, new_layer_memory
from minidsv4.model.layer import Layer, wrapped
from minidsv4.model.rope import Positions
from minidsv4.ops import PLAIN

CPU = torch.device("cpu")
KINDS = {"WINDOW": 0, "CSA": 1, "HCA": 2}  # the layer of `random_config` that is of this kind
HASH, LEARNED = 0, 1  # the layers of `random_config` that route so


def random_config(draw: Draw) -> Config:
    """Three layers, one of each kind, the first with a hash router; sizes that can be told apart."""
    csa, hca = draw.whole(2, 4), draw.whole(5, 8)
    groups, per_group = draw.sizes(2, 2, 4)
    kinds = (LayerKind.WINDOW, LayerKind.CSA, LayerKind.HCA, LayerKind.WINDOW)
    return Config.tiny().replace(
        vocab_size=draw.whole(30, 60),
        hidden_size=draw.whole(15, 22),
        moe_intermediate_size=draw.whole(23, 28),
        num_hidden_layers=3,
        num_attention_heads=groups * per_group,
        o_groups=groups,
        o_lora_rank=draw.whole(5, 8),
        head_dim=2 * draw.whole(7, 9),
        qk_rope_head_dim=2 * draw.whole(2, 3),
        q_lora_rank=draw.whole(10, 14),
        sliding_window=draw.whole(3, 7),
        compress_ratios=(0, csa, hca, 0),
        layer_types=kinds,
        mlp_layer_types=(Routing.HASH, Routing.LEARNED, Routing.LEARNED),
        index_n_heads=draw.whole(3, 5),
        index_head_dim=8,
        index_topk=3,
        n_routed_experts=draw.whole(6, 9),
        num_experts_per_tok=draw.whole(2, 3),
        routed_scaling_factor=draw.whole(15, 30) / 10,
        swiglu_limit=draw.whole(4, 8) / 10,
        hc_mult=draw.whole(3, 5),
        hc_sinkhorn_iters=draw.whole(3, 6),
        hc_eps=0.003,
        rms_norm_eps=0.01,
        rope_theta=float(draw.whole(50, 200)),
        compress_rope_theta=float(draw.whole(300, 600)),
        rope_scaling=YaRN(draw.whole(4, 8), 64),
        num_nextn_predict_layers=0,
    )


@torch.no_grad()
def random_weights(module: nn.Module, draw: Draw) -> nn.Module:
    """The module in float64 with random weights, biases and norms, running the operations of `ops.py`."""
    module = module.double()
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not tensor.is_floating_point() or name.endswith("signs"):
            continue
        noise = draw.normal(*tensor.shape)
        if name.endswith("norm.weight"):
            tensor.copy_(1 + 0.5 * noise)
        else:
            tensor.copy_(noise * tensor.shape[-1] ** -0.5 if tensor.ndim > 1 and not name.endswith("ape") else noise)
    for part in module.modules():
        if isinstance(part, Layer):
            part.ops = PLAIN
    return module


def weights(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module of the package under their released names; those of an MTP block are left out.

    The same names and shapes as in the reader's modules.
    """
    return {name: tensor for name, tensor in to_released(module.state_dict()).items() if not name.startswith("mtp.")}


def filled(reader_part: nn.Module, module: nn.Module) -> nn.Module:
    """The reader's module with the weights of the package's."""
    reader_part = reader_part.double()
    reader_part.load_state_dict(weights(module))
    return reader_part


def memory_of(config: Config, kind: LayerKind, n_batch: int) -> LayerMemory:
    """An empty past of one layer."""
    return new_layer_memory(config, kind, n_batch, torch.float64, CPU)


def positions_of(config: Config, kind: LayerKind, n_tokens: int) -> Positions:
    """The positions 0, 1, ... as a layer of this kind turns them."""
    return Positions(rope.frequencies(config, kind, torch.float64, CPU), 0, n_tokens)


def angles_of(config: Config, kind: LayerKind, n_tokens: int) -> Tensor:
    """The angles [T, R/2] of positions 0, 1, ..., in radians."""
    position = torch.arange(n_tokens, dtype=torch.float64)
    return torch.outer(position, rope.frequencies(config, kind, torch.float64, CPU))


@contextmanager
def swapped(module: nn.Module, one: str, other: str) -> Iterator[None]:
    """Inside, two parts of a module have changed places."""
    first = getattr(module, one)
    second = getattr(module, other)
    with patch.object(module, one, second), patch.object(module, other, first):
        yield


def rotating(layer: Layer, wrong: Callable[..., Tensor]) -> AbstractContextManager:
    """Inside, this layer, but not its parts, turns by `wrong(the right rotate, x, turn)`."""
    return wrapped([layer], "rotate", lambda _, rotate: lambda x, turn: wrong(rotate, x, turn))
