"""Checks that a notebook makes before the reader's eyes, and exercises that check what the reader wrote.

An exercise NAME of the notebook NN_x is a stub, a check and a solution, which a test finds (tests/test_exercises.py):
1. a code cell whose first line is `# exercise: NAME`; it defines the function NAME with the body `return ...`;
2. its check: `show.exercise_of("NN_x", NAME)` at the end of that cell, with the inputs in `minidsv4/course/tasks/x.py`,
   or a code cell of its own with `show.exercise(NAME, (arguments, wanted), ..., fresh=...)`;
3. the function NAME in `notebooks/solutions/NN_x.py`, with its imports at the top of that file.
Stub and check may use what the notebook's set-up cell defines, and nothing from the cells between. A hint stands
folded in Markdown above the stub, and links to the file.
"""

from collections.abc import Sequence
from numbers import Number

import numpy as np
import torch

from minidsv4.course import tasks

FRESH = 10  # drawn inputs of an exercise, from the same generator in every run
FEW = 12  # numbers of an array that are shown whole
OF_NUMBERS = (Number, np.generic, np.ndarray, torch.Tensor, Sequence)  # a text is a Sequence too, and is none of these


def check(sentence, got, want=True, within=None):
    """Print the sentence with a tick, or stop with it and the two values.

    sentence  what holds, in words that carry the tolerance's reason where there is one
    got       a truth value, a number, an array or a tensor
    want      what it should be: the same shape
    within    None for equality, or the largest absolute difference allowed
    raises    AssertionError naming the sentence and what was found
    """
    difference = _difference(got, want, within)
    assert difference is None, f"not so: {sentence}. {difference}"
    print(f"✓ {sentence}" + (f" (to {within:.0e})" if within else ""))


def breaks(sentence, got, want=True, within=None):
    """Print that the sentence is not so, as meant, and go on: the check that a deliberate fault should fail.

    sentence  what a sound model satisfies
    got       what the broken one gives
    want      what a sound one gives
    within    None for equality, or the largest absolute difference allowed
    raises    AssertionError where the check holds all the same
    """
    difference = _difference(got, want, within)
    assert difference is not None, f"it holds all the same: {sentence}. The change should have broken it"
    print(f"✗ not so, as meant: {sentence}. {difference}")


def _difference(got, want, within):
    """What tells got from want, in a sentence; None where they agree."""
    got, want = (value.detach().cpu().numpy() if torch.is_tensor(value) else value for value in (got, want))
    try:
        left, right = np.asarray(got), np.asarray(want)
    except ValueError:  # ragged lists are compared as they are
        return None if got == want else f"It is {_short(got)}, it should be {_short(want)}"
    if left.shape != right.shape:
        its = f"has the shape {left.shape}, it should have" if left.shape else f"is {_short(got)}, due is the shape"
        return f"It {its} {right.shape}" + (f": {_short(want)}" if right.size <= FEW else "")
    same = left == right if within is None else np.isclose(left, right, rtol=0, atol=within)
    if np.all(same):
        return None
    if right.size <= FEW or object in (left.dtype, right.dtype):
        return f"It is {_short(got)}, it should be {_short(want)}"
    return f"Its shape {right.shape} is right. {first_wrong(left, right, ~same)}"


def first_wrong(given, due, wrong):
    """The first wrong number of an array or tensor, and what it should be; `wrong` is True where they differ."""
    place = tuple(torch.as_tensor(wrong).nonzero()[0].tolist())
    one, other = (x[place].item() for x in (given, due))
    words = [f"{x:.4g}" if isinstance(x, float) else str(x) for x in (one, other)]
    return f"At {list(place)} it is {words[0]}, due is {words[1]}."


def _short(value):
    """A value in a line: arrays of few numbers whole, others by their first and last numbers or their shapes."""
    if isinstance(value, dict) and any(torch.is_tensor(part) for part in value.values()):
        return f"{{{', '.join(f'{name!r}: {_shape(part)}' for name, part in value.items())}}}"
    if type(value) in (list, tuple):
        parts = ", ".join(_short(part) for part in value)
        if isinstance(value, list):
            return f"[{parts}]"
        return f"({parts},)" if len(value) == 1 else f"({parts})"
    value = value.detach().cpu().numpy() if torch.is_tensor(value) else value
    if isinstance(value, np.ndarray):
        if value.ndim > 1 and value.size > FEW:
            return f"array {list(value.shape)}"
        return " ".join(np.array2string(value, precision=3, threshold=FEW, edgeitems=3).split())
    return f"{value:z.4g}" if isinstance(value, float) else repr(value)


