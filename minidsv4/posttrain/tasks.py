"""Tasks with answers that a program verifies, small enough for a model that a CPU trains in minutes.

A problem is a row of symbols. A state, one digit, begins at 0, and each symbol changes it: `sum` adds digits, `run`
executes a program of one-letter instructions, both modulo 10. The answer is the last state. Nothing short of the whole
row gives it, so a model that writes the states down as it goes has an easier time than one that answers at once: this
is what thinking is for. Report section 5.1 for rule-based rewards, spec of the chat format for prompts and replies.

Most of the writers whom the base model imitates take one symbol for another (`Task.misread`). Imitation cannot know
better; a verified answer does.
"""

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from minidsv4.serve.chat_format import Texts, encode, parse

N_SYMBOLS = 8  # of a problem
MISREAD = 0.6  # how often writers misread the symbol that they misread
EVERY = "Every step."
TEXTS = Texts(  # of the profile's modes "none" and "high" add no text, "max" adds `exhaustive`
    exhaustive=EVERY,
    stronger=EVERY,
    tools_usage="Call a tool.",
    tools_schemas="They are:",
    tools_closing="No others.",
    profile="preview",
)
MODES = ("none", "high", "max")
STRIDES = {"high": {1: 0.5, 2: 0.5}, "max": {1: 0.7, 2: 0.3}}  # shares of writers who write each, or each second, state


class Task(NamedTuple):
    """A family of problems.

    name     the first word of its prompts
    moves    what each symbol makes of a state
    misread  a symbol, and the one that most writers take it for
    """

    name: str
    moves: Mapping[str, Callable[[int], int]]
    misread: tuple[str, str]


def _adding(digit: int) -> Callable[[int], int]:
    return lambda state: (state + digit) % 10


SUM = Task("sum", {str(digit): _adding(digit) for digit in range(1, 10)}, misread=("7", "1"))
RUN = Task(
    "run",
    {
        "I": _adding(1),  # increment
        "H": _adding(5),  # half a turn
        "N": lambda state: 9 - state,  # negate
        "T": lambda state: 3 * state % 10,  # triple
    },
    misread=("T", "H"),
)
TASKS = {task.name: task for task in (SUM, RUN)}


class Problem(NamedTuple):
    """A row of symbols of one task, and how hard to think about it."""

    task: str
    symbols: str
    mode: str

    def question(self) -> str:
        """What the user writes."""
        return f"{self.task} {self.symbols}"

    def states(self, symbols: str | None = None) -> str:
        """The state after each symbol: of the problem's own, or as somebody read them."""
        state, found = 0, []
        for symbol in self.symbols if symbols is None else symbols:
            state = TASKS[self.task].moves[symbol](state)
            found.append(str(state))
        return "".join(found)

    def answer(self) -> str:
        """The right one."""
        return self.states()[-1]

    def prompt(self) -> str:
        """The text that the model goes on from."""
        messages = [{"role": "user", "content": self.question()}]
        return encode(messages, mode=self.mode, texts=TEXTS)


def generator_of(*names: object) -> random.Random:
    """Random numbers of their own for each purpose; the same on every machine and for every version of Python."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return random.Random(int.from_bytes(digest[:7], "big"))


def below(generator: random.Random, n: int) -> int:
    """A number from 0 to n - 1, by `random()` alone, whose numbers no version of Python changes."""
    return int(generator.random() * n)


def problem(generator: random.Random, task: str, mode: str, n_symbols: int = N_SYMBOLS) -> Problem:
    """A problem of a task, every symbol equally likely.

    raises  ValueError for a task or mode that there is not
    """
    if task not in TASKS or mode not in MODES:
        raise ValueError(f"problem: task = {task!r}, mode = {mode!r}; give one of {', '.join(TASKS)} and of {MODES}")
    symbols = [*TASKS[task].moves]
    return Problem(task, "".join(symbols[below(generator, len(symbols))] for _ in range(n_symbols)), mode)


def problems(seed: object, n: int, tasks: Sequence[str], modes: Sequence[str] = MODES) -> list[Problem]:
    """`n` problems, tasks and modes in turn; the same for the same seed."""
    generator = generator_of("problems", seed)
    kinds = [(task, mode) for mode in modes for task in tasks]
    return [problem(generator, *kinds[number % len(kinds)]) for number in range(n)]


def demonstration(generator: random.Random, given: Problem, misread: float = MISREAD) -> str:
    """A reply to a problem as one of many writers writes it, with the misreading that most of them have.

    misread  how likely each symbol that can be misread is
    """
    common, taken_for = TASKS[given.task].misread
    read = [taken_for if s == common and generator.random() < misread else s for s in given.symbols]
    states = given.states("".join(read))
    if given.mode == "none":
        return reply(states[-1])
    strides, point = STRIDES[given.mode], generator.random()
    stride = next(stride for stride, share in strides.items() if (point := point - share) < 0)
    return reply(states[-1], states[stride - 1 :: stride])


def reply(answer: str, reasoning: str | None = None) -> str:
    """What the model writes: reasoning where there is any, then the answer."""
    message = {"role": "assistant", "content": answer}
    mode = "none" if reasoning is None else "high"
    messages = [{"role": "user", "content": ""}, message | {"reasoning": reasoning or ""}]
    opened = encode(messages[:1], mode=mode, texts=TEXTS)
    return encode(messages, mode=mode, texts=TEXTS)[len(opened) :]


class Verdict(NamedTuple):
    """What a reply is worth: whether its answer is right, and how many characters of thinking led to it."""

    right: bool
    n_thought: int


def verdict(given: Problem, text: str) -> Verdict:
    """Whether a reply answers a problem; one that is no reply of the chat format does not."""
    try:
        message = parse(text, given.mode)
    except ValueError:
        return Verdict(False, len(text))
    return Verdict(message["content"] == given.answer(), len(message["reasoning"]))
