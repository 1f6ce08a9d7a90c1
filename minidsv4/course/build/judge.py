"""How a step of the reader's file stands: not written yet, wrong and in which way, or right."""

import copy
import inspect
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import torch

from minidsv4.course.build import reader
from minidsv4.course.build.compare import close, form_fault, parts, value_fault
from minidsv4.course.build.probe import leaves_unused, looks_ahead
from minidsv4.course.build.steps import Draw, Step
from minidsv4.course.build.track import TARGETS, TRACK

OPEN, WRONG, WAITS, RIGHT = "not written yet", "not right yet", "waits", "right"


@dataclass(frozen=True)
class Verdict:
    """How a step stands, and what there is to say about it."""

    step: Step
    state: str
    told: str = ""

    def __str__(self):
        if self.state == RIGHT:
            return f"✓ {self.step.name}: right, {self.told}"
        return f"{self.step.name}: {self.state}" + (f". {self.told}" if self.told else "")


class Judge:
    """Judges steps of one state of the file; what a step needs is judged before it, once."""

    def __init__(self, module: ModuleType, seed: int | None = None):
        self.module = module
        self.seed = secrets.randbits(31) if seed is None else seed
        self.known: dict[str, Verdict] = {}

    def verdict(self, name: str) -> Verdict:
        """How the step of this name stands."""
        if name not in self.known:
            with float64():
                self.known[name] = self._judge(TRACK[name])
        return self.known[name]

    def _judge(self, step: Step) -> Verdict:
        own = self._answer(step)
        if isinstance(own, Verdict) and own.state == OPEN:
            return own
        for needed in step.needs:
            first = self.verdict(needed)
            if first.state == WAITS:
                return Verdict(step, WAITS, first.told)
            if first.state != RIGHT:
                needs = f"It needs `{TRACK[needed].target}`, which is {first.state}"
                return Verdict(step, WAITS, f"{needs}: see build.check({needed!r}).")
        return own if isinstance(own, Verdict) else self._compare(step, own)

    def _answer(self, step: Step) -> Verdict | list[tuple]:
        """Arguments and answers of every case, or a verdict where there are none."""
        answers = []
        for arguments in step.draw(Draw(self.seed)):
            before = copy.deepcopy(arguments)
            try:
                given = step.call(self.module, *arguments)
            except (Exception, SystemExit) as error:  # a reader's code raises what it likes
                return self._raised(step, error, before)
            if name := changed(step, before, arguments):
                return Verdict(step, WRONG, f"It changes `{name}` in place. The caller still needs it as it was.")
            answers.append((before, given))
        return answers

    def _raised(self, step: Step, error: BaseException, arguments: tuple) -> Verdict:
        """The verdict on an exception that these arguments brought about."""
        path = self.module.__file__
        place = reader.place_of(error, path)
        if isinstance(error, NotImplementedError) and place is not None:
            if place == step.target or place not in TARGETS:
                return Verdict(step, OPEN)
            return Verdict(step, WAITS, f"It needs `{place}`, which is {OPEN}.")
        if place is None and not hasattr(self.module, step.target.split(".")[0]):
            return Verdict(step, WRONG, f"The file has no `{step.target.split('.')[0]}`.")
        return Verdict(step, WRONG, reader.told(error, path) + shapes(step, arguments))

    def _compare(self, step: Step, answers: list[tuple]) -> Verdict:
        """The verdict on answers: right, or the mistake that fits them all, or what is plain to see."""
        due = [parts(step.right(*copy.deepcopy(arguments))) for arguments, _ in answers]
        if all(all_close(given, wanted) for (_, given), wanted in zip(answers, due)):
            n = len(answers)
            return Verdict(step, RIGHT, f"on {n} fresh input{'s' if n > 1 else ''}")
        return Verdict(
            step, WRONG, named_mistake(step, answers) or form(step, answers, due) or self._plain(step, answers, due)
        )

    def _plain(self, step: Step, answers: list[tuple], due: list[tuple]) -> str:
        """What can be said of the first wrong part."""
        for case, ((arguments, given), wanted) in enumerate(zip(answers, due)):
            if step.explain and (said := step.explain(arguments, given, *wanted)):
                return said
            for number, (part, wanted_part) in enumerate(zip(parts(given), wanted)):
                if not close(part, wanted_part):
                    which = f"In `{step.parts[number]}`: " if step.parts else ""
                    tensors = torch.as_tensor(part), torch.as_tensor(wanted_part)
                    said = f"{which}{value_fault(*tensors, step.axes[number])} {self._probed(step, arguments)}"
                    return f"{said}{self._again(step, case)}"
        raise AssertionError("something was wrong")

    def _probed(self, step: Step, arguments: tuple) -> str:
        """What changes of the inputs bring to light, with a space behind it."""

        def answer(*some):
            return step.call(self.module, *some)

        try:
            found = [leaves_unused(step, answer, arguments), looks_ahead(step, answer, arguments)]
        except Exception:  # the reader's code may fail on other inputs
            return ""
        return "".join(f"{said} " for said in found if said)

    def _again(self, step: Step, case: int) -> str:
        words = f"{step.name!r}, seed={self.seed}" + (f", case={case}" if case else "")
        return f"To look closer: x, due = build.inputs({words}); mine = build.answer({step.name!r}, x)."


@contextmanager
def float64() -> Iterator[None]:
    """New tensors are float64, no gradient is kept, and torch's own random numbers go on as if nothing had been."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_default_dtype(before)


def names_of(step: Step) -> list[str]:
    """The names of a step's arguments in the package's answer."""
    return list(inspect.signature(step.right).parameters)


def shapes(step: Step, arguments: tuple) -> str:
    """A line with the shapes of the tensors among the arguments, by their names in the package's answer."""
    tensors = [f"{name} {list(one.shape)}" for name, one in zip(names_of(step), arguments) if torch.is_tensor(one)]
    return f"\n    with {', '.join(tensors)}" if tensors else ""


def count_of(given: object) -> str:
    """A few words for something that should have been a tuple of tensors."""
    return f"a tuple of {len(given)}" if isinstance(given, tuple) else f"a {type(given).__name__}"


def all_close(given: object, wanted: tuple) -> bool:
    """Whether every part is the same."""
    given = parts(given)
    return len(given) == len(wanted) and all(close(one, other) for one, other in zip(given, wanted))


def changed(step: Step, before: tuple, after: tuple) -> str | None:
    """The name of the first tensor or list among the arguments that is not as it was; None if all are."""
    for name, one, other in zip(names_of(step), before, after):
        if isinstance(one, list) and one != other:
            return name
        if torch.is_tensor(one) and not torch.equal(one.nan_to_num(), other.nan_to_num()):
            return name
    return None


def form(step: Step, answers: list[tuple], due: list[tuple]) -> str | None:
    """What is wrong with the type or shape of an answer; None if nothing is."""
    for (_, given), wanted in zip(answers, due):
        if len(wanted) > 1 and (not isinstance(given, tuple) or len(given) != len(wanted)):
            return f"It gives back {count_of(given)}. A tuple of {len(wanted)} tensors is due."
        for given_part, wanted_part, axes in zip(parts(given), wanted, step.axes):
            if fault := form_fault(given_part, wanted_part, axes):
                return fault
    return None


def named_mistake(step: Step, answers: list[tuple]) -> str | None:
    """What is told of the first known mistake that gives these answers in every case."""
    for mistake in step.mistakes:
        try:
            if all(all_close(given, parts(mistake.answer(*copy.deepcopy(args)))) for args, given in answers):
                return mistake.told
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError):
            continue  # a mistake that cannot be made with these arguments
    return None
