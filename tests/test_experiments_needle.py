"""Needles: what texts hold, who reads what, a run that is killed goes on, and the shipped model finds its facts."""

import os
import signal
from dataclasses import replace

import forks
import pytest
import torch

import minidsv4 as v4
from minidsv4.experiments import choices, facts, needle, needle_recipe, needle_state
from minidsv4.model.indexer import Indexer
from minidsv4.model.layer import watch
from minidsv4.ops import index_scores

SOURCE = torch.arange(50_000) * 7919 % facts.TEXT  # a text that every machine has


@pytest.fixture(scope="module")
def model():
    """The small V4 before it has learnt anything."""
    return needle_recipe.new_model(0)


# ---- texts ----


@pytest.mark.parametrize(("length", "n_facts"), [(64, 3), (128, 8), (512, 8)])
def test_a_lesson_asks_three_times_for_each_of_its_facts_and_the_answers_are_theirs(length, n_facts):
    ids_BT, asked, value = facts.lesson(SOURCE, 5, length, n_facts, seed=3)
    for row, places, answers in zip(ids_BT.tolist(), asked.tolist(), value.tolist()):
        marks = [place for place, token in enumerate(row) if token == facts.MARK]
        told = {row[place + 1]: row[place + 2] for place in marks}
        assert len(marks) == len(told) == len(set(told.values())) == n_facts
        assert min(b - a for a, b in zip(marks, marks[1:])) >= facts.CLEAR and marks[-1] + facts.FACT < places[0]
        assert [row[place - 1] for place in places] == [facts.ASK] * len(places) and max(marks) < min(places)
        assert [told[row[place]] for place in places] == answers
        keys = [row[place] for place in places]
        assert sorted(keys) == sorted(3 * list(told))


def test_facts_of_lessons_lie_at_every_phase_of_the_entries():
    marks = facts.lesson(SOURCE, 50, 128, 8, seed=0).ids_BT.eq(facts.MARK).nonzero()[:, 1]
    share = torch.bincount(marks % 4) / len(marks)
    assert len(marks) == 400 and (share - 0.25).abs().max() < 0.1  # four times the standard deviation


def test_texts_that_cannot_be_are_refused_with_the_length_that_would_do():
    with pytest.raises(ValueError, match="length = 100 is too short for 8 facts; give 120 or more"):
        facts.lesson(SOURCE, 1, 100, 8, 0)
    assert facts.lesson(SOURCE, 1, 120, 8, 0).ids_BT.shape == (1, 120)
    for n_facts, n_keys, said in ((33, 64, "n_facts = 33"), (4, 3, "n_facts = 4"), (4, 65, "n_keys = 65")):
        with pytest.raises(ValueError, match=f"lesson: {said} cannot"):
            facts.lesson(SOURCE, 1, 1024, n_facts, 0, n_keys)
    with pytest.raises(ValueError, match="length = 120 is no part of a source of 120 tokens"):
        facts.lesson(SOURCE[:120], 1, 120, 8, 0)
    with pytest.raises(ValueError, match="lesson: n = 0 cannot be"):
        facts.lesson(SOURCE, 0, 120, 8, 0)
    with pytest.raises(ValueError, match="source = no tokens"):
        facts.haystack(SOURCE[:0], 2048, 0)
    for length, n_needles in ((1023, 32), (2048, 33), (2048, 0), (2048.0, 32)):
        with pytest.raises(ValueError, match=f"{length} tokens with {n_needles} needles cannot be"):
            facts.haystack(SOURCE, length, 0, n_needles)


def test_places_and_numbers_that_no_fact_has_are_refused():
    for place, ratio, said in ((-1, 4, "place = -1"), (2049, 0, "ratio = 0"), (2.5, 4, "place = 2.5")):
        with pytest.raises(ValueError, match=f"entries: {said} cannot be"):
            facts.entries(place, ratio)
    hay = facts.haystack(SOURCE, 1024, 0)
    for number, said in ((-1, "number = -1 cannot be"), (32, "number = 32 has no fact; there are 32")):
        with pytest.raises(ValueError, match=f"question: {said}"):
            hay.question(number)


@pytest.mark.parametrize("length", [1024, 5000, 60_000])
def test_a_haystack_holds_its_needles_at_all_depths_and_phases_and_as_many_other_facts(length):
    hay = facts.haystack(SOURCE, length, seed=1)
    (row,) = hay.ids_BT.tolist()
    assert len(row) == length and row.count(facts.MARK) == 64
    told = {row[place + 1]: row[place + 2] for place, token in enumerate(row) if token == facts.MARK}
    assert len(told) == 64 and set(row) - set(range(facts.TEXT)) <= {facts.MARK, *told, *told.values()}
    assert [told[key] for key in hay.key.tolist()] == hay.value.tolist()
    assert [row[place] for place in hay.place.tolist()] == [facts.MARK] * 32
    assert (hay.place % 4).tolist() == 8 * [0, 1, 2, 3]
    depths = hay.depths()
    assert depths[0] == 0 and depths[-1] > 0.93 and max(b - a for a, b in zip(depths, depths[1:])) < 0.045
    assert hay.question(5).tolist() == [[facts.ASK, int(hay.key[5])]]


