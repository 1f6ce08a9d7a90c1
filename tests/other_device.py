"""A device that is none: its tensors hold their numbers on the CPU, and refuse what those of an accelerator refuse.

That is an operation on tensors of two devices, NumPy, and float64, which Apple's MPS does not have.
"""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

OTHER = torch.device("lazy", 0)
NO_TENSOR = {type(None), int, float, bool, torch.dtype, torch.device}  # most arguments are one of these: asked first
TREES = (list, tuple)


class There(torch.Tensor):
    """A tensor that says that it is on OTHER, and holds its numbers on the CPU."""

    @staticmethod
    def __new__(cls, held):
        if held.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        settings = {"dtype": held.dtype, "device": OTHER, "strides": held.stride()}
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, storage_offset=held.storage_offset(), **settings)

    def __init__(self, held):
        self.held = held

    def __repr__(self):
        return f"There({self.held})"

    def tolist(self):
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return computed(function, args, kwargs or {})


def changed(change, value):
    """`change` of each tensor in a value, and of those in its lists, tuples and dicts; all else as it is.

    torch's own `tree_map` knows more kinds of trees, and took half of the time of these tests.
    """
    if type(value) in NO_TENSOR:
        return value
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, TREES):
        return type(value)([changed(change, part) for part in value])
    if isinstance(value, dict):
        return {name: changed(change, part) for name, part in value.items()}
    return value


def held(tensor):
    """The tensor that holds the numbers: on the CPU."""
    return tensor.held if isinstance(tensor, There) else tensor


def computed(function, args, kwargs):
    """The operation on the held numbers; its tensors are all on one device, but for single numbers of the CPU."""
    tensors = []
    changed(tensors.append, args)
    changed(tensors.append, kwargs)
    there = any(isinstance(tensor, There) for tensor in tensors)
    asked = kwargs.get("device")
    if not there and asked is None:
        return function(*args, **kwargs)
    moves = function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
    if there and not moves and any(not isinstance(tensor, There) and tensor.ndim for tensor in tensors):
        raise RuntimeError(f"{function}: Expected all tensors to be on the same device, but found two")
    if asked is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    result = function(*changed(held, args), **changed(held, kwargs))
    if function._schema.is_mutable:
        given = {id(value.held): value for value in tensors if isinstance(value, There)}
        return changed(lambda value: given.get(id(value), value), result)
    goes = there if asked is None else torch.device(asked).type == OTHER.type
    return changed(lambda value: There(value.resolve_conj()), result) if goes else result


class OtherDevice(TorchDispatchMode):
    """Inside, tensors can be made on OTHER and moved there."""

    def __enter__(self):
        self.numbers = Numbers()
        self.numbers.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.numbers.__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return computed(function, args, kwargs or {})


class Numbers(TorchFunctionMode):
    """Inside, `torch.tensor` and `new_tensor` make tensors here and move them, since they ask no other mode."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.Tensor.new_tensor:
            return torch.tensor(*args[1:], dtype=args[0].dtype).to(args[0].device)
        if function is not torch.tensor:
            return function(*args, **kwargs)
        device = kwargs.pop("device", None)
        return function(*args, **kwargs).to(device)
