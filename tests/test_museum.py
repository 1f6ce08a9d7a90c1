"""The museum of notebook 19: its exhibits, its probes, and the cases whose trap a learner is to find."""

import itertools
import math
import re
import runpy

import numpy as np
import pytest
import torch

from minidsv4.course import checks, checkups, exhibits, notebooks, plots, suspects, symptoms
from minidsv4.course.checkups.subject import random_model, subject
from minidsv4.course.mutants import MUTANTS, mutant

SOLUTIONS = runpy.run_path(str(notebooks.FOLDER / "solutions" / "19_bug_museum.py"))


# --- exhibits ---


@pytest.mark.parametrize("name", exhibits.RIGHT)
def test_an_exhibit_has_one_right_line_and_the_lines_of_its_mutant(name):
    place, line = exhibits.right_line(name)
    assert place.startswith("minidsv4/") and exhibits.RIGHT[name][1] in line
    assert MUTANTS[name].mistake not in "\n".join(exhibits.wrong_lines(name))
    card = exhibits.Cards(name)._repr_markdown_()
    assert all(len(row) <= 2 + exhibits.WIDEST for row in re.search(r"(?s)```diff\n(.*?)```", card)[1].splitlines()[1:])
    assert MUTANTS[name].symptom in card and (MUTANTS[name].found == "") == (exhibits.NOBODY in card)


def test_a_trap_that_is_not_exhibited_and_a_part_of_several_lines_are_refused(monkeypatch):
    for show in (exhibits.right_line, exhibits.Cards):
        with pytest.raises(ValueError, match="'yarn_amplitude' is not exhibited; give one of output_not"):
            show("yarn_amplitude")
        with pytest.raises(ValueError, match="'half_split_pair' is not in the museum; it has half_split_pairs"):
            show("half_split_pair")
    with pytest.raises(ValueError, match="'x' is not in the museum"):
        exhibits.wrong_lines("x")
    monkeypatch.setitem(exhibits.RIGHT, "carry_transposed", (exhibits.ops.write, "_BTND"))
    with pytest.raises(ValueError, match="'_BTND' stands in 4 lines of write"):
        exhibits.right_line("carry_transposed")


def test_the_table_has_a_row_for_each_trap_and_links_to_threads_whose_place_is_known():
    text = exhibits.table().markdown()
    assert len(text.splitlines()) == len(MUTANTS) + 2
    assert "[transformers#45758](https://github.com/huggingface/transformers/issues/45758)" in text
    assert "[Primus#1040](" in text and "[Megatron#6699](" in text
    assert exhibits.met_by("nobody-we-know#12") == "nobody-we-know#12"
    assert exhibits.table("half_split_pairs").markdown().splitlines()[2:] == [
        line for line in text.splitlines() if "half split pairs" in line
    ]


def test_every_thread_that_a_label_names_is_a_link():
    """Kind: a project whose place is known, and is not in the table of places."""
    named = " ".join(bug.found for bug in MUTANTS.values())
    assert {project for project, _ in re.findall(r"([\w.-]+)#(\d+)", named)} == set(exhibits.THREADS)


def test_a_notebook_that_names_other_mistakes_to_try_names_traps_of_the_museum():
    for path in notebooks.every().values():
        for line in re.findall(r"Other mistakes to try: (.*?)[.;]", path.read_text(encoding="utf-8")):
            assert set(re.findall(r"`(\w+)`", line)) <= set(MUTANTS), path.name


# --- probes ---


def test_on_the_right_model_the_probes_find_nothing():
    model, ids = subject()
    right = symptoms.in_chunks(model, ids, 32)
    once, chunks = symptoms.errors(model, ids, right, (10, 22))
    assert max(once.max(), chunks.max(), *symptoms.padded_errors(model, ids[:, :13], 10)) < 1e-10
    assert symptoms.furthest_ahead(symptoms.felt(model, ids[:, :12])) == 0
    own = symptoms.picks(model, ids, 32, 5)
    assert symptoms.shared(own, own) == 1.0 and [picks.shape for picks in own] == [(5, 4)]
    assert symptoms.nats(model, ids, 7) == pytest.approx(symptoms.nats(model, ids, 32), abs=1e-10)


