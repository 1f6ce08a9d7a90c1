"""The number types that a model's tensors are stored in: float32 stays float32 in a model of 16 bits."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

NARROW = (torch.bfloat16, torch.float16)
FLOATS = (torch.float32, torch.float64, *NARROW)


class Stored(nn.Module):
    """A module some of whose own tensors are released in float32.

    float32  names of its own parameters and buffers that stay in float32 where the model is held in 16 bits, whether
             it was cast to them or made so, by `torch.set_default_dtype`
    """

    float32: tuple[str, ...] = ()

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """What assigning a parameter calls: it is kept, in float32 if it has to be."""
        if param is not None and name in self.float32 and param.dtype in NARROW:
            param = nn.Parameter(param.detach().float(), param.requires_grad)
        super().register_parameter(name, param)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Keep a buffer, in float32 if it has to be."""
        if tensor is not None and name in self.float32 and tensor.dtype in NARROW:
            tensor = tensor.float()
        super().register_buffer(name, tensor, persistent)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """What `to`, `bfloat16`, `cuda` and the like call for every tensor.

        raises  ValueError for a type that no model computes in, with every tensor as it was
        """
        islands = [getattr(self, name) for name in self.float32]
        islands += [island.grad for island in islands if island.grad is not None]

        def convert(tensor: Tensor) -> Tensor:
            converted = fn(tensor)
            dtype = converted.dtype
            if dtype not in FLOATS and tensor.is_floating_point():
                raise ValueError(f"model: no model computes in {dtype}; the types are {named(FLOATS)}")
            if dtype in NARROW and any(tensor is island for island in islands):
                return tensor.to(converted.device, torch.float32)
            return converted

        return super()._apply(convert, recurse)


def named(dtypes: tuple[torch.dtype, ...]) -> str:
    """The types as a reader names them: float32, float64."""
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
