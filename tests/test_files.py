"""Files appear whole or not at all: after an error, beside another writer, on a full disk."""

import errno
import os
import threading

import pytest

from minidsv4.files import atomic_file, atomic_folder, new_folder, writable_folder


def contents(folder):
    """Name and text of all that lies in a folder, hidden files included."""
    return {path.name: path.read_text() for path in folder.iterdir()}


# --- one file ---


def test_a_file_has_its_old_text_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "log"
    path.write_text("old")
    with atomic_file(path) as scratch:
        scratch.write_text("new")
        assert path.read_text() == "old" and scratch.parent.parent == tmp_path  # on the same file system
    assert contents(tmp_path) == {"log": "new"}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), ValueError("wrong"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_nothing_temporary(tmp_path, error):
    path = tmp_path / "log"
    path.write_text("old")
    with pytest.raises(type(error)), atomic_file(path) as scratch:
        scratch.write_text("half")
        raise error
    assert contents(tmp_path) == {"log": "old"}


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_that_fails_at_the_end_leaves_the_old_file_and_nothing_temporary(tmp_path, monkeypatch, step):
    path = tmp_path / "log"
    path.write_text("old")

    def fail(*_arguments):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="broken"), atomic_file(path) as scratch:
        scratch.write_text("new")
    monkeypatch.undo()
    assert contents(tmp_path) == {"log": "old"}


def test_a_file_is_as_readable_for_others_as_one_that_is_written_plainly(tmp_path):
    (tmp_path / "plain").write_text("")
    with atomic_file(tmp_path / "atomic") as scratch:
        scratch.write_text("")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


# --- several files ---


def test_files_move_together_once_all_are_on_the_disk_and_others_stay(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("old")
    (tmp_path / "other").write_text("kept")
    done = []
    for name in ("fsync", "replace"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *words, name=name, call=call: done.append(name) or call(*words))
    with atomic_folder(tmp_path) as scratch:
        for name in ("a", "b"):
            (scratch / name).write_text("new")
    assert done == ["fsync", "fsync", "replace", "replace"]
    assert contents(tmp_path) == {"a": "new", "b": "new", "other": "kept"}


def test_an_error_at_the_second_file_moves_the_first_one_neither(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path) as scratch:
        (scratch / "a").write_text("new")
        (scratch / "b").write_text(str(1 / 0))
    assert contents(tmp_path) == {"a": "old"}


# --- a new folder ---


def test_a_new_folder_appears_as_a_whole_with_those_above_it(tmp_path):
    with new_folder(tmp_path / "deep" / "new") as scratch:
        (scratch / "a").write_text("a")
        assert not (tmp_path / "deep" / "new").exists()
    assert contents(tmp_path / "deep" / "new") == {"a": "a"} and len(list((tmp_path / "deep").iterdir())) == 1
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "plain").stat().st_mode == (tmp_path / "deep" / "new").stat().st_mode


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_an_error_leaves_no_new_folder(error, tmp_path):
    with pytest.raises(type(error)), new_folder(tmp_path / "new") as scratch:
        (scratch / "a").write_text("a")
        raise error
    assert not list(tmp_path.iterdir())


def test_a_folder_that_came_to_be_in_the_meantime_is_left_as_it_is(tmp_path):
    with pytest.raises(FileExistsError, match="exists by now"), new_folder(tmp_path / "new") as scratch:
        (scratch / "a").write_text("a")
        (tmp_path / "new").mkdir()
    assert not list((tmp_path / "new").iterdir()) and len(list(tmp_path.iterdir())) == 1


# --- two writers ---


def test_of_two_writers_at_once_each_has_a_place_of_its_own_and_the_last_one_wins(tmp_path):
    path = tmp_path / "log"
    with atomic_file(path) as first:
        with atomic_file(path) as second:
            second.write_text("second")
            first.write_text("first")
        assert path.read_text() == "second"
    assert contents(tmp_path) == {"log": "first"}


def test_a_reader_never_sees_a_mixture_of_several_writers(tmp_path):
    path = tmp_path / "log"
    path.write_text("0" * 5000)

    def write(digit):
        for _ in range(20):
            with atomic_file(path) as scratch:
                scratch.write_text(digit * 5000)

    writers = [threading.Thread(target=write, args=(digit,)) for digit in "123"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        text = path.read_text()
        assert len(text) == 5000 and len(set(text)) == 1
    assert list(contents(tmp_path)) == ["log"]


# --- folders ---


def test_a_folder_is_made_and_one_that_cannot_be_is_refused_with_a_sentence(tmp_path):
    assert writable_folder(tmp_path / "deep" / "run").is_dir() and not list((tmp_path / "deep" / "run").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file: cannot be written to \(.*\); give another folder$"):
        writable_folder(tmp_path / "file")