def _shape(part):
    """What a dict holds by a name: a tensor as its shape."""
    return f"tensor {list(part.shape)}" if torch.is_tensor(part) else _short(part)


def exercise(answer, *cases, fresh=None, within=1e-9, n_fresh=FRESH):
    """Say how an exercise stands: not done yet, wrong for a case, or correct. Never raises, so a notebook runs on.

    answer   the function to write; its stub's body is `return ...`
    cases    pairs (arguments, wanted): a tuple of arguments and what answer(*arguments) should be
    fresh    function from a NumPy Generator to one more such pair: inputs that the reader has not seen
    within   largest absolute difference allowed
    n_fresh  how many such pairs are drawn; fewer where an answer takes seconds
    """
    name = f"exercise {answer.__name__}"
    for arguments, wanted in cases:
        if fault := _fault(answer, arguments, wanted, within):
            return print(f"{name}: {fault}")
    said = f"correct in {len(cases)} of {len(cases)} cases"
    if fresh is not None:
        generator = np.random.default_rng(0)
        for _ in range(n_fresh):
            if fault := _fault(answer, *fresh(generator), within):
                return print(f"{name}: {said}, but for a fresh input {fault}")
        said += f" and for {n_fresh} fresh inputs"
    print(f"{name}: {said}")


def exercise_of(notebook, answer):
    """Say how an exercise stands whose inputs the package holds: `exercise` on those of minidsv4/course/tasks.

    notebook  such as "01_attention"
    answer    the function to write
    """
    task = tasks.find(notebook, answer.__name__)
    exercise(answer, *task.cases, fresh=task.fresh, within=task.within)


def _fault(answer, arguments, wanted, within):
    """What is wrong with answer(*arguments), in words; None where it is as wanted."""
    call = f"{answer.__name__}({', '.join(_short(argument) for argument in arguments)})"
    try:
        got = answer(*arguments)
    except Exception as error:  # whatever a learner's code raises is the message
        return f"{call} stopped with {type(error).__name__}: {error}"
    if got is ...:
        return "not done yet"
    difference = wrong(got, wanted, within)
    return difference and f"{call} is not right yet. {difference}"


def wrong(got, wanted, within):
    """What tells an answer from the wanted one, in words; None where they agree.

    Texts and None are compared as they are, lists of unequal lengths and dicts part by part.

    got     any value
    wanted  any value
    within  largest absolute difference of numbers
    """
    if fault := _kind_fault(got, wanted):
        return fault
    if _is_nest(wanted):
        same = type(got) in (list, tuple, dict) and _same_nest(got, wanted, within)
        return None if same else f"It is {_short(got)}, it should be {_short(wanted)}"
    try:
        return _difference(got, wanted, within)
    except TypeError:
        return None if got == wanted else f"It is {_short(got)}, it should be {_short(wanted)}"


def _kind_fault(got, wanted):
    """What is wrong with an answer that is nothing at all, or no numbers where numbers are due; None where it is."""
    if got is None and wanted is not None:
        return "It returned None: is a `return` missing?"
    due = dict if isinstance(wanted, dict) else OF_NUMBERS
    if isinstance(wanted, str) or not isinstance(wanted, due):
        return None  # a text, None and the like are shown as they are
    if isinstance(got, due) and not isinstance(got, str):
        return None
    return f"It is of type {type(got).__name__}, it should be of type {type(wanted).__name__}: {_short(wanted)}"


def _is_nest(value):
    """True for a dict, and for a list or tuple that is no array."""
    if not isinstance(value, list | tuple):
        return isinstance(value, dict)
    try:
        return np.asarray(value).dtype == object
    except ValueError:
        return True


def _same_nest(got, wanted, within):
    """True where two dicts or two lists have the same parts."""
    if isinstance(wanted, dict):
        keys = isinstance(got, dict) and got.keys() == wanted.keys()
        return keys and all(wrong(got[key], wanted[key], within) is None for key in wanted)
    pairs = zip(got, wanted)
    return len(got) == len(wanted) and all(wrong(*pair, within) is None for pair in pairs)
