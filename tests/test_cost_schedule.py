"""Schedules on three lanes: closed forms, invariants of any timeline, and the report's figure 5."""

from dataclasses import astuple, replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidsv4 import Config
from minidsv4.cost.hardware import DEVICES
from minidsv4.cost.megamoe import FIGURE_5, FIGURE_5_LAGS, FIGURE_5_SPEEDUPS
from minidsv4.cost.schedule import (
    BF16,
    FP8,
    LANES,
    STAGES,
    Stages,
    Task,
    balance_point,
    comet,
    comet_speedup,
    figure_comet,
    figure_waves,
    ideal_speedup,
    naive,
    simulate,
    stages,
    waves,
)

FLASH, PRO = Config.flash(), Config.pro()
B200 = stages(FLASH, DEVICES["B200"])
TIMES = st.builds(Stages, *[st.floats(0.01, 10)] * 5)
REPEATABLE = settings(max_examples=50, deadline=None, derandomize=True)
ROUNDED = 1e-9  # sums of some hundred float64 numbers


def speedup(part: Stages, schedule=waves, **how) -> float:
    return part.serial / schedule(part, **how).time


def unit(rho, activation=0) -> Stages:
    """Stages whose products take 1, split as the released shapes and formats split them."""
    return Stages(rho / 3, 2 / 3, activation, 1 / 3, 2 * rho / 3)


# --- the balance of compute and link ---


def test_flash_hides_a_transfer_at_4096_flop_a_byte_and_pro_at_6144():
    assert (balance_point(FLASH), balance_point(PRO)) == (4096, 6144)


def test_the_balance_point_is_twice_the_expert_width_whatever_the_model_width_is():
    assert balance_point(FLASH.replace(hidden_size=1024, moe_intermediate_size=96)) == 192


@pytest.mark.parametrize(("formats", "point"), [((BF16, BF16), 4608), ((FP8, FP8), 9216), ((FP8 + 1 / 32, BF16), 6081)])
def test_other_formats_move_the_balance_point_of_pro(formats, point):
    assert round(balance_point(PRO, *formats)) == point  # 1/32: a scale byte for 32 numbers


def test_rho_of_a_device_is_its_flops_a_byte_over_the_balance_point():
    printed = {"H20": 0.16, "Ascend 950DT": 0.56, "Ascend 910C": 0.94, "B200": 1.22, "H800": 2.4}
    for name, rho in printed.items():
        device = DEVICES[name]
        assert stages(FLASH, device).rho == pytest.approx(device.peak(8) / device.link / balance_point(FLASH))
        assert stages(FLASH, device).rho == pytest.approx(rho, rel=0.02)  # printed to two digits


def test_a_laptop_has_no_neighbours():
    with pytest.raises(ValueError, match="M4 Max laptop has no link"):
        stages(FLASH, DEVICES["M4 Max laptop"])


# --- closed forms ---


def test_perfect_overlap_is_worth_most_at_rho_1_and_there_exactly_2():
    rhos = [Fraction(n, 100) for n in range(1, 500)]
    gains = [ideal_speedup(rho) for rho in rhos]
    assert max(gains) == 2 and rhos[gains.index(2)] == 1 and gains.count(2) == 1
    # rho = 1 is where a device has exactly 2 F FLOP/s for each byte/s.
    even = replace(DEVICES["B200"], flops={8: balance_point(PRO) * 1e9}, link=1e9)
    assert stages(PRO, even).rho == pytest.approx(1, abs=ROUNDED)


def test_comet_gains_exactly_one_and_a_half_from_rho_a_half_to_2_and_less_outside():
    inside = {comet_speedup(Fraction(n, 100)) for n in range(50, 201)}
    assert inside == {Fraction(3, 2)}
    assert comet_speedup(Fraction(49, 100)) < Fraction(3, 2) > comet_speedup(Fraction(201, 100))


@pytest.mark.slow
@REPEATABLE
@given(st.floats(0.05, 5), st.floats(0, 0.5))
def test_many_small_tiles_reach_the_closed_forms(rho, activation):
    part = unit(rho, activation)
    assert speedup(part, comet, n_tiles=400) == pytest.approx(comet_speedup(rho, activation), rel=0.01)
    if activation < max(1, rho):
        # The first tile of all stages and the last one stay exposed.
        assert speedup(part, n_waves=40, n_tiles=5) == pytest.approx(ideal_speedup(rho, activation), rel=0.04)


