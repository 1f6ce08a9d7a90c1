"""Generated programs: small valid Python with what it prints, from a seed, the same on every machine.

What must come out the same everywhere learns from these. Programs are written from templates, or composed statement by
statement, by one class with one source of random numbers.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

PRINTED = "#> "  # begins each line that a program printed


class Program(NamedTuple):
    """A small valid Python program, and what it prints."""

    source: str
    output: str


def programs(seed: int, n: int, composed: bool = False) -> list[Program]:
    """`n` small programs, the same on every machine; fewer of the same seed are the first of more.

    seed      any integer
    composed  every second program is composed statement by statement; otherwise all come from templates
    returns   distinct in most cases; each runs in microseconds and prints a few lines
    raises    ValueError for n below 0
    """
    if n < 0:
        raise ValueError(f"programs: n = {n} cannot be made; it counts programs, from 0")
    return [run(_source(seed, number, composed)) for number in range(n)]


def _source(seed: int, number: int, composed: bool) -> str:
    """Program `number` of a seed."""
    if not composed:
        return _Writer(f"{seed}/{number}").filled()
    if number % 2 == 0:
        return _Writer(f"{seed}/{number // 2}").filled()
    return _Writer(f"varied {seed}/{number // 2}").composed()


def run(source: str) -> Program:
    """Run a source that `_Writer` wrote, and collect what it prints."""
    lines: list[str] = []
    exec(source, {"print": lambda *values: lines.append(" ".join(map(str, values)))})
    return Program(source, "".join(f"{line}\n" for line in lines))


def document(program: Program) -> str:
    """A program's source, then what it prints as comments: a text that is itself valid Python."""
    return program.source + "".join(f"{PRINTED}{line}\n" for line in program.output.splitlines())


_SHORT_WORDS = "red green blue cat dog bird sun moon star tree leaf root north south east west".split()
_SHORT_NAMES = "a b c n x y total value items words".split()
# {i}, {j}: numbers from 1 to 20; {k}: 2 to 5; {l}: a list of numbers; {w}: a word; {s}: a list of words; {v}: a name.
_TEMPLATES = """\
{v} = {i} + {j} * {k}
print({v})
print({v} % {k})
---
{v} = {l}
for item in {v}:
    if item % {k} == 0:
        print(item)
print(len({v}))
---
total = 0
for number in range({k}, {i} + {k}):
    total += number * {k}
print(total)
---
def double(x):
    return {k} * x + {j}


for x in range({k}):
    print(double(x))
---
def largest(values):
    best = values[0]
    for value in values:
        if value > best:
            best = value
    return best


print(largest({l}))
---
def gcd(a, b):
    while b:
        a, b = b, a % b
    return a


print(gcd({i} * {k}, {j} * {k}))
---
def fact(n):
    if n < 2:
        return 1
    return n * fact(n - 1)


print(fact({k}))
print(fact({k} + 1))
---
def fib(n):
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a


print(fib({i}))
---
{v} = '{w}'
print({v}.upper())
print(len({v}))
print({v}[::-1])
---
words = {s}
print(sorted(words))
print(' '.join(words))
print([len(word) for word in words])
---
{v} = sorted({l})
print({v})
print({v}[0], {v}[-1])
print(sum({v}))
---
counts = {{}}
for letter in '{w}':
    counts[letter] = counts.get(letter, 0) + 1
print(counts)
---
{v} = [x * x for x in {l} if x > {i}]
print({v})
print(len({v}))
---
n, steps = {i} + {k}, 0
while n > 1:
    n = n // 2 if n % 2 == 0 else 3 * n + 1
    steps += 1
print(steps)
---
pairs = dict(zip({s}, {l}))
for key in pairs:
    print(key, pairs[key])
---
class Counter:
    def __init__(self, start):
        self.value = start

    def add(self, step):
        self.value += step
        return self.value


counter = Counter({i})
print(counter.add({j}))
print(counter.add({k}))
""".split("---\n")

_VARIABLES = "a b c d i j k m n x y z total count value number result size left right".split()
_FUNCTIONS = "add scale combine update apply step score compute check measure convert shift".split()
_LISTS = "values items numbers data row points queue".split()
_SHOWN = ("sum({0})", "len({0})", "sorted({0})", "{0}[-1]", "max({0})", "{0}[::-1]", "[x * x for x in {0}]")
_WORDS = "apple river stone cloud music paper green light house train table winter summer north".split()


class _Writer:
    """Writes one program; its numbers stay small, its loops end, and every name is set before it is read."""

    def __init__(self, seed: str):
        self.generator = random.Random(seed)
        self.numbers: list[str] = []
        self.lists: list[str] = []

    def below(self, n: int) -> int:
        """A number from 0 to n - 1, by `random()`, whose numbers no version of Python changes."""
        return int(self.generator.random() * n)

    def pick(self, choices: Sequence) -> object:
        """One of the choices."""
        return choices[self.below(len(choices))]

    def filled(self) -> str:
        """A template with its blanks filled."""
        values = [self.below(30) for _ in range(3 + self.below(3))]
        words = [self.pick(_SHORT_WORDS) for _ in range(2 + self.below(3))]
        blanks = {"i": 1 + self.below(20), "j": 1 + self.below(20), "k": 2 + self.below(4), "l": values, "s": words}
        blanks |= {"w": self.pick(_SHORT_WORDS), "v": self.pick(_SHORT_NAMES)}
        return self.pick(_TEMPLATES).format(**blanks)

    def composed(self) -> str:
        """Some statements, one after the other, and a last line that prints a number."""
        lines = self.assign()
        for _ in range(1 + self.below(4)):
            lines += self.pick((self.assign, self.function, self.loop, self.listing, self.branch, self.text))()
        return "\n".join([*lines, f"print({self.pick(self.numbers)})", ""])

    def atom(self) -> str:
        return str(self.below(20)) if not self.numbers or self.below(2) else self.pick(self.numbers)

    def expression(self) -> str:
        first = self.atom()
        second = self.atom()
        small = 2 + self.below(8)
        forms = ("{0}", "{0} + {1}", "{0} - {1}", "{0} * {2}", "{0} % {2}", "{0} // {2}", "({0} + {1}) % {2}")
        return self.pick((*forms, "abs({0} - {1})", "max({0}, {1})", "min({0}, {2})")).format(first, second, small)

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
        shown = self.pick(_SHOWN)
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
