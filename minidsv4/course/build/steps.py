"""A step of the track: what the reader writes, fresh inputs for it, the package's answer, and known wrong answers.

A step is filled by decorators. `draw` yields the arguments of a few cases, new ones at every check; `right` gives the
package's answer to them; each `mistake` gives a wrong one, and its docstring is what the reader is told. Mistakes that
the bug museum holds are named, not written again: they are `right` inside `mutant(name)`.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minidsv4.course.mutants import MUTANTS, mutant


class Draw:
    """Random numbers of one check; the same for the same seed."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        self.chance = random.Random(seed)

    def normal(self, *shape: int) -> Tensor:
        """Normal numbers, float64."""
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def whole(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`."""
        return self.chance.randint(low, high)

    def sizes(self, n: int, low: int = 2, high: int = 9) -> list[int]:
        """`n` different sizes, so that no two axes can be taken for each other."""
        return self.chance.sample(range(low, high + 1), n)

    def ids(self, n_batch: int, n_tokens: int, n_words: int) -> Tensor:
        """Token ids [B, T]."""
        return torch.randint(n_words, (n_batch, n_tokens), generator=self.generator)


@dataclass(frozen=True)
class Mistake:
    """A known wrong answer: what the reader is told, and the function that gives it."""

    name: str
    told: str
    answer: Callable


@dataclass
class Step:
    """One thing to write.

    name    by which it is checked
    target  the function or method in the reader's file
    axes    letters of each tensor that it returns, such as "BTHK"
    needs   names of steps that a right answer calls
    parts   names of the tensors, where there are several
    weighs  whether the part itself reads weights; False where it calls a model that has them
    """

    name: str
    target: str
    axes: tuple[str, ...]
    needs: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    weighs: bool = True
    draw: Callable | None = None
    right: Callable | None = None
    run: Callable | None = None
    explain: Callable | None = None
    mistakes: list[Mistake] = field(default_factory=list)

    def cases(self, function: Callable[[Draw], Iterator[tuple]]) -> Callable:
        """Take a generator of arguments."""
        self.draw = function
        return function

    def answer(self, function: Callable) -> Callable:
        """Take the package's answer to such arguments."""
        self.right = function
        return function

    def by(self, function: Callable) -> Callable:
        """Take the call of the reader's part, `function(reader's module, *arguments)`, where it is not a plain one."""
        self.run = function
        return function

    def mistake(self, function: Callable) -> Callable:
        """Take a known wrong answer."""
        self.mistakes.append(Mistake(function.__name__, sentence(function.__doc__), function))
        return function

    def museum(self, *names: str) -> None:
        """Take mistakes of the bug museum."""
        for name in names:
            self.mistakes.append(Mistake(name, MUTANTS[name].mistake, self._inside(name)))

    def explanation(self, function: Callable) -> Callable:
        """Take a function from (arguments, given, due) to a sentence, or None."""
        self.explain = function
        return function

    def _inside(self, name: str) -> Callable:
        def answer(*arguments):
            with mutant(name):
                return self.right(*arguments)

        return answer

    def call(self, reader, *arguments):
        """What the reader's part gives."""
        if self.run is not None:
            return self.run(reader, *arguments)
        return getattr(reader, self.target)(*arguments)


STEPS: dict[str, Step] = {}


def step(
    name: str, *axes: str, target: str | None = None, needs: str = "", parts: str = "", weighs: bool = True
) -> Step:
    """A new step, entered into `STEPS`."""
    made = Step(name, target or name, axes, tuple(needs.split()), tuple(parts.split()), weighs)
    STEPS[name] = made
    return made


def sentence(text: str) -> str:
    """A docstring in one line."""
    return " ".join(text.split())


def random_angles(draw: Draw, *shape: int) -> Tensor:
    """Angles of all sizes, in radians."""
    return math.pi * draw.normal(*shape)