@pytest.mark.parametrize(("n_waves", "gain"), [(1, 1), (2, 4 / 3), (3, 3 / 2), (4, 8 / 5), (8, 16 / 9)])
def test_whole_waves_of_one_product_leave_one_wave_of_transfers_exposed_at_rho_1(n_waves, gain):
    part = Stages(1 / 3, 0, 0, 1, 2 / 3)  # both products in one go
    assert speedup(part, n_waves=n_waves, n_tiles=1) == pytest.approx(gain, abs=ROUNDED)


# --- invariants ---

SCHEDULES = {
    "naive": naive,
    "comet": comet,
    "waves": waves,
    "whole waves": lambda part: waves(part, 4, start="wave"),
    "one tile": lambda part: waves(part, 7, n_tiles=1),
    "combine first": lambda part: waves(part, first="combine"),
}


@pytest.mark.parametrize("name", SCHEDULES)
@REPEATABLE
@given(part=TIMES)
def test_a_timeline_does_all_work_one_task_a_lane_after_what_it_needs(name, part):
    timeline = SCHEDULES[name](part)
    done = {(span.task.stage, span.task.part): span for span in timeline.spans}
    for stage, lane in STAGES.items():
        total = sum(span.end - span.start for span in timeline.spans if span.task.stage == stage)
        assert total == pytest.approx(getattr(part, stage), rel=ROUNDED)
        spans = sorted(span[1:] for span in timeline.spans if span.task.lane == lane)
        assert all(earlier[1] <= later[0] for earlier, later in zip(spans, spans[1:]))
    assert all(done[needed].end <= span.start for span in timeline.spans for needed in span.task.needs)


@pytest.mark.parametrize("name", SCHEDULES)
@REPEATABLE
@given(part=TIMES)
def test_no_schedule_beats_its_busiest_lane_or_loses_to_one_stage_after_the_other(name, part):
    time = SCHEDULES[name](part).time
    assert part.bound * (1 - ROUNDED) <= time <= part.serial * (1 + ROUNDED)


@REPEATABLE
@given(part=TIMES)
def test_naive_takes_the_sum_of_the_stages_and_no_lane_works_beside_another(part):
    timeline = naive(part)
    assert timeline.time == pytest.approx(sum(astuple(part)), rel=ROUNDED)
    assert sum(timeline.busy(lane) for lane in LANES) == pytest.approx(timeline.time, rel=ROUNDED)


@REPEATABLE
@given(part=TIMES, factor=st.floats(1e-9, 1e9))
def test_a_speedup_depends_on_ratios_only(part, factor):
    scaled = Stages(*(factor * time for time in astuple(part)))
    assert speedup(scaled, comet) == pytest.approx(speedup(part, comet), rel=1e-6)


def test_the_same_layer_gives_the_same_timeline_to_the_last_bit():
    assert waves(B200, 6) == waves(B200, 6)


def test_a_lane_takes_what_stands_first_among_what_may_begin():
    tasks = [Task("dispatch", 0, 1.0), Task("linear1", 7, 1.0, (("dispatch", 1),)), Task("dispatch", 1, 2.0)]
    tasks += [Task("linear2", 0, 5.0), Task("linear1", 8, 1.0, (("dispatch", 0),))]
    starts = {(span.task.stage, span.task.part): span.start for span in simulate(tasks).spans}
    assert starts == {
        **{("dispatch", 0): 0, ("dispatch", 1): 1, ("linear2", 0): 0},
        **{("linear1", 7): 5, ("linear1", 8): 6},
    }


