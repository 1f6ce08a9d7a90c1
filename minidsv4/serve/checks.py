"""Checked arguments of `generate` and `complete`: a refusal names the field, its value and what would be right.

T tokens.
"""

import inspect
import math
import operator
import reprlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minidsv4.model.model import Model
from minidsv4.serve.disk import ModelOnDisk

SEEDS = range(-(1 << 63), 1 << 64)  # what torch.Generator takes
CALLS = ("generate", "engine")  # what refusals of these checks, and of an engine's parts, begin with


@contextmanager
def refusing(call: str) -> Iterator[None]:
    """Inside, refusals that begin with the name of an inner call begin with this one, which the user has made."""
    try:
        yield
    except ValueError as error:
        inner, _, words = str(error).partition(": ")
        if type(error) is ValueError and inner in CALLS:
            error.args = (f"{call}: {words}",)
        raise


def shown(value: object) -> str:
    """A value as it stands in a refusal: its representation, cut where it is long."""
    try:
        return reprlib.repr(value)
    except ValueError:  # an integer of thousands of digits
        return "a very large number"


def kind(value: object) -> str:
    """The name of a value's type with its article, such as "a str", "an int"."""
    name = type(value).__name__
    return f"an {name}" if name[0] in "aeiouAEIO" else f"a {name}"


def check_model(model: object) -> Model:
    """The model, once it is one that holds numbers."""
    if not isinstance(model, Model):
        raise ValueError(f"generate: model = {shown(model)} is {kind(model)}; give a minidsv4 Model")
    if model.embed.weight.device.type == "meta":
        raise ValueError("generate: model is on the meta device, which holds no numbers; give one with weights")
    return model


def integer(name: str, value: object, right: str) -> int:
    """The value as an int; ValueError for anything else, bool included."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]  # whether it has an index is what is asked
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"generate: {name} = {shown(value)} is no integer; {right}") from None


def real(name: str, value: object, allowed: Callable[[float], bool], right: str) -> float:
    """The value as a float that is allowed; ValueError for anything else, bool and NaN included."""
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except (OverflowError, ValueError):
        number = math.nan
    if not allowed(number):
        raise ValueError(f"generate: {name} = {shown(value)} is out of range; {right}")
    return number


def check_positive(name: str, value: object, right: str) -> int:
    """The value as an int from 1."""
    number = integer(name, value, right)
    if number < 1:
        raise ValueError(f"generate: {name} = {shown(value)} is out of range; {right}")
    return number


def check_switch(name: str, value: object) -> bool:
    """The value, once it is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"generate: {name} = {shown(value)} is no switch; give True or False")
    return value


def check_n_tokens(n_tokens: object) -> int:
    """The number of tokens to write, from 0."""
    right = "it counts tokens, from 0"
    number = integer("n_tokens", n_tokens, right)
    if number < 0:
        raise ValueError(f"generate: n_tokens = {shown(n_tokens)} cannot be written; {right}")
    return number


def check_temperature(temperature: object) -> float:
    """The temperature, from 0."""
    return real("temperature", temperature, lambda t: 0 <= t < math.inf, "it is 0 (likeliest token) or above")


def check_top_p(top_p: object) -> float:
    """The share of the likeliest tokens, above 0 to 1."""
    return real("top_p", top_p, lambda share: 0 < share <= 1, "it is a share above 0, up to 1")


def check_seed(seed: object) -> int:
    """The seed, an integer of 64 bits."""
    right = "it is an integer of at most 64 bits, such as 0"
    number = integer("seed", seed, right)
    if number not in SEEDS:
        raise ValueError(f"generate: seed = {shown(seed)} is out of range; {right}")
    return number


def check_stop(stop: object, vocab_size: int) -> frozenset[int]:
    """The token ids that end a text, from one id, several or None."""
    right = f"it is one token id or several, each in 0 .. {vocab_size - 1}, or None"
    if stop is None:
        return frozenset()
    if isinstance(stop, str | bytes | bytearray | Mapping):
        raise ValueError(f"generate: stop = {shown(stop)} is no token id; {right}")
    several = stop if isinstance(stop, Collection) and not isinstance(stop, Tensor | np.ndarray) else [stop]
    tokens = set()
    for value in several:
        token = integer("stop", value, right)
        if not 0 <= token < vocab_size:
            raise ValueError(f"generate: stop = {shown(token)} is no token id; {right}")
        tokens.add(token)
    return frozenset(tokens)


