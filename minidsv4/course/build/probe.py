"""Two questions to an answer that is wrong in an unknown way: what does it leave unused, and does it look ahead?

Both are put by changing the inputs and comparing before and after, for the reader's answer and for the right one.
"""

import copy
import inspect
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from minidsv4.course.build.compare import close, parts
from minidsv4.course.build.steps import Step


def leaves_unused(step: Step, answer: Callable, arguments: tuple) -> str | None:
    """A sentence on the first input or weight on which the right answer depends, and this one does not."""
    before = run(answer, arguments)
    right = run(step.right, arguments)
    for name, other in varied(step, arguments):
        if unlike(run(step.right, other), right) and not unlike(run(answer, other), before):
            return f"It makes no use of `{name}`."
    return None


def looks_ahead(step: Step, answer: Callable, arguments: tuple) -> str | None:
    """A sentence where the last token changes what is given for tokens before it, and should not."""
    names = list(inspect.signature(step.right).parameters)
    series = [i for i, name in enumerate(names[: len(arguments)]) if "_BT" in name and arguments[i].shape[1] > 1]
    if not series or any("T" not in axes[:2] for axes in step.axes):
        return None
    other = list(copy.deepcopy(arguments))
    for i in series:
        other[i][:, -1] = other[i][:, 0]
    pairs = [(run(function, tuple(other)), run(function, arguments)) for function in (answer, step.right)]
    ahead, right_ahead = (unlike(*([part[:, :-1] for part in answers] for answers in pair)) for pair in pairs)
    if ahead and not right_ahead:
        return "It looks ahead: what it gives for a token changes with later tokens."
    return None


def varied(step: Step, arguments: tuple) -> Iterator[tuple[str, tuple]]:
    """The name of each input, and of each weight that the part reads, and the arguments with only this one changed."""
    generator = torch.Generator().manual_seed(0)
    names = list(inspect.signature(step.right).parameters)
    for i, argument in enumerate(arguments):
        if isinstance(argument, nn.Module):
            weights = argument.named_parameters() if step.weighs else ()
            for name, _ in weights:
                other = copy.deepcopy(arguments)
                weight = other[i].get_parameter(name)
                weight.data += torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
                yield name.removesuffix(".weight"), other
        elif torch.is_tensor(argument) or isinstance(argument, float):
            other = list(copy.deepcopy(arguments))
            other[i] = changed(argument, generator)
            yield names[i], tuple(other)


def changed(argument: Tensor | float, generator: torch.Generator) -> Tensor | float:
    """Another value of the same kind."""
    if isinstance(argument, float):
        return 2 * argument
    if argument.dtype == torch.bool:
        return ~argument
    if not argument.is_floating_point():
        return argument.roll(1, dims=-1)
    return argument + torch.randn(argument.shape, generator=generator, dtype=argument.dtype)


def run(function: Callable, arguments: tuple) -> tuple:
    """What the function gives for copies of the arguments."""
    return parts(function(*copy.deepcopy(arguments)))


def unlike(one: tuple, other: tuple) -> bool:
    """Whether any part is different."""
    return not all(close(*pair, within=0.0) for pair in zip(one, other, strict=True))
