"""Compiled loops on torch's own threads: every share is worked on once, and a failure is heard."""

import os
import subprocess
import sys
import threading
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from minidsv4.fast.compiled import threads

TEAMS = {
    "torch's": threads.gnu_openmp,
    "threads of Python": lambda: None,
    "a team of one": lambda: SimpleNamespace(GOMP_parallel=lambda member, data, n_members, flags: member(data)),
    "a team that an interrupt kept from work": lambda: SimpleNamespace(GOMP_parallel=lambda *_: None),
}


@pytest.fixture(params=TEAMS.values(), ids=TEAMS)
def team(request, monkeypatch):
    """Who works: torch's threads where there are any, others where not, and fewer than were asked for."""
    monkeypatch.setattr(threads, "gnu_openmp", request.param)


@pytest.mark.parametrize("n_threads", [1, 2, 3, 9])
def test_every_token_is_in_one_share(n_threads, team, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    tokens, seen = np.arange(7), []
    threads.with_threads(lambda mine, doubled, factor: seen.append((mine, doubled, factor)), [tokens, 2 * tokens], 5)
    assert len(seen) == min(n_threads, 7) and {factor for *_, factor in seen} == {5}
    assert sorted(np.concatenate([mine for mine, *_ in seen])) == list(tokens)
    assert all((doubled == 2 * mine).all() for mine, doubled, _ in seen)


def test_a_failure_is_raised_when_all_others_are_done(team):
    done = []

    def call(number):
        if number == 1:
            raise KeyError("the second share")
        done.append(number)

    with pytest.raises(KeyError, match="the second share"):
        threads.at_once([partial(call, number) for number in range(4)])
    assert sorted(done) == [0, 2, 3]


def test_two_threads_of_a_program_may_use_them_at_once(team):
    sums = np.zeros((2, 50, 3))

    def work(lane):
        for sum_P in sums[lane]:
            threads.at_once([partial(np.add.at, sum_P, place, place + 1) for place in range(3)])

    lanes = [threading.Thread(target=work, args=(lane,)) for lane in range(2)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    assert (sums == [1, 2, 3]).all()


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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_of_fork_has_no_team_and_takes_threads_of_its_own():
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.split() == ["True"]
