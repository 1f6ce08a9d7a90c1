"""The log of rollouts: what was appended is read again, and nothing else is; see `test_rollouts.py` for runs."""

import errno
import random

import pytest

from minidsv4.serve.rollout_log import RolloutLog

RUN = {"model": "m", "seeds": [0, 1]}


def write(path, steps, run=RUN):
    with RolloutLog(path, run, 2) as log:
        for step in steps:
            log.append(step)
    return log.written


STEPS = [[(0, 5), (1, 7)], [(0, 6)], [(1, 1)], [(0, 123), (1, 0)]]


def test_what_was_appended_is_read_again_and_goes_on(tmp_path):
    path = tmp_path / "log"
    assert write(path, STEPS) == [[5, 6, 123], [7, 1, 0]]
    assert write(path, []) == [[5, 6, 123], [7, 1, 0]]
    assert write(path, [[(1, 9)]]) == [[5, 6, 123], [7, 1, 0, 9]]
    assert write(path, []) == [[5, 6, 123], [7, 1, 0, 9]]


def test_a_kill_at_any_byte_leaves_a_whole_beginning(tmp_path):
    path = tmp_path / "log"
    write(path, STEPS)
    whole = path.read_bytes()
    tokens = [pair for step in STEPS for pair in step]
    for n_bytes in range(len(whole) + 1):
        path.write_bytes(whole[:n_bytes])
        with RolloutLog(path, RUN, 2) as log:
            n_kept = max(0, whole[:n_bytes].count(b"\n") - 1)  # one line is the header
            assert log.written == [[t for text, t in tokens[:n_kept] if text == i] for i in (0, 1)]
            log.append(tokens[n_kept:])
        assert path.read_bytes() == whole


def test_no_changed_bit_goes_unseen(tmp_path):
    path = tmp_path / "log"
    write(path, STEPS)
    whole = path.read_bytes()
    torn = whole[: whole.rstrip().rfind(b"\n") + 1]
    for place in range(len(whole)):
        for bit in range(8):
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            try:
                write(path, [])
            except ValueError as error:
                assert "damaged" in str(error) or "another run" in str(error)
            else:  # the end of the last line is gone, so that it is one that a kill had torn
                assert place == len(whole) - 1 and path.read_bytes() == torn


def test_lines_that_are_missing_doubled_or_swapped_are_refused(tmp_path):
    path = tmp_path / "log"
    write(path, STEPS)
    head, *lines = path.read_bytes().splitlines(keepends=True)
    moved = lines[1:], lines[:1] + lines, [lines[1], lines[0], *lines[2:]], lines[:2] + lines[3:]
    added = [[*lines[:place], b"x\r", *lines[place:]] for place in range(len(lines))]
    for changed in (*moved, *added):
        path.write_bytes(b"".join([head, *changed]))
        with pytest.raises(ValueError, match=r"line \d of .* is damaged; remove it"):
            write(path, [])


@pytest.mark.parametrize("run", [{"model": "n", "seeds": [0, 1]}, {"model": "m", "seeds": [0, 2]}, {"model": "m"}])
def test_the_log_of_another_run_is_refused_with_what_differs_and_left_as_it_is(tmp_path, run):
    path = tmp_path / "log"
    write(path, STEPS)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"another run \({'model' if run['model'] == 'n' else 'seeds'} differ\)"):
        write(path, [[(0, 1)]], run)
    assert path.read_bytes() == before


def test_any_other_file_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "log"
    for content in (b"hello\n", b"hello", b"{}\n", b"{]", b"\xff\xfe\n\n", b"[1] 00\n", b"\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="another run"):
            write(path, [])
        assert path.read_bytes() == content


def test_two_processes_do_not_write_one_log(tmp_path):
    with RolloutLog(tmp_path / "log", RUN, 2) as log:
        with pytest.raises(ValueError, match="written by another process"):
            RolloutLog(tmp_path / "log", RUN, 2)
        log.append([(0, 1)])
    assert write(tmp_path / "log", []) == [[1], []]


class Full:
    """A file on a disk that has room for some more bytes only."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        n_written = self.file.write(data[: self.room])
        self.room -= n_written
        return n_written

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_a_full_disk_loses_nothing_that_was_logged_and_the_run_may_go_on(tmp_path):
    for room in range(26):
        path = tmp_path / f"log{room}"
        with RolloutLog(path, RUN, 2) as log:
            log.append([(0, 3)])
            file, log.file = log.file, Full(log.file, room)
            with pytest.raises(OSError, match=r"no room|No space"):
                log.append([(0, 4), (1, 5)])
            assert log.written == [[3], []]
            log.file = file
            log.append([(1, 6)])
        assert write(path, []) == [[3], [6]]


def test_a_long_random_run_in_many_pieces(tmp_path):
    rng = random.Random(0)
    right = [[], []]
    for _ in range(20):
        steps = [[(rng.randrange(2), rng.randrange(70_000)) for _ in range(rng.randrange(4))] for _ in range(9)]
        for text, token in (pair for step in steps for pair in step):
            right[text].append(token)
        assert write(tmp_path / "log", steps) == right