def test_the_share_of_picks_counts_the_right_ones_that_are_ours():
    right, ours = torch.tensor([[0, 1], [2, 3]]), torch.tensor([[1, 4], [3, 2]])
    assert symptoms.shared([right], [ours]) == 0.75


def test_what_no_probe_can_read_is_refused_with_what_it_can():
    model, ids = subject()
    for said, call in {
        "sizes = [10, 10] sum to 20; the texts have 32 tokens": lambda: symptoms.in_chunks(model, ids, (10, 10)),
        "size = 0 cannot be; it is a whole number from 1": lambda: symptoms.nats(model, ids, 0),
        "size = 2.5 cannot be": lambda: symptoms.errors(model, ids, None, (2.5, 29.5)),
        "last = 0 cannot be": lambda: symptoms.picks(model, ids, 32, 0),
        "last = 3 queries cannot be; the last chunk has 2": lambda: symptoms.picks(model, ids, 10, 3),
        "picks of 1 layers and of 0": lambda: symptoms.shared([ids], []),
        "most = 0 cannot be": lambda: symptoms.padded_errors(model, ids, 0),
        "times = -1 cannot be": lambda: symptoms.window_bytes(model, ids, -1),
    }.items():
        with pytest.raises(ValueError, match=re.escape(said)):
            call()


# --- cases ---


def test_the_traps_of_a_loud_line_up_have_labels_of_their_own_and_those_of_twins_the_same():
    def labels(kind):
        return [frozenset(MUTANTS[name].killed_by) for name in suspects.LINEUPS[kind]]

    assert len(set(labels("loud"))) == len(labels("loud"))
    assert set(labels("twins")) == {frozenset({checkups.BESIDE_THE_TESTS, "agrees_with_paper"})}


@torch.no_grad()
def test_twins_say_different_things_and_the_silent_say_what_is_right():
    model, ids = random_model(4)
    right, said = model(ids), {}
    for name in suspects.LINEUPS["twins"]:
        with mutant(name):
            said[name] = model(ids)
    assert all((one - other).abs().max() > 1e-6 for one, other in itertools.combinations([right, *said.values()], 2))
    for name in suspects.LINEUPS["silent"]:
        with mutant(name):
            assert (symptoms.in_chunks(model, ids, 7) - right).abs().max() < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("kind", suspects.LINEUPS)
def test_the_solution_finds_every_suspect_in_the_models_of_the_check(kind):
    """The numbers are those of the check; which of its models a trap comes in differs from run to run."""
    generator = np.random.default_rng(0)
    numbers = [int(generator.integers(2, 1000)) for _ in range(suspects.N_FRESH)]
    for number, trap in zip(itertools.cycle(numbers), suspects.LINEUPS[kind]):
        (case,), secret = suspects.exam(kind, number, trap)
        assert secret == SOLUTIONS[kind](case) == trap


@pytest.mark.slow
@pytest.mark.parametrize("kind", suspects.LINEUPS)
def test_fresh_exams_bring_every_trap_before_any_comes_twice_and_are_drawn_anew(kind):
    """The same trap first in all ten drawings has a probability of at most 1 in 7^9."""
    lineup = suspects.LINEUPS[kind]
    deal = suspects.exams(kind)
    generator = np.random.default_rng(0)
    for _ in range(2):
        dealt = [deal(generator) for _ in lineup]
        assert all(sum(secret == name for _, secret in dealt) == 1 for name in lineup)
    first = [suspects.exams(kind)(np.random.default_rng(0)) for _ in range(10)]
    assert {case.number for (case,), _ in first} == {int(np.random.default_rng(0).integers(2, 1000))}
    assert len({next(name for name in lineup if secret == name) for _, secret in first}) > 1


def test_whoever_guesses_passes_no_check_in_practice():
    """Fresh exams differ in their traps, so a guess is right so often in so many cases: once in 840 at most."""
    orders = [math.perm(len(lineup), suspects.N_FRESH) for lineup in suspects.LINEUPS.values()]
    assert min(orders) == 840 and "1/840" in suspects.exams.__doc__


def test_a_case_does_not_show_its_trap_and_is_sound_outside():
    case = suspects.Case("twins", 3)
    shown = f"{case} {case.secret!r} {case.secret} {suspects.complaint(case)}"
    assert not any(name in shown for name in case.lineup)
    assert sum(case.solved(name) for name in case.lineup) == 1
    assert [case.secret == guess for guess in (None, "", ..., 1.0)] == [False] * 4
    before = case.model(case.ids_BT)
    with case.broken() as model:
        assert (model(case.ids_BT) - before).abs().max() > 1e-6
    assert torch.equal(case.model(case.ids_BT), before)


