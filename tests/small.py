"""What several tests share: a small model whose every parameter is off its start, and its tensors for `paper.py`."""

import pytest
import torch
from torch import Tensor, nn

import minidsv4 as v4
from minidsv4.checkpoint import to_released
from minidsv4.config import LayerKind, Routing
from minidsv4.fast import FAST
from minidsv4.model.cache import LayerMemory, new_layer_memory
from minidsv4.model.layer import Layer
from minidsv4.model.rope import Positions, frequencies
from minidsv4.ops import PLAIN, Ops
from minidsv4.visibility import Visibility

TINY = v4.Config.tiny()
TWO_LAYERS = TINY.replace(  # a window layer with a hash router, a CSA layer with a learned one
    num_hidden_layers=2,
    compress_ratios=(0, 3, 0),
    layer_types=(LayerKind.WINDOW, LayerKind.CSA, LayerKind.WINDOW),
    mlp_layer_types=(Routing.HASH, Routing.LEARNED),
)
CPU = torch.device("cpu")
both_tables = pytest.mark.parametrize("table", [PLAIN, FAST], ids=["plain", "fast"])
EXACT = 1e-10  # float64 rounds at 1e-16; a few layers and sums of some hundred terms make 1e-12 to 1e-13 of it


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers, the same ones for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def token_ids(n_batch: int, n_tokens: int, seed: int = 0, config: v4.Config = TINY) -> Tensor:
    """Random token ids [B, T]."""
    return torch.randint(config.vocab_size, (n_batch, n_tokens), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def disturb(module: nn.Module, seed: int = 0) -> nn.Module:
    """Move every parameter and router bias far from where it starts, so that no part is idle or uniform."""
    biases = [(name, buffer) for name, buffer in module.named_buffers() if name.endswith("bias")]
    for i, (name, tensor) in enumerate([*module.named_parameters(), *biases]):
        noise = normal(*tensor.shape, seed=1000 * seed + i)
        if name.endswith("embed.weight"):
            tensor.copy_(noise)
        elif tensor.ndim >= 2 and not name.endswith("ape"):
            tensor.copy_(noise * tensor.shape[-1] ** -0.5)  # products of unit size
        else:
            tensor.add_(0.3 * noise)
    return module


def small_model(config: v4.Config = TINY, seed: int = 0, dtype: torch.dtype = torch.float64) -> v4.Model:
    """A model of this config in this dtype, disturbed."""
    return disturb(v4.Model(config).to(dtype), seed)


def with_ops(module: nn.Module, table: Ops) -> nn.Module:
    """The module itself, every part of which now runs these operations."""
    for part in module.modules():
        if isinstance(part, Layer):
            part.ops = table
    return module


def numpy_of(module: nn.Module) -> dict:
    """The module's tensors as NumPy arrays under the released names, as `paper.py` wants them."""
    return {name: tensor.numpy() for name, tensor in to_released(module.state_dict()).items()}


def off(ours: Tensor, expected) -> float:
    """Largest difference in units of the largest expected value; NaN stays NaN and passes no comparison."""
    expected = torch.as_tensor(expected)
    assert ours.shape == expected.shape, (ours.shape, expected.shape)
    return ((ours - expected).abs().max() / expected.abs().max()).item()


def memory_of(kind: LayerKind, n_batch: int, config: v4.Config = TINY) -> LayerMemory:
    """An empty past of one layer, float64."""
    return new_layer_memory(config, kind, n_batch, torch.float64, CPU)


def positions_of(
    kind: LayerKind, n_tokens: int, start: int = 0, config: v4.Config = TINY, shift: int = 0, document_BT=None
) -> Positions:
    """The positions `start, start + 1, ...`; their turns are those of the same text `shift` tokens later."""
    speed_R = frequencies(config, kind, torch.float64, CPU)
    positions = Positions(speed_R, start + shift, n_tokens, shift, document_BT)
    positions.start = start
    positions.oldest = 0
    return positions


def one_document(n_tokens: int, start: int = 0, **fields) -> Visibility:
    """Who sees what in a call of `n_tokens` after `start` others, which the window holds as well."""
    fields = {"window": 7, "n_window": start + n_tokens} | fields
    return Visibility(start, n_tokens, device=CPU, **fields)


def assert_same_gradients(ours: dict, expected: dict) -> None:
    """Every parameter has the expected gradient, by name; zeros where that is zero, and none where there is none."""
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        if gradient is None or ours[name] is None:
            assert gradient is ours[name], name
        else:
            largest = gradient.abs().max().item()
            assert (ours[name] - gradient).abs().max() <= EXACT * (largest or 1.0), name


def off_all(ours: tuple, expected: tuple) -> float:
    """The largest `off` of two tuples; None, where a gradient was not asked for, agrees with None and with zeros."""
    differences = [0.0]
    for one, other in zip(ours, expected, strict=True):
        if one is None or other is None:
            given = [x for x in (one, other) if x is not None]
            differences += [x.abs().max().item() for x in given if x.numel()]
        elif other.numel() == 0 or (other == 0).all():
            assert one.shape == other.shape
            differences += [one.abs().max().item()] if one.numel() else []
        else:
            differences.append(off(one, other))
    return max(differences, key=lambda x: (x != x, x))  # NaN is the largest
