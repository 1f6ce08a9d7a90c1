"""Solutions of the exercises in 10_training.ipynb."""

import numpy as np


def rate(step, steps, peak, warm_up, decay):
    """A linear rise, a constant, and a cosine down to a tenth of the peak."""
    fallen = (step / steps - (1 - decay)) / decay
    fallen = min(1.0, max(0.0, fallen))
    cosine = (1 + np.cos(np.pi * fallen)) / 2
    risen = min(1.0, (step + 1) / warm_up)
    return peak * risen * (0.1 + 0.9 * cosine)


def packed_row(lengths, align):
    """The number of the document at each place, -1 for padding."""
    row = []
    for number, length in enumerate(lengths):
        while len(row) % align:
            row.append(-1)
        row += [number] * length
    return row


def targets(ids, documents, ahead):
    """The token ahead, where it is of the same document."""
    found = []
    for place in range(len(ids)):
        later = place + ahead
        target = -100
        if later < len(ids) and documents[later] == documents[place] != -1:
            target = ids[later]
        found.append(target)
    return found
