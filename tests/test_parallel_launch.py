"""Ranks as a user meets them: results in order, one sentence for every way to fail, and no process left behind."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import pytest
import torch
from torch import distributed as dist

from minidsv4.__main__ import main
from minidsv4.parallel import benchmark
from minidsv4.parallel.launch import LostContact, RankError, contact, device_of, join, run_ranks

WAIT = 2.0  # seconds that ranks wait for each other here


def meet(group):
    """Waits for all ranks."""
    dist.all_reduce(torch.ones(3), group=group)


def failure(fn, n=3):
    """What run_ranks says of it; no rank may be left."""
    with pytest.raises(RankError) as caught:
        run_ranks(fn, n, timeout=WAIT)
    assert multiprocessing.active_children() == []
    return caught.value


def test_results_come_back_by_rank_and_arguments_reach_every_rank():
    shared = torch.tensor([1.0, 2.0])

    def total(group, x, word):  # a local function: nothing is imported by the ranks
        x = x * (group.rank() + 1)
        dist.all_reduce(x, group=group)
        return x, word + str(group.rank()), group.size(), torch.get_num_threads()

    results = run_ranks(total, 3, shared, "rank ")
    assert [torch.equal(x, 6 * shared) for x, *_ in results] == [True] * 3
    assert [rest for _, *rest in results] == [["rank 0", 3, 1], ["rank 1", 3, 1], ["rank 2", 3, 1]]


def test_ranks_that_never_meet_end_well_too(capsys):
    assert run_ranks(lambda group: print("✓ rank", group.rank()), 3) == [None] * 3
    assert capsys.readouterr().out == "✓ rank 0\n✓ rank 1\n✓ rank 2\n"


def test_ranks_are_started_after_products_and_gradients_here():
    weight = torch.ones(200, 200, requires_grad=True)
    (weight @ weight).sum().backward()

    def product(group):
        (weight @ weight).sum().backward()
        return float(weight.grad[0, 0])

    assert run_ranks(product, 2) == [800.0, 800.0]


def test_a_killed_rank_is_named_and_the_others_end():
    def die(group):
        if group.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        meet(group)

    error = failure(die)
    assert error.ranks == [1] and "rank 1 was killed (SIGKILL); ranks 0, 2 ended for that" in str(error)


def test_a_rank_that_raises_is_named_with_its_traceback():
    def stumble(group):
        if group.rank() == 2:
            raise KeyError("no such expert")
        meet(group)

    error = failure(stumble)
    assert error.ranks == [2] and "rank 2 raised KeyError: 'no such expert'; ranks 0, 1" in str(error)
    assert 'raise KeyError("no such expert")' in str(error)


def test_the_sentence_has_the_first_line_of_a_long_error_and_blames_nobody_for_words_about_sockets():
    def stumble(group):
        if group.rank() == 1:
            raise ValueError("the socket timed out\nsays this function")
        meet(group)

    story, *trace = str(failure(stumble)).split("\n")
    assert story == "run_ranks: rank 1 raised ValueError: the socket timed out; ranks 0, 2 ended for that"
    assert "says this function" in trace


@pytest.mark.slow
@pytest.mark.parametrize("waiting", [True, False], ids=["others wait", "others are done"])
def test_a_rank_that_does_not_come_is_named_with_the_place_where_it_is(waiting):
    def linger(group):
        if group.rank() == 0:
            time.sleep(1000)
        if waiting:
            meet(group)

    began = time.monotonic()
    error = failure(linger)
    assert error.ranks == [0] and "rank 0 did not come while the others waited; ranks 1, 2" in str(error)
    assert "in linger" in str(error) and "run_ranks(fn" not in str(error)
    assert time.monotonic() - began < 20  # the promise; it takes about WAIT and 2 seconds


def test_ctrl_c_here_ends_all_ranks():
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        run_ranks(lambda group: time.sleep(1000), 3)
    assert multiprocessing.active_children() == []


def test_a_result_that_cannot_be_sent_back_and_an_exit_are_told():
    assert "cannot be sent back" in str(failure(lambda group: lambda: group, 2))
    assert "ranks 0, 1 ended with exit code 4" in str(failure(lambda group: sys.exit(4), 2))
    assert "ranks 0, 1 ended with exit code 0" in str(failure(lambda group: sys.exit(0), 2))  # without a result
    assert "ranks 0, 1 ended with exit code 5" in str(failure(lambda group: os._exit(5), 2))


def forever(folder):
    """A process group of its own, which runs three ranks that never end: the parent, and the ranks' numbers."""
    script = (
        "import os, sys, time\nfrom minidsv4.parallel import run_ranks\n"
        "def work(group):\n    os.write(fd, f'{os.getpid()}\\n'.encode())\n    time.sleep(1000)\n"
        "fd = os.dup(1)\nrun_ranks(work, 3)\n"
    )
    settings = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    parent = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"TMPDIR": str(folder)}, **settings)
    ranks = [int(parent.stdout.readline()) for _ in range(3)]
    assert all(map(alive, ranks)) and len(list(folder.glob("ranks-*"))) == 1
    return parent, ranks


