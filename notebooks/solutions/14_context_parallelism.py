"""Solutions of the exercises in 14_context_parallelism.ipynb."""


def tokens_before(start, m):
    """Tokens before `start` that the first entry of a rank of a CSA layer pools."""
    return min(start, start % m + m)


def in_order(emitted, lengths, m):
    """All ranks' entries in order, then zeros."""
    listed = []
    start = 0
    for entries, length in zip(emitted, lengths):
        stop = start + length
        made = stop // m - start // m
        listed += entries[:made]
        start = stop
    n_places = len(lengths) * max(lengths) // m
    return listed + [0] * (n_places - len(listed))


def fetched(lengths, W):
    """How much of the window before its start lies on each rank."""
    starts = [sum(lengths[:rank]) for rank in range(len(lengths))]
    table = []
    for start in starts:
        row = []
        for other, length in zip(starts, lengths):
            first = max(other, start - W + 1)
            stop = min(other + length, start)
            row.append(max(0, stop - first))
        table.append(row)
    return table
