"""What tells a reader's answer from the right one, as far as shapes, types and places do."""

import itertools
import math

import torch
from torch import Tensor

from minidsv4.course.checks import first_wrong
from minidsv4.dims import GLOSSARY, STREAM_PAIR

WITHIN = 1e-9  # of the largest number: rounding in float64 makes 1e-13 of it, the smallest mistake above 1e-6
ROUGH = 1e-4  # what float32 may be off by


def close(given: object, due: Tensor | list, within: float = WITHIN) -> bool:
    """Whether these are of one type and hold the same numbers, up to rounding."""
    if isinstance(due, list):
        return list_fault(given) is None and given == due
    if not torch.is_tensor(given) or given.shape != due.shape or given.dtype != due.dtype:
        return False
    if not due.is_floating_point():
        return torch.equal(given, due)
    scale = finite(due).abs().max().item() if finite(due).numel() else 1.0
    return bool(torch.isclose(given, due, rtol=0, atol=within * max(scale, 1e-30), equal_nan=True).all())


def parts(answer: object) -> tuple:
    """The tensors of an answer, or its one list."""
    return answer if isinstance(answer, tuple) else (answer,)


def finite(x: Tensor) -> Tensor:
    """The finite numbers of a tensor."""
    return x[x.isfinite()]


def list_fault(given: object) -> str | None:
    """What keeps this from being a list of ints, in a sentence; None if nothing does."""
    if not isinstance(given, list):
        return f"It gives back a {type(given).__name__}. A list of ints is due."
    wrong = next((one for one in given if type(one) is not int), None)
    return None if wrong is None else f"The list holds a {type(wrong).__name__}. A list of ints is due."


def form_fault(given: object, due: Tensor | list, axes: str) -> str | None:
    """What is wrong with type or shape, in a sentence; None if nothing is."""
    if given is None:
        return "It gives back None: is the `return` missing?"
    if given is ...:
        return "It gives back `...`."
    if isinstance(due, list):
        return list_fault(given) or form_fault(torch.tensor(given), torch.tensor(due), axes)
    if not torch.is_tensor(given):
        return f"It gives back a {type(given).__name__}. A tensor is due."
    if given.shape != due.shape:
        return shape_fault(list(given.shape), list(due.shape), axes)
    if given.dtype != due.dtype:
        given_name, due_name = (str(one.dtype).removeprefix("torch.") for one in (given, due))
        return f"The dtype is {given_name}, due is {due_name}."
    return None


def shape_fault(given: list[int], due: list[int], axes: str) -> str:
    """The two shapes, and how one becomes the other where that is plain to see."""
    letters = ", ".join(axes)
    sentence = f"The shape is wrong: it is {given}, due is [{letters}] = {due}."
    return f"{sentence} {reason}" if (reason := shape_reason(given, due, axes)) else sentence


def shape_reason(given: list[int], due: list[int], axes: str) -> str:
    """Which axes are exchanged, missing, summed away or too many; empty where it is not plain."""
    if sorted(given) == sorted(due) and len(set(due)) == len(due):
        return f"Its axes are in the order [{', '.join(axes[due.index(size)] for size in given)}]."
    for n_gone in (1, 2):
        for gone in itertools.combinations(range(len(due)), n_gone):
            if [size for i, size in enumerate(due) if i not in gone] == given:
                return f"It lacks the axis {' and '.join(map(axis, (axes[i] for i in gone)))}."
    if len(given) == len(due) + 1 and any(given[:i] + given[i + 1 :] == due for i in range(len(given))):
        return "It has one axis more."
    wrong = [i for i, (one, other) in enumerate(zip(given, due)) if one != other]
    if len(given) == len(due) and len(wrong) == 1:
        i = wrong[0]
        return f"The axis {axis(axes[i])} has {given[i]} places, due are {due[i]}."
    return ""


def axis(letter: str) -> str:
    """A letter and what it means, such as "H (query heads)"."""
    meaning = STREAM_PAIR.get(letter) or GLOSSARY[letter].meaning
    return f"{letter} ({meaning.split(':')[0].split(',')[0]})"


def value_fault(given: Tensor, due: Tensor, axes: str) -> str:
    """What can be said of numbers that are wrong in a way that nobody has named: size, sign, order, place."""
    if given.is_floating_point() and given.isnan().any() and not due.isnan().any():
        rows = places(given.isnan(), axes)
        return f"It holds NaN{rows}. A row of nothing but -inf, or 0 times infinity, makes NaN."
    if close(given, due, ROUGH):
        return (
            "It is right to some four digits and no more: an eps is missing or out of place, or something is held in "
            "fewer bits than its inputs."
        )
    for reason in (factor(given, due), exchanged(given, due, axes)):
        if reason:
            return reason
    wrong = ~same(given, due)
    return f"The numbers are wrong{places(wrong, axes)}. {first_wrong(given, due, wrong)}"


def same(given: Tensor, due: Tensor) -> Tensor:
    """Where the numbers agree."""
    if due.dtype == torch.bool or not due.is_floating_point():
        return given == due
    scale = finite(due).abs().max().item() if finite(due).numel() else 1.0
    return torch.isclose(given.to(due.dtype), due, rtol=0, atol=WITHIN * scale)


def factor(given: Tensor, due: Tensor) -> str | None:
    """A sentence where every number is too large by one factor."""
    if not due.is_floating_point() or not due.numel() or not due.isfinite().all():
        return None
    largest = due.abs().argmax()
    ratio = (given.flatten()[largest] / due.flatten()[largest]).item()
    if ratio and math.isfinite(ratio) and close(given / ratio, due):
        if close(-given, due):
            return "Everything has the wrong sign."
        return f"Everything is {ratio:.4g} times what is due."
    return None


def exchanged(given: Tensor, due: Tensor, axes: str) -> str | None:
    """A sentence where two axes are exchanged, or one runs backwards."""
    for a, b in itertools.combinations(range(due.ndim), 2):
        if due.shape[a] == due.shape[b] > 1 and close(given.transpose(a, b), due):
            return f"The axes {axis(axes[a])} and {axis(axes[b])} are exchanged."
    for a in range(due.ndim):
        if due.shape[a] > 1 and close(given.flip(a), due):
            return f"The axis {axis(axes[a])} runs backwards."
        if due.shape[a] > 1 and due.is_floating_point() and close(given.sort(a).values, due.sort(a).values):
            return f"Along the axis {axis(axes[a])} the numbers are right, and in another order."
    return None


def places(wrong: Tensor, axes: str) -> str:
    """Where it is wrong, by axes along which some places are right, such as " from t = 3 on; only in k = 4 to 7"."""
    told = []
    for a, letter in enumerate(axes):
        others = [i for i in range(wrong.ndim) if i != a]
        hit = wrong.sum(others) > 0 if others else wrong
        indices = hit.nonzero().flatten().tolist()
        if indices and len(indices) < len(hit):
            told.append(f"{letter.lower()} = {run_of(indices, len(hit))}")
    return f", but only at {', '.join(told)} (counted from 0)" if told else " everywhere"


def run_of(indices: list[int], n: int) -> str:
    """Indices in words: "3", "3 and later", "0 to 4", "3, 7, 11"."""
    first, last = indices[0], indices[-1]
    if len(indices) == 1:
        return str(first)
    if last - first + 1 == len(indices):
        return f"{first} and later" if last == n - 1 else f"{first} to {last}"
    return ", ".join(map(str, indices[:6])) + (", ..." if len(indices) > 6 else "")
