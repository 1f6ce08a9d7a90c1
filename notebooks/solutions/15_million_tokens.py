"""Solutions of the exercises in 15_million_tokens.ipynb."""


def by_luck(n_entries, picks, own):
    """The probability that at least one of the own entries is among random picks."""
    none = 1.0
    for drawn in range(picks):
        none *= (n_entries - own - drawn) / (n_entries - drawn)
    return 1 - none


def rank(scores, own):
    """How many entries of other text score above the best of the fact's own."""
    best = max(scores[entry] for entry in own)
    above = [
        entry for entry, score in enumerate(scores) if score > best and entry not in own
    ]
    return len(above)


def best_of_chunks(chunks, k):
    """Numbers of the k best entries, ascending; no more are kept between chunks."""
    kept = []
    first = 0
    for chunk in chunks:
        new = [(score, first + place) for place, score in enumerate(chunk)]
        first += len(chunk)
        kept = sorted(kept + new, key=lambda pair: (-pair[0], pair[1]))[:k]
    return sorted(number for _, number in kept)
