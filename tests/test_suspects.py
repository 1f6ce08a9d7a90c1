"""Servers that lose something, and processes that are killed: what notebook 16 is built on."""

import pytest
import torch

from minidsv4.course import figures, kills, suspects


@pytest.fixture(scope="module")
def model():
    torch.set_default_dtype(torch.float64)
    yield figures.small_hybrid()[0]
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("loses", suspects.PIECES)
def test_a_suspect_lost_one_piece_of_earlier_chunks_and_no_byte(loses, model):
    ids = torch.randint(61, (1, 33), generator=torch.Generator().manual_seed(3))
    caches = [suspects.read(model, ids, 6, it) for it in (None, loses)]
    sound, sick = (suspects.pieces(cache) for cache in caches)
    assert caches[0].report() == caches[1].report() and list(sound) == list(sick)
    differs = {name: (rows - sick[name]).abs().amax(-1) > 1e-9 for name, rows in sound.items()}
    first = next(name for name, rows in differs.items() if rows.any())
    lost = (sick[first] == 0).all(-1)
    assert first.endswith(loses) and torch.equal(differs[first], lost)
    assert not lost[-1] and int(lost.sum()) == {"window": 5, "CSA entries": 7, "indexer keys": 7}.get(loses, 3)


def test_a_sound_server_reads_as_one_pass_and_the_case_is_one_of_the_losses(model):
    ids = torch.randint(61, (1, 33), generator=torch.Generator().manual_seed(3))
    cache = model.new_cache()
    model(ids, cache=cache)
    sound, whole = suspects.pieces(suspects.read(model, ids, 6)), suspects.pieces(cache)
    assert all(torch.allclose(rows, whole[name], atol=1e-10) for name, rows in sound.items())
    case = suspects.pieces(suspects.of_the_case(model, ids, 6))
    assert [name for name, rows in case.items() if (rows == 0).all(-1).any()] == ["layer 1 indexer keys"]
    with pytest.raises(ValueError, match="loses = 'head' is no piece of a cache; it is one of window"):
        suspects.read(model, ids, 6, "head")
    for chunk in (0, -6, 2.5, True):
        with pytest.raises(ValueError, match=f"read: chunk = {chunk} cannot be; it is a whole number from 1"):
            suspects.read(model, ids, chunk)


def test_a_process_is_killed_once_its_file_has_so_many_lines(tmp_path):
    path = tmp_path / "lines"

    def count():
        with path.open("a", buffering=1) as file:
            while True:
                print("line", file=file)

    kills.kill_at(20, path, count)
    n_lines = path.read_text().count("\n")
    assert n_lines >= 20 and path.read_text().count("\n") == n_lines
    with pytest.raises(RuntimeError, match="the work ended before"):
        kills.kill_at(n_lines + 10, path, lambda: None)