def test_a_haystack_is_that_of_its_seed_and_repeats_its_source_where_that_ends():
    one, again, other = (facts.haystack(SOURCE, 120_000, seed) for seed in (4, 4, 5))
    assert torch.equal(one.ids_BT, again.ids_BT) and not torch.equal(one.ids_BT, other.ids_BT)
    same = one.ids_BT[0, 50_000:100_000] == one.ids_BT[0, :50_000]
    assert same.sum() > 49_000


def test_logits_are_those_of_the_whole_texts_at_their_questions(model):
    batch = facts.lesson(SOURCE, 2, 64, 3, seed=0)
    with torch.no_grad():
        wanted = torch.stack([logits[asked] for logits, asked in zip(model(batch.ids_BT), batch.asked)])
        assert (needle_recipe.answers(model, batch) - wanted).abs().max() < 1e-4  # float32: another order of sums


# ---- who reads what ----


def picks(model, name, ids_BT):
    """What the CSA layer's queries pick and see, by a choice."""
    model.use(choices.CHOICES[name](v4.PLAIN))
    with watch(model, "attend") as calls, torch.no_grad():
        model(ids_BT)
    (sees,) = [inputs[3] for _, inputs, _ in calls if inputs[3].picks_BTP is not None]
    return sees


@pytest.mark.parametrize("name", ["CSA", "random", "newest"])
def test_a_choice_picks_as_many_different_visible_entries_as_the_indexer(model, name):
    sees = picks(model, name, SOURCE[None, :203])
    n_read = sees.entry_map().sum(-1)
    assert torch.equal(n_read[0], sees.visible_counts().clamp(max=8))
    assert (sees.picks_BTP.diff(dim=-1) > 0).all()


