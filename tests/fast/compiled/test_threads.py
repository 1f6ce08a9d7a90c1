"""Compiled loops on torch's own threads: every share is worked on once, and a failure is heard."""

import ctypes
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from minidsv4.fast.compiled import threads
from minidsv4.fast.compiled.jit import kept

PARALLEL = ctypes.CFUNCTYPE(
    None, ctypes.CFUNCTYPE(None, ctypes.c_void_p), ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
)
ASK = ctypes.CFUNCTYPE(ctypes.c_int)
OF_ONE = PARALLEL(lambda member, data, n_members, flags: member(data)), ASK(lambda: 0), ASK(lambda: 1)
TEAMS = {
    "torch's": threads.addresses_of_team,
    "threads of Python": lambda: None,
    "a team of one": lambda: tuple(ctypes.cast(function, ctypes.c_void_p).value for function in OF_ONE),
}


def count(token_T, visits_T, seen_ZT, factor):
    for t in range(len(token_T)):
        visits_T[t] += factor
        seen_ZT[0, token_T[t]] += 1


def fail(token_T, room_T):
    for t in range(len(token_T)):
        if token_T[t] == 4:
            raise MemoryError("compiled loops: a share of the work failed")
        room_T[t] = 1


def add(number_T, sum_T):
    for t in range(len(number_T)):
        sum_T[t] += number_T[t]


def take_away(number_T, sum_T):
    for t in range(len(number_T)):
        sum_T[t] -= number_T[t]


count, fail, add, take_away = kept(count), kept(fail), kept(add), kept(take_away)


@pytest.fixture(params=TEAMS.values(), ids=TEAMS)
def team(request, monkeypatch):
    """Who works: torch's threads where there are any, others where not, and fewer than were asked for."""
    monkeypatch.setattr(threads, "addresses_of_team", request.param)


def use_threads(monkeypatch, n_threads):
    """As many shares; the team keeps its size."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_of_two_loops_that_take_the_same_each_does_its_own_work(n_threads, team, monkeypatch):
    use_threads(monkeypatch, n_threads)
    for loop, sign in ((add, 1), (take_away, -1), (add, 1)):
        sum_T = np.zeros(7, int)
        threads.with_threads(loop, [np.arange(7), sum_T])
        assert (sum_T == sign * np.arange(7)).all()


@pytest.mark.parametrize("n_threads", [1, 2, 3, 9])
def test_every_token_is_in_one_share_and_every_share_has_its_own_room(n_threads, team, monkeypatch):
    use_threads(monkeypatch, n_threads)
    n_shares = min(n_threads, 7)
    visits_T, seen_ZT = np.zeros(7, int), np.zeros((n_shares, 7), int)
    threads.with_threads(count, [np.arange(7), visits_T, seen_ZT], 5)
    assert (visits_T == 5).all() and (seen_ZT.sum(0) == 1).all()
    assert sorted(seen_ZT.sum(1)) == sorted(len(share) for share in np.array_split(np.arange(7), n_shares))


def test_a_failure_is_raised_when_all_others_are_done(team, monkeypatch):
    use_threads(monkeypatch, 7)
    room_T = np.zeros(7, int)
    with pytest.raises((MemoryError, RuntimeError), match="^compiled loops: a share of the work failed"):
        threads.with_threads(fail, [np.arange(7), room_T])
    assert (room_T == (np.arange(7) != 4)).all()


def test_two_threads_of_a_program_may_use_them_at_once(team, monkeypatch):
    use_threads(monkeypatch, 3)
    visits = np.zeros((2, 50, 7), int)

    def work(lane):
        for visits_T in visits[lane]:
            threads.with_threads(count, [np.arange(7), visits_T, np.zeros((3, 7), int)], 1)

    lanes = [threading.Thread(target=work, args=(lane,)) for lane in range(2)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    assert (visits == 1).all()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' torch has another library")
def test_the_library_is_the_one_that_torch_has_loaded(tmp_path):
    nothing, other = tmp_path / "none", tmp_path / "maps"
    line = "7f00-7f01 r-xp 0 08:01 1 {}/libgomp.so.1\n"
    other.write_text(line.format("/usr/lib") + line.format("/usr/torch-env/lib") + "7f02-7f03 rw-p 0 00:00 0 \n")
    assert threads.gnu_openmp(nothing) is None and threads.gnu_openmp(other) is None
    brought_along = [path for folder in threads.OF_TORCH for path in folder.glob("libgomp*")]
    assert (threads.gnu_openmp() is not None) == bool(brought_along)


FORKED = """
import os, torch
import minidsv4 as v4

torch.set_num_threads(2)
logits = torch.randn(1, 8, 4, 4)
once = v4.COMPILED.sinkhorn(logits, 3, 1e-6)
if os.fork() == 0:
    print(torch.equal(v4.COMPILED.sinkhorn(logits, 3, 1e-6), once), flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_of_fork_has_no_team_and_takes_threads_of_its_own():
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.split() == ["True"]
