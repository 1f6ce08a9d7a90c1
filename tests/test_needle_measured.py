"""The needle runs that ship: they hold what the issue asks for, and a rerun at short length gives the same again."""

import json
from pathlib import Path

import pytest
import torch

from minidsv4.checksums import digest
from minidsv4.course.mutants import mutant
from minidsv4.course.tables import Table
from minidsv4.experiments import choices, facts, needle, needle_measured, needle_recipe
from minidsv4.experiments.needle_state import Point
from minidsv4.train.programs import document, programs
from minidsv4.train.ship import pretrained_tokenizer

ROOT = Path(__file__).resolve().parents[1]
MILLION = 1 << 20


@pytest.fixture(scope="module")
def runs():
    return needle_measured.measured()


@pytest.fixture(scope="module")
def shipped():
    return needle_recipe.load_needle()


@torch.inference_mode()
def found(model, source, n_tokens, seed, chunk=4096):
    """Whether each needle of a text is found that is read so many tokens at a time."""
    hay, cache = facts.haystack(source, n_tokens, seed), model.new_cache()
    model.prefill(hay.ids_BT, cache, chunk=chunk)
    return needle.asked(model, hay, cache)


# ---- what ships ----


def test_at_least_95_of_100_needles_are_found_in_a_million_tokens_at_over_20_depths_in_three_texts(runs):
    assert runs.lengths("CSA") == needle.lengths(MILLION)
    for n_tokens in runs.lengths("CSA"):
        points = runs.at("CSA", n_tokens)
        assert [point.seed for point in points] == [0, 1, 2]
        assert all(len(set(point.depths)) >= 20 for point in points)
    assert runs.accuracy("CSA")[MILLION] >= 0.95


def test_without_the_picks_of_the_indexer_hardly_more_is_found_than_by_guessing(runs):
    for choice in set(choices.CHOICES) - {"CSA"}:
        accuracy = runs.accuracy(choice)
        assert max(accuracy) > 16384 and max(accuracy.values()) < 5 * facts.CHANCE, choice


def test_the_page_of_what_was_measured_holds_the_table_of_what_ships(runs):
    page = (ROOT / "minidsv4" / "bench" / "README.md").read_text(encoding="utf-8")
    assert Table(needle_measured.HEAD, needle_measured.rows(runs)).markdown() in page


def test_the_points_are_of_the_weights_that_ship(runs, shipped):
    flat = torch.cat([tensor.flatten().double() for tensor in shipped.state_dict().values()])
    assert runs.of["weights"] == digest("weights", flat)[:16]


@pytest.mark.slow
def test_a_rerun_at_short_length_gives_what_is_stored(runs, shipped):
    """On another Python the standard library is another text, of which as good as all needles are found as well."""
    source = facts.source_ids()
    same = runs.of["source"] == digest("source", source)[:16]
    for n_tokens in (1024, 4096):
        (stored,) = [point for point in runs.at("CSA", n_tokens) if point.seed == 0]
        right = found(shipped, source, n_tokens, 0)
        assert right == stored.right if same else sum(right) >= 30


# ---- keys of earlier chunks ----


@pytest.mark.slow
def test_needles_of_earlier_chunks_are_lost_with_their_keys(shipped):
    """Kind: an engine that hands the indexer the keys of the present call alone; one short prompt is right."""
    texts = pretrained_tokenizer().encode_all(document(program) for program in programs(3, 40))
    source = torch.tensor([token for text in texts for token in text])
    assert sum(found(shipped, source, 1024, 1, chunk=100)) == 32
    with mutant("keys_of_the_last_chunk_only"):
        assert sum(found(shipped, source, 1024, 1, chunk=100)) <= 5
        hay = facts.haystack(source, 1024, 1)
        for number, value in enumerate(hay.value[:3].tolist()):
            whole_BT = torch.cat([hay.ids_BT, hay.question(number)], dim=1)
            assert int(shipped(whole_BT, last=1).argmax()) == value


# ---- gathering ----


def record(choice="CSA", n_tokens=1024, seed=0, source="s", right=(True, False)):
    """A point of a run as its folder keeps it."""
    sizes = dict(cache={"window": 8, "keys": 4}, mha_bytes=4000, peak_bytes=3_000_000, n_threads=2)
    taken = dict(prefill_seconds=0.51234567, token_seconds=0.00201234567)
    told = dict(choice=choice, n_tokens=n_tokens, seed=seed, depths=[0.0, 0.5], right=[*right], ranks=[0, 9])
    return told | taken | sizes | dict(weights="w", source=source)


def kept(folder, *records):
    """A folder of these points."""
    folder.mkdir()
    (folder / "points.json").write_text(json.dumps({"points": records}), encoding="utf-8")
    return folder


def test_points_of_several_folders_are_kept_once_a_task_in_order(tmp_path):
    folders = [
        kept(tmp_path / "a", record(seed=1), record(n_tokens=4096), record()),
        kept(tmp_path / "b", record("random"), record(right=(True, True))),
    ]
    content = needle_measured.gathered(folders, "a machine")
    path = tmp_path / "kept.json"
    path.write_text(needle_measured.written(content), encoding="utf-8")
    runs = needle_measured.measured(path)
    tasks = [(point.choice, point.n_tokens, point.seed) for point in runs.points]
    assert tasks == [("CSA", 1024, 0), ("CSA", 1024, 1), ("CSA", 4096, 0), ("random", 1024, 0)]
    assert isinstance(runs.points[0], Point) and runs.points[0].right == [True, True]  # the later folder's
    assert runs.points[0].token_seconds == 0.002012
    assert (runs.of["machine"], runs.of["weights"]) == ("a machine", "w")
    assert runs.accuracy("CSA") == {1024: 0.75, 4096: 0.5} and runs.lengths("random") == [1024]
    assert needle_measured.rows(runs)[0] == ("1,024", "3 of 4", "2,000", "2.0", "12 B", "4 kB", "3 MB", "2")


def test_points_of_two_texts_are_refused(tmp_path):
    folder = kept(tmp_path / "a", record(), record(seed=1, source="other"))
    with pytest.raises(ValueError, match="2 pairs of weights and text in these folders; give the folders of one"):
        needle_measured.gathered([folder], "")
