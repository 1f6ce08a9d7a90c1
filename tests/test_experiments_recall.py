"""Planted recall: what the texts hold, how answers are counted, and that the kept numbers are what the course says."""

import json

import numpy as np
import pytest
import torch

import minidsv4 as v4
from minidsv4.experiments import recall


@pytest.mark.parametrize("length", [24, 64])
def test_a_text_holds_6_facts_about_different_keys_then_a_question_and_its_answer_for_each(length):
    batch = recall.texts(9, length, seed=3)
    assert batch.ids_BT.shape == (9, length) and int(batch.ids_BT.max()) < recall.FILL + recall.NOISE
    for row, distances in zip(batch.ids_BT.tolist(), batch.distance.tolist()):
        facts = {token // recall.VALUES: place for place, token in enumerate(row) if token < recall.ASK}
        assert len(facts) == sum(token < recall.ASK for token in row) == 6 and max(facts.values()) < length - 12
        questions = [(place, token - recall.ASK) for place, token in enumerate(row) if 32 <= token < recall.ANSWER]
        assert [place for place, _ in questions] == batch.asked.tolist() == list(range(length - 12, length, 2))
        assert sorted(key for _, key in questions) == sorted(facts)
        for (place, key), distance in zip(questions, distances):
            assert row[place + 1] - recall.ANSWER == row[facts[key]] % recall.VALUES
            assert distance == place - facts[key]


def test_the_same_seed_gives_the_same_texts_and_another_gives_others():
    assert torch.equal(recall.texts(4, 32, 5).ids_BT, recall.texts(4, 32, 5).ids_BT)
    assert not torch.equal(recall.texts(4, 32, 5).ids_BT, recall.texts(4, 32, 6).ids_BT)


def test_facts_questions_and_noise_do_not_tell_the_answer():
    batch = recall.texts(400, 32, 0)
    value = batch.ids_BT[:, batch.asked + 1] - recall.ANSWER
    share = torch.bincount(value.flatten()) / value.numel()
    assert (share - 0.25).abs().max() < 0.03  # 2400 answers: a standard deviation of 0.009


def test_logits_are_those_of_the_whole_text_at_its_questions():
    model, batch = v4.Model(recall.small("V4")), recall.texts(2, 32, 0)
    with torch.no_grad():
        whole = model(batch.ids_BT)[:, batch.asked]
        assert (recall.answers(model, batch) - whole).abs().max() < 1e-5


def test_the_v4_is_no_more_than_an_eighth_larger_than_its_rival():
    sizes = [sum(weight.numel() for weight in v4.Model(recall.small(kind)).parameters()) for kind in ("V4", "window")]
    assert 1 <= sizes[0] / sizes[1] < 1.125


def test_answers_are_counted_by_distance(monkeypatch):
    def knows_what_is_near(_model, batch):
        """Right up to 20 tokens back, wrong beyond."""
        right = batch.ids_BT[:, batch.asked + 1]
        said = torch.where(batch.distance <= 20, right, right + 1)
        return torch.nn.functional.one_hot(said, recall.FILL + recall.NOISE)

    monkeypatch.setattr(recall, "answers", knows_what_is_near)
    assert recall.by_distance(None, 64, n=100, edges=(1, 10, 21, 64)) == [1, 1, 0]


@pytest.mark.slow
def test_a_few_steps_of_everything_make_a_complete_record_that_can_be_kept(monkeypatch, tmp_path):
    short = recall.run
    monkeypatch.setattr(recall, "by_distance", lambda model, length, n=50: [0.12345] * 6)
    monkeypatch.setattr(recall, "run", lambda seed: short(seed, n_dense=2, n_warm_up=2, n_sparse=2))
    monkeypatch.setattr(recall, "LONGER", 96)
    kept = recall.measured()
    monkeypatch.setattr(recall, "FILE", tmp_path / "recall.json")
    monkeypatch.setattr(recall, "SEEDS", 1)
    recall.main()
    (one,) = recall.measured()
    assert one["answers"] == {name: [0.123] * 6 for name in kept[0]["answers"]}
    assert one["recall"].keys() == kept[0]["recall"].keys()
    assert json.loads(json.dumps(one)) == one


def test_the_kept_numbers_say_what_the_course_says():
    runs = recall.measured()
    assert len(runs) == 3
    answered = {name: np.array([run["answers"][name] for run in runs]) for name in runs[0]["answers"]}
    beyond = slice(4, None)  # the bins from 64 tokens on
    assert (answered["taught"][:, beyond] > 0.9).all()
    assert (answered["untaught"][:, beyond] < answered["taught"][:, beyond] - 0.2).all()
    assert (np.abs(answered["window"][:, beyond] - 0.25) < 0.05).all()
    for run in runs:
        before, after = (run["recall"][f"{when} the warm-up"]["256"] for when in ("before", "after"))
        assert abs(before["indexer"] - before["random"]) < 0.1 and after["indexer"] > 0.8 * after["oracle"]
