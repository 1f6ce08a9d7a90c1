"""Solutions of the exercises in 19_bug_museum.ipynb."""

from minidsv4.course import checkups
from minidsv4.course.mutants import MUTANTS, mutant


def loud(case):
    """The suspect on whose label just those checks stand that fail."""
    labels = {}
    for name in case.lineup:
        labels[name] = set(MUTANTS[name].killed_by) - {checkups.BESIDE_THE_TESTS}
    names = set.union(*labels.values())
    with case.broken():
        seen_by = checkups.caught_by(names)
    for name, label in labels.items():
        if label == seen_by:
            return name
    return None


def twins(case):
    """The suspect who makes the sound model say what the broken one says."""
    with case.broken() as model:
        said = model(case.ids_BT)
    for name in case.lineup:
        with mutant(name):
            again = case.model(case.ids_BT)
        if (again - said).abs().max() < 1e-9:
            return name
    return None


def silent(case):
    """The suspect who makes the sound model learn, remember, go back as it does."""
    with case.broken() as model:
        known = _numbers(model, case.ids_BT)
    for name in case.lineup:
        with mutant(name):
            again = _numbers(case.model, case.ids_BT)
        if all(abs(one - other) < 1e-9 for one, other in zip(known, again)):
            return name
    return None


def _numbers(model, ids):
    """Losses, weights that the indexer's loss moves, bytes, logits after a rewind."""
    losses = model.loss(ids)
    moved = 0
    if losses.indexer.requires_grad:
        model.zero_grad()
        losses.indexer.backward()
        for parameter in model.parameters():
            moved += parameter.grad is not None
        model.zero_grad()
    cache = model.new_cache(len(ids))
    model(ids[:, :13], cache=cache)
    snap = cache.snapshot()
    model(ids[:, :7], cache=cache)
    cache.restore(snap)
    rest = model(ids[:, 13:], cache=cache)
    numbers = [losses.mtp.item(), losses.indexer.item(), moved, cache.n_bytes()]
    return numbers + rest.flatten().tolist()
