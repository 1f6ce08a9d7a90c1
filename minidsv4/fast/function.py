"""The base of the hand-written gradients, which says what they cannot do; constants that are made once."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

Result = TypeVar("Result")
HAND_WRITTEN = "ops: the fast form of {} has a hand-written gradient, which {}; call model.use(PLAIN) first"
NOT_FORWARD = "takes no part in torch.func or forward mode"
NOT_TRACED = "ops: the fast forms have gradients that torch.compile does not trace; call model.use(PLAIN) first"
NO_NUMBERS = "ops: the fast forms look at numbers, and {} has none; call model.use(PLAIN) first"


def cached(function: Callable[..., Result]) -> Callable[..., Result]:
    """`function`, which makes constants, asked once for the same arguments.

    Where tensors are stand-ins (`torch.export`, `torch.compile`, a fake mode, `torch.func.functionalize`) none of them
    is kept, and none that was kept is given.
    """
    remember = functools.lru_cache(maxsize=64)(function)

    @functools.wraps(function)
    def call(*arguments: Any) -> Result:
        return function(*arguments) if stands_in() else remember(*arguments)

    return call


def stands_in() -> bool:
    """Whether a tensor that is made now only stands for one."""
    if torch.compiler.is_compiling():
        return True
    made = torch.empty(0, dtype=torch.bool)
    return type(made) is not Tensor or torch._is_functional_tensor(made)


def need_numbers(x: Tensor) -> None:
    """Raise ValueError where no tensor holds numbers: on the meta device, in `torch.export`, in a fake mode."""
    exporting = torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()
    if exporting or x.is_meta:
        raise ValueError(NO_NUMBERS.format("a trace of torch.export" if exporting else "the meta device"))
    if isinstance(x, FakeTensor):
        raise ValueError(NO_NUMBERS.format("a fake tensor"))


def only_numbers(x: Tensor) -> bool:
    """Whether nothing is asked for but numbers: no gradient of any kind, no trace, and `x` is no stand-in."""
    return (
        not torch.is_grad_enabled()
        and type(x) is Tensor
        and not x.is_meta
        and forward_ad._current_level < 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch.compiler.is_compiling()
    )


class NoContext:
    """What a forward keeps for its gradient where there will be none."""

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Nothing is kept."""


class FastFunction(torch.autograd.Function):
    """An `autograd.Function` whose refusals of `torch.func` and of forward mode name the way out."""

    @classmethod
    def run(cls, *arguments) -> Tensor:
        """`apply`; the forward alone where no gradient is asked for, which a decoding step runs some twenty times.

        raises  ValueError inside `torch.func` transforms, under forward-mode differentiation, and without numbers
        """
        if only_numbers(arguments[0]):
            return cls.forward(NoContext(), *arguments)
        if torch.compiler.is_dynamo_compiling():  # the words are shown where `fullgraph=True` forbids a break
            torch._dynamo.graph_break(msg=NOT_TRACED)
        need_numbers(arguments[0])
        if any(isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in arguments):
            raise ValueError(HAND_WRITTEN.format(cls.__name__, NOT_FORWARD))
        try:
            return cls.apply(*arguments) if torch.is_grad_enabled() else cls.forward(NoContext(), *arguments)
        except RuntimeError as error:
            if "functorch" not in str(error):
                raise
            raise ValueError(HAND_WRITTEN.format(cls.__name__, NOT_FORWARD)) from error


def first_derivative_only(backward: Callable) -> Callable:
    """A backward that refuses at once to build a graph of its own.

    torch's `once_differentiable` speaks only when its error is reached: `torch.autograd.grad` for given inputs passes
    it by, and returns second derivatives from which terms are missing.
    """

    @functools.wraps(backward)
    def checked(ctx, *gradients: Tensor):
        if torch.is_grad_enabled():  # create_graph=True
            name = type(ctx).__name__.removesuffix("Backward")
            raise ValueError(HAND_WRITTEN.format(name, "gives first derivatives only"))
        with contextlib.ExitStack() as stack:
            for device in filter(torch.is_autocast_enabled, ("cpu", "cuda")):
                stack.enter_context(torch.autocast(device, enabled=False))  # as its forward ran
            return backward(ctx, *gradients)

    return checked
