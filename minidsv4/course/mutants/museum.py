"""How a mistake takes the place of what is right, and goes away again."""

import difflib
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from unittest.mock import patch

from torch import Tensor

from minidsv4 import ops
from minidsv4.fast import FAST
from minidsv4.ops import PLAIN, Ops

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

    @property
    def room(self) -> str:
        """The room of the museum: the module that holds the mistake, such as "rotary"."""
        return self.wrong.__module__.rpartition(".")[2]


MUTANTS: dict[str, Mutant] = {}


def mutant(name: str) -> AbstractContextManager[Mutant]:
    """A context inside which every model runs the operations of `ops.py` and makes the mistake called `name`.

    Mutants may be nested.

    raises  ValueError, at the call, for a name that is not in `MUTANTS`; it lists those that are spelled alike
    """
    return at_work(known(name))


@contextmanager
def at_work(bug: Mutant) -> Iterator[Mutant]:
    """The context of `mutant`, for any mistake."""
    with ExitStack() as stack:
        for place, operation in enumerate(Ops._fields):
            stack.enter_context(patch.object(Ops, operation, property(functools.partial(_readable, place=place))))
        for owner, attribute in bug.places:
            wrong = _instead(getattr(owner, attribute), bug.wrong)
            stack.enter_context(patch.object(owner, attribute, wrong))
        yield bug


def known(name: object) -> Mutant:
    """The mutant of this name.

    raises  ValueError for anything else; it lists the names that are spelled alike, or all where none is
    """
    if isinstance(name, str) and name in MUTANTS:
        return MUTANTS[name]
    alike = difflib.get_close_matches(str(name).replace(" ", "_"), MUTANTS)
    raise ValueError(f"mutant: {name!r} is not in the museum; it has {', '.join(alike or MUTANTS)}")


def _readable(table: Ops, place: int) -> Callable[..., Tensor]:
    """What `ops.py` holds at this moment in place of a table's own; a wrapper around an operation stays."""
    operation = tuple.__getitem__(table, place)
    known = tuple.__getitem__(PLAIN, place), tuple.__getitem__(FAST, place)
    return getattr(ops, Ops._fields[place]) if operation in known else operation


def _instead(right: Callable, wrong: Callable) -> Callable:
    @functools.wraps(right)
    def call(*args, **kwargs):
        return wrong(right, *args, **kwargs)

    return call


def trap(*numbers: int, at: list, symptom: str, found: str = "", killed_by: tuple[str, ...] = BOTH) -> Callable:
    """Put the decorated function into the museum, under its own name."""

    def register(wrong: Callable) -> Callable:
        name = wrong.__name__
        mistake = " ".join(wrong.__doc__.split())
        MUTANTS[name] = Mutant(name, numbers, mistake, symptom, found, killed_by, tuple(at), wrong)
        return wrong

    return register


def coarse(x: Tensor) -> Tensor:
    """The same numbers with the digits that bfloat16 keeps."""
    return x.bfloat16().to(x.dtype)
