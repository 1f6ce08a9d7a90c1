"""Time at best: two ceilings worked out by hand, what fits where, and the laptop."""

import re

import pytest

from minidsv4 import Config
from minidsv4.cost import V32, flops, memory
from minidsv4.cost.hardware import DEVICES, LAPTOPS, Device
from minidsv4.cost.parameters import checkpoint_bytes, weights
from minidsv4.cost.roofline import decode_step, fits, seconds, weight_bytes

FLASH, PRO = Config.flash(), Config.pro()
MAIN = [row for row in weights(FLASH) if row.part != "MTP block"]
LAPTOP = DEVICES["M4 Max laptop"]


def test_one_sequence_waits_for_memory_and_a_large_batch_of_short_ones_for_compute():
    chip = DEVICES["H20"]  # the least compute for its bandwidth
    assert decode_step(FLASH, 1024, chip, batch=1).bound == "memory"
    assert decode_step(FLASH, 1024, chip, batch=8192).bound == "compute"


def test_the_memory_ceiling_is_the_bytes_in_use_over_the_bandwidth():
    bits, n_tokens = 4.25, 32768
    active = sum(row.active * row.size for row in MAIN)
    moved = active * bits / 8 + memory.read_bytes(FLASH, n_tokens)
    step = decode_step(FLASH, n_tokens, LAPTOP, bits=bits, n_devices=1)
    assert step.seconds == pytest.approx(moved / 546e9, rel=1e-12)  # float64 sums in another order
    assert step.tokens_per_second == pytest.approx(1 / step.seconds)


def test_the_compute_ceiling_takes_each_kind_at_the_peak_of_its_format():
    one = flops.decode(FLASH, 2**20)
    b200 = seconds(one, DEVICES["B200"])
    # Rates of 1, 2 and 4 for 16, 8 and 4 bits are those of the FP8-equivalent.
    assert b200 == pytest.approx(flops.weighted(one) / 4500e12, rel=1e-12)
    assert seconds(one, DEVICES["H200"]) > flops.weighted(one) / 1979e12  # no FP4: the indexer runs in FP8


def test_a_batch_reads_every_expert_once_and_a_single_token_6_of_256():
    routed = [row for row in MAIN if row.part == "routed experts"]
    whole = weight_bytes(routed, 8)
    assert weight_bytes(routed, 8, batch=1) == pytest.approx(whole * 6 / 256)
    assert weight_bytes(routed, 8, batch=2) == pytest.approx(whole * (1 - (250 / 256) ** 2))
    assert weight_bytes(routed, 8, batch=10_000) == pytest.approx(whole)
    assert weight_bytes([row for row in MAIN if row.part == "embedding"], 8, batch=64) == 0


@pytest.mark.parametrize("model", [FLASH, PRO, V32()], ids=["flash", "pro", "v3.2"])
@pytest.mark.parametrize("name", DEVICES)
def test_the_devices_that_a_step_takes_hold_weights_and_caches_and_one_less_does_not(name, model):
    step = decode_step(model, 131072, DEVICES[name], batch=16)
    rows = [row for row in weights(model) if row.part != "MTP block"]
    held = checkpoint_bytes(rows) + 16 * sum(memory.cache(model, 131072).values())
    assert (step.n_devices - 1) * DEVICES[name].memory < held <= step.n_devices * DEVICES[name].memory


def test_flash_fits_into_128_gigabytes_at_3_bits_and_not_at_4_25():
    bits = [16, 8, 4.25, 3, 2.5]
    for n_tokens in (32 * 1024, 128 * 1024, 2**20):
        assert [fits(FLASH, n_tokens, b, LAPTOP) for b in bits] == [False, False, False, True, True]
    assert [f"{weight_bytes(MAIN, b) / 1e9:.1f}" for b in bits] == ["568.7", "284.3", "151.1", "106.6", "88.9"]


def test_each_device_says_where_its_numbers_come_from():
    assert all(len(device.source.split()) >= 3 for device in DEVICES.values())
    assert {DEVICES[name].memory for name in LAPTOPS} == {128e9}


def test_a_missing_format_runs_at_the_next_wider_one():
    chip = Device("c", {16: 1.0, 8: 2.0}, 1, 1, 1, "")
    assert [chip.peak(bits) for bits in (16, 8, 4)] == [1.0, 2.0, 2.0]


@pytest.mark.parametrize("name", LAPTOPS)
def test_a_laptop_without_a_published_rate_is_not_infinitely_fast(name):
    laptop = DEVICES[name]
    with pytest.raises(ValueError, match=rf"peak: for {re.escape(name)} no FLOP rate of 8 bits or more is published"):
        laptop.peak(8)
    with pytest.raises(ValueError, match="no FLOP rate"):
        seconds({"FP8 products": 1e9}, laptop)
    step = decode_step(FLASH, 32768, laptop, batch=4096)
    assert (step.matmul_seconds, step.bound) == (None, "memory at least: no FLOP rate")
    assert step.seconds == step.memory_seconds


def test_the_ratios_of_compute_to_link_are_those_of_the_table():
    ratios = {name: device.peak(8) / device.link for name, device in DEVICES.items() if device.link}
    printed = {"H800": 9.9e3, "H20": 658, "H200": 4398, "B200": 5000, "Ascend 910C": 3837, "Ascend 950PR": 865}
    for name, ratio in printed.items():
        assert ratios[name] == pytest.approx(ratio, rel=0.001)  # the table prints three or four digits


def test_a_device_fits_to_the_byte_with_weights_cache_and_tail():
    needed = weight_bytes(MAIN, 3) + sum(memory.cache(FLASH, 2**20).values()) + memory.tail_room(FLASH)
    exact, short = (Device("d", {}, room, 1, 0, "") for room in (needed, needed - 1))
    assert fits(FLASH, 2**20, 3, exact) and not fits(FLASH, 2**20, 3, short)
