"""What is generated for the model to read: varied programs with what they print, and tasks with planted dependencies.

B batch, T tokens. All from a seed, by numbers that no version of Python or torch changes; so at toy size, where real
text says little about long contexts, the distance between a question and what answers it can be set.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

from minidsv4.train.data import Program, programs, run

PRINTED = "#> "  # begins each line that a program printed


def document(program: Program) -> str:
    """A program's source, then what it prints as comments: a text that is itself valid Python."""
    return program.source + "".join(f"{PRINTED}{line}\n" for line in program.output.splitlines())


def varied_programs(seed: int, n: int) -> list[Program]:
    """`n` programs: in turn a template's and one that is put together statement by statement.

    The same on every machine; fewer of the same seed are the first of more. Each runs in microseconds.
    """
    from_templates = programs(seed, n)[: (n + 1) // 2]
    composed = [run(_Writer(random.Random(f"varied {seed}/{number}")).program()) for number in range(n // 2)]
    return [program for pair in zip(from_templates, composed) for program in pair] + from_templates[len(composed) :]


_VARIABLES = "a b c d i j k m n x y z total count value number result size left right".split()
_FUNCTIONS = "add scale combine update apply step score compute check measure convert shift".split()
_LISTS = "values items numbers data row points queue".split()
_SHOWN = ("sum({0})", "len({0})", "sorted({0})", "{0}[-1]", "max({0})", "{0}[::-1]", "[x * x for x in {0}]")
_WORDS = "apple river stone cloud music paper green light house train table winter summer north".split()


class _Writer:
    """Writes one program; its numbers stay small, its loops end, and every name is set before it is read."""

    def __init__(self, chance: random.Random):
        self.chance, self.numbers, self.lists = chance, [], []

    def below(self, n: int) -> int:
        return int(self.chance.random() * n)

    def pick(self, choices: Sequence) -> object:
        return choices[self.below(len(choices))]

    def program(self) -> str:
        lines = self.assign()
        for _ in range(1 + self.below(4)):
            lines += self.pick((self.assign, self.function, self.loop, self.listing, self.branch, self.text))()
        return "\n".join([*lines, f"print({self.pick(self.numbers)})", ""])

    def atom(self) -> str:
        return str(self.below(20)) if not self.numbers or self.below(2) else self.pick(self.numbers)

    def expression(self) -> str:
        left, right, small = self.atom(), self.atom(), 2 + self.below(8)
        forms = ("{0}", "{0} + {1}", "{0} - {1}", "{0} * {2}", "{0} % {2}", "{0} // {2}", "({0} + {1}) % {2}")
        return self.pick((*forms, "abs({0} - {1})", "max({0}, {1})", "min({0}, {2})")).format(left, right, small)

    def condition(self) -> str:
        small = 2 + self.below(8)
        forms = ("{0} > {1}", "{0} < {1}", "{0} == {1}", "{0} % {2} == 0", "not {0} % {2}")
        return self.pick(forms).format(self.atom(), self.atom(), small)

    def assign(self) -> list[str]:
        name, value = self.pick(_VARIABLES), self.expression()
        self.numbers.append(name)
        return [f"{name} = {value}"]

    def listing(self) -> list[str]:
        name, values = self.pick(_LISTS), [self.below(30) for _ in range(2 + self.below(4))]
        self.lists.append(name)
        shown = self.pick(
            ("sum({0})", "len({0})", "sorted({0})", "{0}[-1]", "max({0})", "{0}[::-1]", "[x * x for x in {0}]")
        )
        return [f"{name} = {values}", f"print({shown.format(name)})"]

    def loop(self) -> list[str]:
        name, counter = self.pick(_VARIABLES), self.pick("ijk")
        over = self.pick(self.lists) if self.lists and self.below(2) else f"range({2 + self.below(5)})"
        start = self.below(10)
        self.numbers.append(name)
        if name == counter:
            return [f"for {counter} in {over}:", f"    print({counter} + {start})", f"{name} = {start}"]
        body = [f"    {name} += {counter}"]
        if self.below(2):
            body = [f"    if {counter} % {2 + self.below(3)} == 0:", f"        {name} += {1 + self.below(5)}"]
        return [f"{name} = {start}", f"for {counter} in {over}:", *body, f"print({name})"]

    def branch(self) -> list[str]:
        name = self.pick(_VARIABLES)
        lines = [
            f"if {self.condition()}:",
            f"    {name} = {self.expression()}",
            "else:",
            f"    {name} = {self.expression()}",
        ]
        self.numbers.append(name)
        return [*lines, f"print({name})"]

    def function(self) -> list[str]:
        name, first, second, small = self.pick(_FUNCTIONS), "x", "y", 1 + self.below(9)
        form = self.pick(("{0} + {1} * {2}", "({0} - {1}) * {2}", "{0} * {2} + {1}", "max({0}, {1}) - {2}"))
        lines = [f"def {name}({first}, {second}):"]
        if self.below(2):
            lines += [f"    if {first} > {second}:", f"        return {first} - {self.below(10)}"]
        value = form.format(first, second, small)
        call = f"print({name}({self.atom()}, {self.atom()}))"
        return ["", "", *lines, f"    return {value}", "", "", call]

    def text(self) -> list[str]:
        word, other = self.pick(_WORDS), self.pick(_WORDS)
        forms = ("print('{0}' + '{1}')", "print('{0}'.upper())", "print(len('{0} {1}'))", "print('{0}'[{2}:])")
        form = self.pick((*forms, "print('{1}' in '{0}')", "print(f'{0} {{{2} + {2}}}')"))
        return [form.format(word, other, self.below(4))]


class Task(NamedTuple):
    """One sequence of token ids, and the places whose tokens are to be predicted from what is planted before them."""

    ids: list[int]
    asked: list[int]


MARK, ASK = 2, 3  # before what is planted, and before what is asked for
_FIRST = 4  # the other ids are shared out: a third are keys, a third values, the rest filler


def recall(seed: int, length: int, distance: int, vocab_size: int, n_pairs: int = 1) -> Task:
    """Filler with pairs `MARK key value` in it; at its end `ASK key` and, to be predicted, that key's value.

    distance  tokens from the planted value to the place where it is asked for, from 3
    n_pairs   pairs with keys of their own; the others lie anywhere
    raises    ValueError where they do not fit
    """
    chance, third = random.Random(f"recall {seed}"), (vocab_size - _FIRST) // 3
    planted = length - 3 - distance  # where MARK stands; the other pairs lie whole triples before or after it
    free = [place for place in range(planted % 3, length - 5, 3) if place != planted]
    if distance < 3 or planted < 0 or not 1 <= n_pairs <= min(third, 1 + len(free)):
        raise ValueError(
            f"recall: distance = {distance} and n_pairs = {n_pairs} do not fit {length} tokens and {vocab_size} ids"
        )
    ids = _filler(chance, length, vocab_size)
    keys = _drawn(chance, range(_FIRST, _FIRST + third), n_pairs)
    for key, place in zip(keys, [planted, *_drawn(chance, free, n_pairs - 1)]):
        ids[place : place + 3] = [MARK, key, _FIRST + third + int(chance.random() * third)]
    ids[-3:] = [ASK, keys[0], ids[planted + 2]]
    return Task(ids, [length - 1])


def copy(seed: int, length: int, distance: int, vocab_size: int, n_copied: int = 8) -> Task:
    """`MARK` and some values, filler, and at the end `ASK` and the same values in their order, all to be predicted.

    distance  tokens from each value to the place where it is asked for, above `n_copied`
    raises    ValueError where they do not fit
    """
    chance, third = random.Random(f"copy {seed}"), (vocab_size - _FIRST) // 3
    planted = length - 1 - n_copied - distance
    if not 1 <= n_copied < distance or planted < 0:
        raise ValueError(f"copy: distance = {distance} and n_copied = {n_copied} do not fit {length} tokens")
    ids = _filler(chance, length, vocab_size)
    values = [_FIRST + third + int(chance.random() * third) for _ in range(n_copied)]
    ids[planted : planted + 1 + n_copied] = [MARK, *values]
    ids[-1 - n_copied :] = [ASK, *values]
    return Task(ids, list(range(length - n_copied, length)))


def _filler(chance: random.Random, n: int, vocab_size: int) -> list[int]:
    """Ids that are neither keys nor values."""
    first = _FIRST + (vocab_size - _FIRST) // 3 * 2
    return [first + int(chance.random() * (vocab_size - first)) for _ in range(n)]


def _drawn(chance: random.Random, choices: Sequence[int], n: int) -> list[int]:
    """So many different ones, by `random()` alone, whose numbers Python never changes."""
    return sorted(choices, key=lambda _: chance.random())[:n]
