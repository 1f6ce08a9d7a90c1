"""Solutions of the exercises in 13_expert_parallelism.ipynb."""


def exchange(tokens, picks, scales):
    """The experts that each rank's rows ask for, and the outputs of its tokens."""
    n_ranks = len(tokens)
    held = len(scales) // n_ranks
    rows = [[] for _ in range(n_ranks)]
    for home in range(n_ranks):
        for place, x in enumerate(tokens[home]):
            for expert in picks[home][place]:
                rows[expert // held].append([home, place, expert, x])
    y = [[0] * len(own) for own in tokens]
    for came in rows:
        for home, place, expert, x in came:
            y[home][place] += scales[expert] * x
    return [[expert for _, _, expert, _ in came] for came in rows], y


def fullest_rank(loads, n_ranks):
    """The load of the fullest rank, packed from the heaviest to the lightest expert."""
    room = len(loads) // n_ranks
    held = [0] * n_ranks
    total = [0] * n_ranks
    for load in sorted(loads, reverse=True):
        with_room = [rank for rank in range(n_ranks) if held[rank] < room]
        lightest = min(with_room, key=lambda rank: total[rank])
        total[lightest] += load
        held[lightest] += 1
    return max(total)


def finished(arrive, multiply, leave):
    """Each wave goes through three units, each busy with one wave at a time."""
    came = 0
    multiplied = 0
    back = 0
    for i in range(len(arrive)):
        came = came + arrive[i]
        multiplied = max(came, multiplied) + multiply[i]
        back = max(multiplied, back) + leave[i]
    return back