def wait_for_the_end(parent, ranks):
    """Until the parent and its ranks are gone."""
    parent.wait()
    parent.stdout.close()
    for _ in range(200):
        if not any(map(alive, ranks)):
            break
        time.sleep(0.05)
    assert not any(map(alive, ranks))


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_no_rank_outlives_a_killed_parent_and_no_folder_stays(end, tmp_path):
    """Kind: nothing is left behind; before, `ranks-*` stayed in the temporary directory."""
    parent, ranks = forever(tmp_path)
    parent.send_signal(end)
    wait_for_the_end(parent, ranks)
    assert not list(tmp_path.glob("ranks-*"))


@pytest.mark.slow
def test_what_a_killed_group_of_processes_left_is_removed_by_the_next_run_and_nothing_that_is_in_use(
    tmp_path, monkeypatch
):
    """Kind: nothing is left behind; of a killed group no process is there to remove its folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    killed, gone = forever(tmp_path)
    (left,) = tmp_path.glob("ranks-*")
    os.killpg(killed.pid, signal.SIGKILL)
    wait_for_the_end(killed, gone)
    assert left.is_dir()
    (tmp_path / "other").mkdir()
    running, ranks = forever(tmp_path / "other")
    (used,) = (tmp_path / "other").glob("ranks-*")
    used = used.rename(tmp_path / used.name)
    long_ago = time.time() - 1000
    os.utime(used, (long_ago, long_ago))
    assert run_ranks(lambda group: 1, 1) == [1] and left.is_dir() and used.is_dir()  # one is young, one is locked
    os.utime(left, (long_ago, long_ago))
    assert left_after_runs(tmp_path, [used]) == [used]
    os.killpg(running.pid, signal.SIGKILL)
    wait_for_the_end(running, ranks)
    os.utime(used, (long_ago, long_ago))
    assert left_after_runs(tmp_path, []) == []


def left_after_runs(folder, wanted):
    """The ranks' folders after a run, or after more where a killed process has not let go of its lock yet."""
    for _ in range(50):
        assert run_ranks(lambda group: 1, 1) == [1]
        left = list(folder.glob("ranks-*"))
        if left == wanted:
            break
        time.sleep(0.2)
    return left


def alive(pid):
    """Whether a process runs; one that waits to be counted by its parent does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("fails", "words"),
    [
        (lambda group: os.kill(os.getpid(), signal.SIGKILL), "rank 0 was killed (SIGKILL)"),
        (lambda group: 1 // 0, "rank 0 raised ZeroDivisionError: integer division or modulo by zero"),
    ],
)
def test_a_rank_that_fails_ends_the_command_with_a_sentence_and_code_1(fails, words, monkeypatch, capsys):
    """Kind: a sentence; before, the command ended in the traceback of a RankError."""
    monkeypatch.setattr(benchmark, "compare_strategies", lambda *_: run_ranks(fails, 1, timeout=WAIT))
    assert main(["ranks"]) == 1
    assert capsys.readouterr().err == f"run_ranks: {words}.\n"


@pytest.mark.parametrize(("n", "words"), [(0, "n = 0 starts nothing"), (2.0, "n = 2.0 starts nothing")])
def test_no_ranks_are_refused(n, words):
    with pytest.raises(ValueError, match=words):
        run_ranks(meet, n)


def test_a_system_without_fork_is_told_which_systems_have_it(monkeypatch, capsys):
    """Kind: a refusal; before, the call and the command ended in a traceback of multiprocessing."""
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    monkeypatch.setattr(sys, "platform", "win32")
    words = "run_ranks: ranks are forks, which win32 does not have; use Linux, macOS or WSL"
    with pytest.raises(ValueError, match=words):
        run_ranks(meet, 2)
    assert main(["ranks", "--ranks", "2"]) == 2
    assert capsys.readouterr().err == f"{words}.\n"


def test_unknown_backends_ranks_within_ranks_and_joining_outside_of_torchrun_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="backend = 'mpi' is not known; it is one of gloo, nccl, hccl"):
        run_ranks(meet, 2, backend="mpi")
    with pytest.raises(ValueError, match="backend = 'mpi'"):
        device_of("mpi")
    assert "this process is a rank itself" in str(failure(lambda group: run_ranks(meet, 2), 1))
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="join: RANK"):
        join()


def test_a_process_that_torchrun_started_joins_by_its_environment():
    context = multiprocessing.get_context("fork")
    results, port = context.SimpleQueue(), free_port()

    def script(rank):
        torch.set_num_threads(1)
        os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT=str(port))
        group, x = join("gloo", timeout=60), torch.ones(2) * (rank + 1)
        dist.all_reduce(x, group=group)
        results.put((group.rank(), x.tolist()))
        dist.barrier()
        os._exit(0)

    ranks = [context.Process(target=script, args=(rank,)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert sorted(results.get() for _ in ranks) == [(0, [3.0, 3.0]), (1, [3.0, 3.0])]


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def test_lost_connections_become_a_sentence_with_the_rank_and_other_errors_pass_unchanged():
    with pytest.raises(LostContact, match="rank 3: while sending rows, another rank ended or did not come"):
        with contact(3, "sending rows"):
            raise RuntimeError("[gloo/transport/tcp/pair.cc:5] Connection closed by peer")
    with pytest.raises(RuntimeError, match="^shapes do not fit$"):
        with contact(3, "sending rows"):
            raise RuntimeError("shapes do not fit")