def check_prompt(ids: object, model: Model) -> Tensor:
    """The prompt as a tensor [T] on the model's device, at least one token."""
    right = "give the token ids of one sequence, not empty: a list or a tensor; or a list of such"
    if isinstance(ids, str):
        raise ValueError(f"generate: ids = {shown(ids)} is text; complete(prompt, n_tokens) takes text, or {right}")
    if isinstance(ids, bytes | bytearray) or not isinstance(ids, Sequence | Tensor | np.ndarray):
        raise ValueError(f"generate: ids = {shown(ids)} is {kind(ids)}; {right}")
    try:
        if not isinstance(ids, Tensor):
            most = model.config.max_position_embeddings + 1  # one too many is enough to see
            ids = torch.as_tensor(ids[:most], device="cpu")
        tensor = ids.to_dense() if ids.numel() else torch.zeros(ids.shape, dtype=torch.long, device="cpu")
        tensor = tensor.to(model.embed.weight.device)
    except (TypeError, ValueError, RuntimeError, LookupError, OverflowError):
        raise ValueError(f"generate: ids = {shown(ids)} is ragged or holds no token ids; {right}") from None
    tensor = tensor[0] if tensor.ndim == 2 and len(tensor) == 1 else tensor  # a batch of one
    if tensor.ndim != 1 or not len(tensor):
        raise ValueError(f"generate: ids of shape {tuple(tensor.shape)} are no prompt; {right}")
    most = model.config.max_position_embeddings
    if len(tensor) > most:
        raise ValueError(f"generate: ids: more than max_position_embeddings = {most:,} tokens; give at most so many")
    model.check(tensor[None], None)
    return tensor


def holds_prompts(ids: object) -> bool:
    """Whether these are several prompts: a list in which anything is itself a list, a tensor or an array of ids."""
    kinds = list | tuple | range | Tensor | np.ndarray
    return isinstance(ids, list | tuple) and any(isinstance(x, kinds) and getattr(x, "ndim", 1) for x in ids)


def check_prompts(ids: Any, model: Model) -> list[Tensor]:
    """Each prompt as a tensor [T]; a refusal says which one it is about."""
    prompts = []
    for number, each in enumerate(ids):
        try:
            prompts.append(check_prompt(each, model))
        except ValueError as error:
            raise ValueError(f"generate: prompt {number}: {str(error).removeprefix('generate: ')}") from None
    return prompts


def check_seeds(seed: object, n_texts: int) -> list[int]:
    """A seed for each text: the one that is given, or one of as many."""
    if not isinstance(seed, list | tuple | range):
        return [check_seed(seed)] * n_texts
    if len(seed[: n_texts + 1]) != n_texts:  # a range may be longer than Python can count
        raise ValueError(f"generate: seed = {shown(seed)} for {n_texts} prompts; give one for each, or one int")
    return [check_seed(each) for each in seed]


def check_context(n_prompt: int, n_tokens: int, model: Model) -> None:
    """Refuse a text that grows beyond the positions that the model was made for."""
    most = model.config.max_position_embeddings
    if n_prompt + n_tokens > most:
        raise ValueError(
            f"generate: n_tokens = {shown(n_tokens)} after {n_prompt:,} tokens goes beyond max_position_embeddings = "
            f"{most:,}; at most {most - n_prompt:,} can be written"
        )


def check_weights(model: Model) -> None:
    """Refuse a model one of whose weights or router biases is not finite: not each NaN reaches a logit.

    A sum is read first, which nothing but finite numbers leaves finite: on a CPU a third of the time of one token. What
    lies on disk is not looked at: reading all of it could take minutes.
    """
    if isinstance(model, ModelOnDisk):
        return
    for name, weight in model.state_dict().items():
        suspect = weight.is_floating_point() and not weight.sum().isfinite()
        if suspect and not weight.isfinite().all():  # else a sum that overflowed
            raise ValueError(f"generate: model: {name} holds NaN or infinity; give a model of finite weights")


def check_characters(where: str, text: str) -> str:
    """The text, once UTF-8 can hold it; `where` names call and field."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise ValueError(
            f"{where}: character {error.start} is {half!a}, half of a surrogate pair or a byte that is "
            "no UTF-8; give whole characters"
        ) from None
    return text


def check_stream(stream: object, arguments: tuple[str, ...] = ("the new token's id",)) -> None:
    """Refuse what cannot be called with these arguments, as far as it tells what it takes."""
    right = f"give a function of {' and '.join(arguments)}"
    if stream is None:
        return
    if not callable(stream):
        raise ValueError(f"generate: stream = {shown(stream)} cannot be called; {right}")
    try:
        signature = inspect.signature(stream)
    except (TypeError, ValueError):  # some that are written in C tell nothing
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise ValueError(f"generate: stream = {shown(stream)} cannot be called so: {error}; {right}") from None
