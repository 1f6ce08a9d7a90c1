"""Numbers of a tensor as small whole numbers with a common step, written as base64: how the page's data stay small."""

import base64

import numpy as np


def packed(values, low, step, bits):
    """A tensor in fixed point: each number is `low + step * q`, q a whole number of so many bits.

    values   array whose numbers lie between low and low + step * (2**bits - 1)
    bits     8 or 16, the lower byte first
    returns  {"shape", "low", "step", "bits", "data"} for JSON; a number is off by at most step / 2
    """
    q = np.rint((values - low) / step)
    assert q.min(initial=0) >= 0 and q.max(initial=0) < 2**bits
    data = base64.b64encode(q.astype(f"<u{bits // 8}").tobytes()).decode()
    return {"shape": list(values.shape), "low": float(low), "step": float(step), "bits": bits, "data": data}


def spread(values):
    """A tensor in 16 bits between its smallest and its largest number, as `packed`."""
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    return packed(values, low, (high - low) / 65535 or 1.0, bits=16)


def whole(values):
    """A tensor of whole numbers from 0 to 65,535, as `packed` and without error."""
    return packed(values, 0, 1, bits=8 if values.max(initial=0) < 256 else 16)


def unpacked(record):
    """The array of a `packed` tensor, in float64."""
    q = np.frombuffer(base64.b64decode(record["data"]), dtype=f"<u{record['bits'] // 8}")
    return record["low"] + record["step"] * q.reshape(record["shape"]).astype(float)


def in_255ths(rows):
    """Shares in 255ths, rounded so that each row still sums to 255.

    rows     (..., S) of numbers from 0 that sum to 1
    returns  whole numbers of the same shape; each is off by less than one 255th: all are rounded down, and those that
             lost most get one more
    """
    scaled = rows * 255
    down = np.floor(scaled)
    lost = scaled - down
    n_missing = np.rint(255 - down.sum(-1, keepdims=True))
    order = np.argsort(np.argsort(-lost, axis=-1, kind="stable"), axis=-1, kind="stable")
    return down + (order < n_missing)