@pytest.mark.slow
def test_random_entries_lie_everywhere_and_newest_at_the_end(model):
    at_random, newest = (picks(model, name, SOURCE[None, :1603]).picks_BTP[0, -1] for name in ("random", "newest"))
    assert newest.tolist() == list(range(392, 400))
    assert [int(pick) // 50 for pick in at_random] == list(range(8))


@torch.no_grad()
def moved(model, name, place, n_tokens=400):
    """How far the last logits move, by a choice, when one token of a text is another."""
    model.use(choices.CHOICES[name](v4.PLAIN))
    ids_BT = SOURCE[None, :n_tokens].clone()
    before = model(ids_BT)[0, -1]
    ids_BT[0, place] += 1
    return (model(ids_BT)[0, -1] - before).abs().max().item()


def test_what_is_taken_away_is_not_read(model):
    """At 400 tokens three windows of 16 reach back 45 tokens, and the HCA layer reads 3 entries of 128 tokens."""
    assert moved(model, "window", 300) == 0 < moved(model, "window", 390)
    assert moved(model, "HCA", 300) > 0
    first = picks(model, "newest", SOURCE[None, :400]).picks_BTP[0, -1, 0]
    assert first == 92 and moved(model, "newest", 375) > 0


# ---- runs ----


def run_of(model, folder):
    """A run of the untrained model in a folder, which is made."""
    folder.mkdir(exist_ok=True)
    return needle.Needles(model.use(v4.FAST), SOURCE, folder)


def found(point):
    """What is the same in every run."""
    return replace(point, prefill_seconds=0, token_seconds=0, peak_bytes=0)


TASK = needle.Task("CSA", 1200, 0)


@pytest.fixture(scope="module", autouse=True)
def small_steps():
    """Texts are read 256 tokens at a time, and two tokens tell how long one more takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(needle, "PREFILL_CHUNK", 256)
        patch.setattr(needle.decoding_seconds, "__defaults__", (2,))
        yield


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """The point of a run that nobody stopped."""
    return found(run_of(model, tmp_path_factory.mktemp("whole")).point(TASK, lambda work: None, lambda: False))


@pytest.mark.slow
def test_a_run_that_is_stopped_after_any_chunk_goes_on_to_the_same_point(model, whole, tmp_path):
    done, work = 0, []
    while (point := run_of(model, tmp_path).point(TASK, work.append, lambda: True)) is None:
        done += 1
        cache, told = needle_state.kept_prefill(tmp_path, model, {"choice": "CSA"})
        assert cache.n_tokens == int(told["n_read"]) == 256 * done
    assert done == 4 and found(point) == whole
    assert not (tmp_path / needle_state.PREFILL).exists()


def test_the_work_of_a_text_is_that_of_its_parts(model, tmp_path):
    work = []
    run_of(model, tmp_path).point(TASK, work.append, lambda: False)
    assert sum(work) == pytest.approx(TASK.work()) and work[0] == 0 and work[-2] < work[1] < work[-1]


@pytest.mark.slow
def test_a_point_is_measured_once_and_anew_for_other_weights_or_text(model, whole, tmp_path):
    run_of(model, tmp_path).point(TASK, lambda work: None, lambda: False)
    assert found(run_of(model, tmp_path).known(TASK)) == whole
    assert run_of(model, tmp_path).known(replace(TASK, seed=1)) is None
    assert needle.Needles(model, SOURCE + 0, tmp_path).known(TASK) is not None
    assert needle.Needles(model, SOURCE.flip(0), tmp_path).known(TASK) is None
    assert run_of(needle_recipe.new_model(1), tmp_path).known(TASK) is None


def killed(folder, chunks):
    """In a process: a run that is killed after so many chunks, each of them kept."""
    needle.KEPT_EVERY, needle.PREFILL_CHUNK = 0.0, 256
    ticks = iter(range(chunks))

    def tick(_work):
        if next(ticks, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    run_of(needle_recipe.new_model(0), folder).point(TASK, tick, lambda: False)


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_from_what_it_had_kept(model, whole, tmp_path):
    process = forks.Fork(killed, (tmp_path, 3), os.environ, tmp_path, [os.devnull, os.devnull])
    assert process.wait() == -signal.SIGKILL
    cache, _ = needle_state.kept_prefill(tmp_path, model, {"n_read": "512"})
    assert cache.n_tokens == 512
    assert found(run_of(model, tmp_path).point(TASK, lambda work: None, lambda: False)) == whole


@pytest.mark.slow
def test_a_kept_text_of_another_task_is_read_anew_and_a_damaged_one_is_refused(model, whole, tmp_path):
    assert run_of(model, tmp_path).point(TASK, lambda work: None, lambda: True) is None
    other = replace(TASK, n_tokens=1100)
    assert len(run_of(model, tmp_path).point(other, lambda work: None, lambda: False).right) == 32
    assert run_of(model, tmp_path).point(TASK, lambda work: None, lambda: True) is None
    path = tmp_path / needle_state.PREFILL
    kept = path.read_bytes()
    for place in (3, 200, len(kept) // 2, len(kept) - 1):
        path.write_bytes(kept[:place] + bytes([kept[place] ^ 1]) + kept[place + 1 :])
        with pytest.raises(ValueError, match="damaged|is not what was saved|cannot be read"):
            run_of(model, tmp_path).point(TASK, lambda work: None, lambda: False)
    path.write_bytes(kept[:-100])
    with pytest.raises(ValueError, match=r"prefill.safetensors is damaged \(.*remove it"):
        run_of(model, tmp_path).point(TASK, lambda work: None, lambda: False)
    path.unlink()
    assert found(run_of(model, tmp_path).point(TASK, lambda work: None, lambda: False)) == whole


def test_asking_and_decoding_leave_the_cache_as_it_was(model):
    hay, cache = facts.haystack(SOURCE, 1100, 0), model.new_cache()
    model.prefill(hay.ids_BT, cache)
    before = [series.contents().clone() for series in cache.series()]
    needle.asked(model, hay, cache)
    needle.decoding_seconds(model, cache, n=3)
    assert cache.n_tokens == 1100 and all(map(torch.equal, before, [series.contents() for series in cache.series()]))


def test_an_answer_is_right_where_its_value_is_the_likeliest(model, monkeypatch):
    hay, cache = facts.haystack(SOURCE, 1500, 0), model.new_cache()
    model.prefill(hay.ids_BT, cache)
    said = iter(hay.value.tolist()[:20] + [0] * 12)

    def knows(ids_BT, cache, last):
        return torch.nn.functional.one_hot(torch.tensor([[next(said)]]), facts.VOCABULARY)

    monkeypatch.setattr(model, "forward", knows)
    assert needle.asked(model, hay, cache) == [True] * 20 + [False] * 12


def test_bytes_of_all_heads_are_counted_by_hand(model):
    assert needle.mha_bytes(model, 1000) == 1000 * 3 * 4 * 32 * 2 * 4


def test_lengths_of_a_curve_end_at_the_longest():
    assert needle.lengths(1 << 20) == [1024, 4096, 16384, 65536, 262144, 1048576]
    assert needle.lengths(5000) == [1024, 4096, 5000] and needle.lengths(1024) == [1024]


@pytest.mark.slow
def test_the_rank_of_a_needle_counts_the_entries_of_other_text_above_its_own(model):
    """The score of each entry is computed from the whole model's calls in one pass."""
    model.use(v4.PLAIN)
    hay, cache = facts.haystack(SOURCE, 1500, 0), model.new_cache()
    model.prefill(hay.ids_BT, cache)
    with watch(model, Indexer) as calls, torch.no_grad():
        model(torch.cat([hay.ids_BT, hay.question(7)], dim=1))
    ((indexer, (x_BTD, latent_BTQ, positions, memory, _), _),) = calls
    with torch.no_grad():
        queries = indexer.queries(x_BTD, latent_BTQ, positions)
    score_C = index_scores(*queries, memory.entries.contents())[0, -1]
    assert (needle.scores(model, hay.question(7), cache) - score_C).abs().max() < 1e-4  # float32
    window = (int(hay.place[7]) + 2) // 4
    own = max(score_C[window], score_C[window + 1])
    others = [score for entry, score in enumerate(score_C) if entry not in (window, window + 1)]
    assert needle.ranks(model, hay, cache)[7] == sum(score > own for score in others)
