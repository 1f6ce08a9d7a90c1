"""Pacing by a fake clock: the books of link, chip and late work; and real ranks whose emulated times are exact."""

import pytest
import torch
from small import normal

from minidsv4.parallel import FakeClock, PacedTransport, benchmark, run_ranks
from minidsv4.parallel.launch import RankError

LINK, SPEED = 100.0, 1000.0  # bytes and FLOP a second


def with_one_rank(work):
    """What `work(transport, clock)` returns on one rank whose transport is paced by a fake clock."""

    def run(group):
        clock = FakeClock()
        return work(PacedTransport(group, LINK, SPEED, latency=0.5, clock=clock), clock)

    return run_ranks(run, 1)[0]


def test_exchanges_wait_for_the_link_one_after_the_other_and_products_for_the_chip():
    def work(transport, clock):
        times, deadlines = [], [transport.deadline(200), transport.deadline(100)]  # 2 s, then 1 s, and latencies
        with transport.computing(3000):
            pass
        times.append(clock.seconds)
        for deadline in deadlines:
            transport.settle(deadline, asked=clock.seconds)
            times.append(clock.seconds)
        clock.sleep(2)  # an idle link is not saved up
        return times, deadlines, transport.deadline(100), transport.late

    times, deadlines, later, late = with_one_rank(work)
    assert deadlines == [2.5, 4.0] and times == [3.0, 3.0, 4.0]
    assert later == 7.5 and late == 0


def test_work_that_takes_longer_than_its_time_is_late_and_is_not_hidden():
    def work(transport, clock):
        with transport.computing(1000):
            clock.sleep(1.25)
        with transport.computing(1000):
            clock.sleep(0.25)
        after = clock.seconds
        asked, deadline = clock.seconds, transport.deadline(100)
        clock.sleep(1.6)  # the real exchange
        transport.settle(deadline, asked)
        return after, clock.seconds, transport.late, transport.overruns

    after, end, late, overruns = with_one_rank(work)
    assert (after, end) == (2.25, 3.85) and late == 2 / 3
    assert overruns == pytest.approx([0.25, -0.75, 0.1])


def test_a_machine_that_wakes_a_rank_too_late_is_found_out():
    def work(transport, clock):
        clock.sleep = lambda seconds: setattr(clock, "seconds", clock.seconds + seconds + 0.125)
        for _ in range(2):
            with transport.computing(1000):
                pass
        return clock.seconds, transport.late, transport.overslept

    assert with_one_rank(work) == (2.25, 0, 0.25)


def test_an_exchange_asked_for_after_its_time_is_late_only_by_what_is_still_waited_for():
    def work(transport, clock):
        deadline = transport.deadline(100)
        clock.sleep(9)
        transport.settle(deadline, asked=clock.seconds)
        clock.sleep(0.5)
        transport.settle(deadline, asked=9.0)
        return transport.overruns, clock.seconds

    assert with_one_rank(work) == ([0, 0.5], 9.5)


def test_only_what_leaves_the_rank_takes_time_whichever_direction_has_more():
    def work(group):
        clock, rank = FakeClock(), group.rank()
        transport = PacedTransport(group, LINK, SPEED, clock=clock)
        counts = [[5, 2], [7, 4]]  # rank 0 keeps 5 rows and sends 2, rank 1 sends 7
        handle = transport.issue(normal(sum(counts[rank]), 10), counts[rank], [counts[0][rank], counts[1][rank]])
        out = handle.wait()
        return clock.seconds, transport.sent_bytes, out

    (first, second) = run_ranks(work, 2)
    assert first[:2] == (5.6, 160) and second[:2] == (5.6, 560)  # 7 rows of 80 bytes at 100 bytes a second
    assert torch.equal(first[2], torch.cat([normal(7, 10)[:5], normal(11, 10)[:7]]))
    assert torch.equal(second[2], torch.cat([normal(7, 10)[5:], normal(11, 10)[7:]]))


