"""Every trap of the bug museum is caught by the checks that its label names, and by no others.

Checks stand in `minidsv4/course/checkups/`; the comparison with transformers stands here. All examine a small model in
float64 that has every mechanism: hash and learned routing, all kinds of layers, top-k that has to choose, a clamp that
bites.
"""

import functools
from contextlib import ExitStack

import pytest
import torch
from oracle import pair

import minidsv4 as v4
from minidsv4.checkpoint import to_transformers
from minidsv4.course import checkups
from minidsv4.course.checkups.subject import CONFIG, same, subject
from minidsv4.course.mutants import MUTANTS, mutant
from minidsv4.course.mutants.museum import Mutant, at_work


@functools.cache
def expected() -> torch.Tensor:
    """What transformers makes of the two sequences, with the same weights."""
    model, ids_BT = subject()
    _, reference = pair(CONFIG, seed=1, dtype=torch.float64)
    fit = reference.load_state_dict(to_transformers(model.state_dict()), strict=False)
    assert not fit.unexpected_keys and all(name.endswith("inv_freq") for name in fit.missing_keys)
    with torch.no_grad():
        return reference(ids_BT).logits


@torch.no_grad()
def agrees_with_transformers():
    model, ids_BT = subject()
    same(model(ids_BT), expected())


CHECKS = {checkups.BESIDE_THE_TESTS: agrees_with_transformers} | checkups.CHECKS


# Whatever one of these sees, another check sees as well; but they need no second implementation, or are shorter.
AGAIN = {
    checkups.BESIDE_THE_TESTS,
    "later_tokens_change_nothing_before",
    "moving_the_text_changes_nothing",
    "new_streams_are_means_of_old_ones",
    "routing_weights_sum_to_the_scale",
    "a_conversation_with_tools_begins_its_continuation",
}


def prepare():
    """Ask the oracles while nothing is wrong."""
    checkups.prepare()
    expected()


def listener(place: tuple[object, str], heard: set) -> Mutant:
    """A mutant that changes nothing, and notes that its place was called."""

    def listen(right, *arguments, **options):
        heard.add(place)
        return right(*arguments, **options)

    return Mutant("listener", (), "", "", "", (), (place,), listen)


def depth(place: tuple[object, str]) -> int:
    """How many classes a place's owner inherits from; 0 for a module."""
    return len(getattr(place[0], "__mro__", ()))


@functools.cache
def calls() -> dict[str, set]:
    """The places of the museum that each check calls where nothing is wrong."""
    prepare()
    heard = set()
    found = {}
    with ExitStack() as stack:
        places = {place for bug in MUTANTS.values() for place in bug.places}
        for place in sorted(places, key=depth):  # what a class inherits calls its base's listener as well
            stack.enter_context(at_work(listener(place, heard)))
        for name, check in CHECKS.items():
            heard.clear()
            check()
            found[name] = set(heard)
    return found


def blind(name: str) -> set[str]:
    """The checks that call no place of a mutant, so that they run as they do without it."""
    return {check for check, places in calls().items() if not places & set(MUTANTS[name].places)}


@functools.cache
def caught_by(name: str) -> frozenset[str]:
    """The checks that notice a mutant. Each is asked once in a run of these tests, the blind ones not at all."""
    asked = CHECKS.keys() - blind(name)
    with mutant(name):
        return frozenset(check for check in asked if checkups.fails(CHECKS[check]))


def in_place(name: str) -> list:
    """What a mutant may change: the functions at its places, set there or inherited, and the parts of the model."""
    model, _ = subject()
    functions = [(attribute in vars(owner), getattr(owner, attribute)) for owner, attribute in MUTANTS[name].places]
    parts = [(path, id(part)) for path, part in [*model.named_parameters(), *model.named_modules()]]
    return [*functions, *parts, *(vars(module).get(key) for module in model.modules() for key in ("window", "limit"))]


# ---- the tests ----


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_check_passes_on_the_model_as_it_is(check):
    check()


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught_by_the_checks_on_its_label_and_by_no_others(name):
    before = in_place(name)
    assert caught_by(name) == set(MUTANTS[name].killed_by)
    assert in_place(name) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_lives_where_the_checks_on_its_label_are_removed_and_dies_of_each_of_them_alone(name):
    others = CHECKS.keys() - set(MUTANTS[name].killed_by)
    assert not caught_by(name) & others
    assert all(caught_by(name) & {check} for check in MUTANTS[name].killed_by)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["high_half_first", "carry_transposed"])
def test_a_check_that_calls_no_place_of_a_mutant_sees_nothing_where_it_is_asked_all_the_same(name):
    """The first is of a file, which no check of the model reads; the second of the model, which none of talk does."""
    assert blind(name)
    with mutant(name):
        assert not {check for check in blind(name) if checkups.fails(CHECKS[check])}


@pytest.mark.slow
def test_without_one_check_some_mutant_would_live_but_for_those_that_see_what_another_sees():
    """Kind: a check that could be removed, and every mutant would still be caught."""
    needed = {check for name in MUTANTS for check in caught_by(name) if len(caught_by(name)) == 1}
    assert CHECKS.keys() - needed == AGAIN


@pytest.mark.parametrize("name", MUTANTS)
def test_an_exception_inside_leaves_the_right_functions_behind(name):
    before = in_place(name)
    with pytest.raises(KeyError), mutant(name):
        assert in_place(name) != before
        raise KeyError
    assert in_place(name) == before


@torch.no_grad()
def test_a_model_built_inside_shows_the_bug_and_is_right_outside():
    right, ids_BT = subject()
    with mutant("carry_transposed"):
        model = v4.Model(CONFIG).double()
        model.load_state_dict(right.state_dict())
        assert checkups.fails(lambda: same(model(ids_BT), expected()))
    same(model(ids_BT), expected())


@torch.no_grad()
def test_two_opposite_mutants_nest_and_cancel():
    model, ids_BT = subject()
    with mutant("carry_transposed"), mutant("carry_transposed"):
        same(model(ids_BT), expected())
    same(model(ids_BT), expected())


def test_an_unknown_name_is_refused_at_the_call_with_the_known_ones_that_are_spelled_alike():
    with pytest.raises(ValueError, match="no_such_bug.*carry_transposed"):
        mutant("no_such_bug")
    with pytest.raises(ValueError, match="'cary_transposed' is not in the museum; it has carry_transposed$"):
        mutant("cary_transposed")


def test_every_label_is_complete():
    for bug in MUTANTS.values():
        assert all(1 <= number <= 47 for number in bug.traps)
        assert bug.mistake.endswith(".") and bug.symptom.endswith(".")
        assert bug.killed_by and set(bug.killed_by) <= set(CHECKS)
    shown = {number for bug in MUTANTS.values() for number in bug.traps}
    assert set(range(1, 48)) - shown == {33, 47}  # of kernels and of tests: the museum's docstring says why


def test_every_check_is_needed_by_some_mutant():
    assert {check for bug in MUTANTS.values() for check in bug.killed_by} == set(CHECKS)