def test_a_complaint_tells_what_is_wrong_at_once_from_what_is_wrong_in_chunks():
    silent = suspects.complaint(suspects.Case("silent", 2))
    assert silent == "case silent 2, read at once: all right; read in chunks of 7: all right"
    twins = suspects.complaint(suspects.Case("twins", 2))
    assert twins.count("wrong from token") == 2


def test_what_is_no_case_and_who_is_no_suspect_is_refused():
    with pytest.raises(ValueError, match="kind = 'odd' is not known; it is one of loud, twins, silent"):
        suspects.Case("odd", 1)
    with pytest.raises(ValueError, match="number = 0 is none; give an integer from 1"):
        suspects.Case("loud", 0)
    with pytest.raises(ValueError, match="'yarn_amplitude' is not under suspicion; the line-up is"):
        suspects.Case("loud", 1).solved("yarn_amplitude")
    with pytest.raises(ValueError, match="number = True is none"):
        suspects.Case("loud", True)
    with pytest.raises(ValueError, match="is not under suspicion"):
        suspects.Case("loud", 1).solved(["yarn_amplitude"])
    for make in (suspects.exam, lambda kind, _: suspects.exams(kind)):
        with pytest.raises(ValueError, match="kind = 'odd' is not known"):
            make("odd", 1)
    with pytest.raises(ValueError, match="exam loud 1: trap = 'carry_transposed' is not in the line-up; give one of"):
        suspects.exam("loud", 1, "carry_transposed")


def test_a_detective_who_asks_the_case_in_place_of_the_model_does_not_pass(capsys):
    def asks(case):
        return next(name for name in case.lineup if case.solved(name))

    def compares(case):
        return next(name for name in case.lineup if case.secret == name)

    def computes(case):
        return suspects.computed(case.kind, case.number)

    for answer in (asks, compares, computes):
        checks.exercise(answer, suspects.exam("loud", 1), fresh=suspects.exams("loud"), n_fresh=suspects.N_FRESH)
    first, second, third = capsys.readouterr().out.splitlines()
    assert "the case of a check does not judge guesses" in first and "does not judge guesses" in second
    assert "correct in 1 of 1 cases, but for a fresh input" in third
    (case,), secret = suspects.exam("loud", 1)
    assert sum(secret == name for name in case.lineup) == 1
    assert secret != secret


def test_a_name_that_is_no_trap_and_no_check_is_refused_with_what_there_is():
    with pytest.raises(ValueError, match="'carry transposed' is not in the museum; it has carry_transposed"):
        exhibits.table(["carry transposed"])
    with pytest.raises(ValueError, match=r"\['a'\] is not in the museum"):
        mutant(["a"])
    with pytest.raises(ValueError, match="'agrees_with_transformers' is no check that can run here"):
        checkups.caught_by(checkups.BESIDE_THE_TESTS)


# --- pictures ---


def test_the_pictures_draw_what_they_are_given():
    losses = plots.losses_of_traps({"a_b": (1.0, 2.0), "c": (3.0, 3.0)}, 0.5, "Title")
    axes = losses.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a b", "c"]
    assert [list(line.get_xdata()) for line in axes.get_lines()] == [[2.0, 3.0], [1.0, 3.0], [0.5, 0.5]]
    felt = np.tril(np.ones((4, 4), dtype=bool))
    felt[0, 3] = True
    (mesh,) = plots.reached({"x": felt}, "Title").axes[0].collections
    assert mesh.get_array()[0].tolist() == [1, 0, 0, 2]
    pair = (np.array([0.0, 1.0]), np.array([2.0, 1e-12]))
    left, right, _ = plots.fingerprints({"x": pair}, [1], "Title").axes
    assert left.collections[0].get_array().mask.tolist() == [[True, False]]
    assert right.collections[0].get_array().mask.tolist() == [[False, True]]
    mesh, *_ = plots.sightings({"x": [True, False]}, {"one": 1, "two": 1}, "Title").axes[0].collections
    assert mesh.get_array().tolist() == [[1, 0]]
