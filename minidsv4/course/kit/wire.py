"""What students' code gives back, as text that can hold nothing but values.

Arguments go to a student's process as pickles. Nothing that comes from there is unpickled: a pickle may run code.
"""

import base64
import io
import json

import numpy as np
import torch

PLAIN = (bool, int, float, str, type(None))
LARGEST = 64_000_000  # bytes of a message


def dumps(value):
    """Bytes of JSON for an answer.

    value   None, ..., numbers, text, bytes, arrays, tensors, and lists, tuples and dicts of them
    raises  TypeError for anything else
    """
    return json.dumps(_packed(value)).encode()


def loads(content):
    """The value in the bytes of `dumps`.

    raises  ValueError for bytes that `dumps` does not make
    """
    try:
        return _unpacked(json.loads(content))
    except (KeyError, TypeError, IndexError, RecursionError, UnicodeError) as error:
        raise ValueError(f"no answer that can be read: {type(error).__name__}") from None


def _packed(value):
    """JSON's form of a value: [kind, content]."""
    if value is ...:
        return ["stub", None]
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) in PLAIN:
        return ["plain", value]
    if isinstance(value, bytes):
        return ["bytes", base64.b64encode(value).decode()]
    if isinstance(value, list | tuple):
        return ["list" if isinstance(value, list) else "tuple", [_packed(one) for one in value]]
    if isinstance(value, dict):
        return ["dict", [[_packed(key), _packed(one)] for key, one in value.items()]]
    if torch.is_tensor(value):
        return ["tensor", _array(value.detach().cpu().double().numpy() if value.is_floating_point() else value.numpy())]
    if isinstance(value, np.ndarray):
        return ["array", _array(value)]
    raise TypeError(f"it gives back a {type(value).__name__}, which is no value that can be compared")


def _array(array):
    """Base64 of an array's .npy file."""
    stream = io.BytesIO()
    try:
        np.save(stream, array, allow_pickle=False)
    except ValueError:
        raise TypeError("it gives back an array of objects, which cannot be compared") from None
    return base64.b64encode(stream.getvalue()).decode()


def _unpacked(packed):
    """The value of JSON's form."""
    kind, content = packed
    if kind == "stub":
        return ...
    if kind == "plain":
        if type(content) not in PLAIN:
            raise ValueError("no answer that can be read: a plain value is none")
        return content
    if kind == "bytes":
        return base64.b64decode(content)
    if kind in ("list", "tuple"):
        values = [_unpacked(one) for one in content]
        return values if kind == "list" else tuple(values)
    if kind == "dict":
        return {_unpacked(key): _unpacked(one) for key, one in content}
    if kind not in ("array", "tensor"):
        raise ValueError(f"no answer that can be read: the kind {kind!r}")
    array = np.load(io.BytesIO(base64.b64decode(content)), allow_pickle=False)
    return torch.from_numpy(array) if kind == "tensor" else array
