"""Solutions of the exercises in 06_streams.ipynb."""

import numpy as np


def new_streams(streams, y, post, carry):
    """New stream j: post[j] y + sum over i of carry[i, j] stream[i]."""
    carried = np.einsum("ij,id->jd", carry, streams)
    written = np.einsum("j,d->jd", post, y)
    return carried + written


def mean_cosine(streams):
    """The mean cosine between two different streams of a token."""
    unit = streams / np.linalg.norm(streams, axis=-1, keepdims=True)
    cosines = np.einsum("tid,tjd->tij", unit, unit)
    n = streams.shape[1]
    different = ~np.eye(n, dtype=bool)
    return cosines[:, different].mean()


def layers_to_forget(carry, streams, part):
    """Carry and count until the streams are near their mean."""
    first = np.linalg.norm(streams - streams.mean(axis=0))
    distance = first
    layers = 0
    while distance >= part * first:
        streams = np.einsum("ij,id->jd", carry, streams)
        distance = np.linalg.norm(streams - streams.mean(axis=0))
        layers += 1
    return layers
