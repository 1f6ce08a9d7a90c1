"""How a mistake takes the place of what is right, and goes away again."""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest.mock import patch

from torch import Tensor, nn

BOTH = ("agrees_with_transformers", "agrees_with_paper")
SEES_AHEAD = (*BOTH, "chunks_equal_one_pass", "later_tokens_change_nothing_before")


@dataclass(frozen=True)
class Mutant:
    """One mistake; `wrong` takes the place of each `(owner, attribute)` in `places`."""

    name: str
    traps: tuple[int, ...]
    mistake: str
    symptom: str
    found: str
    killed_by: tuple[str, ...]
    places: tuple[tuple[object, str], ...]
    wrong: Callable


MUTANTS: dict[str, Mutant] = {}


@contextmanager
def mutant(name: str) -> Iterator[Mutant]:
    """Inside this context every model makes the mistake called `name`; mutants may be nested.

    raises  ValueError for a name that is not in `MUTANTS`
    """
    if name not in MUTANTS:
        raise ValueError(f"mutant: {name!r} is not in the museum; it has {', '.join(MUTANTS)}")
    with ExitStack() as stack:
        for owner, attribute in MUTANTS[name].places:
            stack.enter_context(
                patch.object(owner, attribute, _instead(getattr(owner, attribute), MUTANTS[name].wrong))
            )
        yield MUTANTS[name]


def _instead(right: Callable, wrong: Callable) -> Callable:
    @functools.wraps(right)
    def call(*args, **kwargs):
        return wrong(right, *args, **kwargs)

    return call


def trap(*numbers: int, at: list, symptom: str, found: str = "", killed_by: tuple[str, ...] = BOTH) -> Callable:
    """Put the decorated function into the museum, under its own name."""

    def register(wrong: Callable) -> Callable:
        name, mistake = wrong.__name__, " ".join(wrong.__doc__.split())
        MUTANTS[name] = Mutant(name, numbers, mistake, symptom, found, killed_by, tuple(at), wrong)
        return wrong

    return register


@contextmanager
def with_parts(module: nn.Module, **parts) -> Iterator[None]:
    """Other attributes for one call of a module."""
    before = {name: getattr(module, name) for name in parts}
    try:
        for name, part in parts.items():
            setattr(module, name, part)
        yield
    finally:
        for name, part in before.items():
            setattr(module, name, part)


def coarse(x: Tensor) -> Tensor:
    """The same numbers with the digits that bfloat16 keeps."""
    return x.bfloat16().to(x.dtype)