def test_tasks_that_can_never_begin_are_refused():
    with pytest.raises(ValueError, match=r"needs \('combine', 3\), which is not among"):
        simulate([Task("dispatch", 0, 1.0, (("combine", 3),))])
    with pytest.raises(ValueError, match="2 of 3 tasks wait for themselves"):
        tasks = [Task("linear1", 0, 1.0, (("linear2", 0),)), Task("linear2", 0, 1.0, (("linear1", 0),))]
        simulate([*tasks, Task("dispatch", 0, 1.0)])


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (dict(n_waves=0), "n_waves = 0"),
        (dict(n_tiles=-1), "n_tiles = -1"),
        (dict(start="token"), "start = 'token', it is one of tile, wave"),
        (dict(first="both"), "first = 'both', it is one of dispatch, combine"),
    ],
)
def test_a_schedule_that_is_none_is_refused_by_field(how, words):
    with pytest.raises(ValueError, match=words):
        waves(B200, **how)


# --- the report's figure 5 ---


def test_the_bars_of_figure_5_give_its_two_speedups_by_its_own_geometry():
    first = FIGURE_5_LAGS["first"]
    drawn = {"comet": figure_comet(FIGURE_5, first, FIGURE_5_LAGS["comet"])}
    drawn["waves"] = figure_waves(FIGURE_5, first, FIGURE_5_LAGS["waves"])
    for name, time in drawn.items():
        assert FIGURE_5.serial / time == pytest.approx(FIGURE_5_SPEEDUPS[name], abs=0.01)  # a pixel is 0.1%


def test_the_bars_of_figure_5_simulated_give_its_two_speedups():
    assert speedup(FIGURE_5, comet) == pytest.approx(1.42, abs=0.01)
    assert speedup(FIGURE_5) == pytest.approx(1.909, abs=0.01)
    assert speedup(FIGURE_5, start="wave") == pytest.approx(1.755, abs=0.01)
    assert FIGURE_5.rho == pytest.approx(1.185, abs=0.001)


def test_the_data_sheet_of_b200_gives_figure_5_with_nothing_fitted():
    assert speedup(B200, comet) == pytest.approx(FIGURE_5_SPEEDUPS["comet"], abs=0.02)
    assert speedup(B200) == pytest.approx(FIGURE_5_SPEEDUPS["waves"], abs=0.03)
    assert B200.rho == pytest.approx(FIGURE_5.rho, rel=0.04)
    assert B200.activation / B200.products == pytest.approx(FIGURE_5.activation / FIGURE_5.products, rel=0.09)


PRINTED = {  # device: Comet, 3 waves started by tiles
    **{"B200": (1.420, 1.913), "H200": (1.427, 1.838), "Ascend 910C": (1.421, 1.783)},
    **{"Ascend 950DT": (1.434, 1.533), "H800": (1.359, 1.464)},
}


@pytest.mark.parametrize("name", PRINTED)
def test_the_speedups_of_flash_at_the_peaks_of_each_device(name):
    part = stages(FLASH, DEVICES[name])
    assert (speedup(part, comet), speedup(part)) == pytest.approx(PRINTED[name], abs=0.001)


@pytest.mark.parametrize(
    ("config", "name", "gains"),
    [
        (FLASH, "B200", {1: 1.20, 2: 1.58, 3: 1.77, 4: 1.89, 6: 1.91}),
        (PRO, "B200", {1: 1.22, 2: 1.48, 3: 1.59, 4: 1.65, 6: 1.72, 8: 1.76, 32: 1.85}),
        (FLASH, "Ascend 950DT", {3: 1.46, 8: 1.55}),
        (PRO, "Ascend 950DT", {3: 1.32, 8: 1.37}),
    ],
    ids=["Flash B200", "Pro B200", "Flash 950DT", "Pro 950DT"],
)
def test_waves_that_start_only_when_all_their_tokens_are_there(config, name, gains):
    part = stages(config, DEVICES[name])
    for n_waves, gain in gains.items():
        assert speedup(part, n_waves=n_waves, start="wave") == pytest.approx(gain, abs=0.006)  # printed to two digits


def test_at_b200_more_waves_do_not_help_once_the_link_is_never_idle_and_combine_first_makes_it_idle():
    assert speedup(B200, n_waves=12) == pytest.approx(speedup(B200), abs=0.001)
    assert waves(B200).busy("link") == pytest.approx(waves(B200).time, rel=ROUNDED)
    assert speedup(B200, first="combine") < 1.82 < 1.91 < speedup(B200)