@pytest.mark.parametrize("settings", [dict(link=0.0, device=1.0), dict(link=1.0, device=-1.0)])
def test_speeds_that_cannot_be_are_refused(settings):
    with pytest.raises(RankError, match="PacedTransport: link = .* are speeds above 0"):
        run_ranks(lambda group: PacedTransport(group, **settings), 1)


# --- a layer on real ranks, emulated times ---


@pytest.fixture(scope="module")
def emulated():
    """Waves on two ranks at two ratios, by the fake clock alone."""
    return {rho: benchmark.measure_waves(2, rho, (1, 2, 3, 4, 6), seconds=1.0, rounds=0) for rho in (1.0, 1.22)}


@pytest.mark.slow
def test_w_waves_take_1_and_rho_over_w_times_the_products_until_the_link_is_never_idle(emulated):
    for rho, runs in emulated.items():
        for run in runs:
            assert run.expected == pytest.approx(max(1 + rho / run.waves, rho), rel=1e-3)  # bytes are whole numbers
            assert run.expected_gain == pytest.approx((1 + rho) / run.expected, rel=1e-3)


def test_the_number_of_waves_changes_no_bit_of_the_output(emulated):
    assert all(run.equal for runs in emulated.values() for run in runs)


def test_rounds_by_the_wall_are_counted_and_late_ones_known():
    (run,) = benchmark.measure_waves(2, 1.0, (2,), seconds=1e-6, rounds=2)  # no product is as quick
    assert run.fair == 0 and run.equal and run.measured > run.expected


def test_ratios_and_times_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="rho = -1, seconds = 0.15"):
        benchmark.measure_waves(2, -1)


def test_strategies_send_what_the_formulas_say_and_pairs_give_one_process_bit_for_bit():
    costs = {cost.strategy: cost for cost in benchmark.compare_strategies(4)}
    n, width = 4, benchmark.NARROW[0]
    assert costs["allreduce"].sent_bytes == 2 * (n - 1) * 4 * width
    # allgather: the token with its weights there, its picks as int64 too, partial sums back
    assert costs["allgather"].sent_bytes == (n - 1) * (4 * (2 * width + benchmark.A) + 8 * benchmark.A)
    pairs = benchmark.A * (n - 1) / n * 4 * (2 * width + 1)
    assert costs["alltoall"].sent_bytes == costs["waves"].sent_bytes == pairs
    assert all(costs[name].output and costs[name].gradients for name in ("alltoall", "waves"))
    assert all(0 < costs[name].off < 1e-6 for name in ("allreduce", "allgather"))  # float32, sums of six


# --- the command ---


def test_the_command_prints_both_tables(capsys):
    from minidsv4.__main__ import main

    assert main(["ranks", "--waves", "2", "--rounds", "0", "--device", "Ascend-950DT", "--model", "pro"]) == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines() if "bit for bit" in line] == ["alltoall", "waves"]
    assert "Ascend 950DT has 2,313 FLOP for a byte of its link, V4-Pro is in balance at 6,144: transfers" in said
    assert "transfers take 0.38 times as long as products" in said
    assert [line.split()[0] for line in said.splitlines() if line.endswith("yes")] == ["1", "2"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--device", "M4"], "--device M4 is not known; it is one of H800"),
        (["--model", "gpt"], "--model gpt is not known; it is one of flash, pro"),
        (["--ranks", "5"], "--ranks 5 cannot share 48 experts evenly"),
        (["--waves", "25"], "--waves 25, but a rank has 24 experts; give 1 .. 24"),
        (["--ranks", "1"], "--ranks 1 cannot share 48 experts evenly; give one of 2, 3, 4, 6"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_any_rank_starts(monkeypatch, capsys, words, says):
    from minidsv4.__main__ import main

    monkeypatch.setattr(benchmark, "run_ranks", None)
    assert main(["ranks", *words]) == 2
    assert says in capsys.readouterr().err
