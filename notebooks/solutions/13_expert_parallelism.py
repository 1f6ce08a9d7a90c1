"""Solutions of the exercises in 13_expert_parallelism.ipynb."""


def both_in_fp8(flops, link, inner):
    """The best speed-up where both journeys are in FP8: 2 D bytes for 6 D F FLOPs."""
    rho = 2 * flops / (6 * inner * link)
    return (1 + rho) / max(1, rho)


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
