"""Solutions of the exercises in 00_tour.ipynb."""


def attends_to(t, window, ratio, top):
    """Tokens of the window, and finished entries where the layer has any."""
    n_tokens = min(t + 1, window)
    if ratio == 0:
        return n_tokens
    n_entries = (t + 1) // ratio
    if top is not None:
        n_entries = min(n_entries, top)
    return n_tokens + n_entries


def new_streams(streams, y, post, carry):
    """New stream j is post[j] y and all old streams i, each times carry[i][j]."""
    updated = []
    for j in range(len(streams)):
        total = post[j] * y
        for i in range(len(streams)):
            total += carry[i][j] * streams[i]
        updated.append(total)
    return updated


def overtakes(ratios, window, other):
    """The first number of tokens after which all layers together keep less."""
    n = 1
    while True:
        kept = 0
        for ratio in ratios:
            kept += min(n, window)
            if ratio:
                kept += n // ratio
        if kept < other * n:
            return n
        n += 1
