"""Bytes: the report's cache sizes, and what the real cache of a small model holds."""

import numpy as np
import pytest
import torch

from minidsv4 import Config, Model
from minidsv4.cost import V32, memory
from minidsv4.cost.baselines import gqa8, mha, mla
from minidsv4.cost.memory import (
    BF16,
    FP8_KEYS,
    PRODUCTION,
    Precision,
    cache,
    per_token,
    read_bytes,
    tail_room,
    tail_state,
)

FLASH, PRO, LONG = Config.flash(), Config.pro(), 2**20


def size(model, n_tokens=LONG, precision=PRODUCTION):
    return int(sum(cache(model, n_tokens, precision).values()))


@pytest.mark.parametrize(
    ("precision", "gigabytes", "ratios"),
    [
        (PRODUCTION, ["50.403", "5.280", "3.688"], ["9.55", "13.67"]),
        (FP8_KEYS, ["50.403", "5.784", "4.040"], ["8.71", "12.47"]),
        (BF16, ["90.060", "10.334", "7.220"], ["8.71", "12.47"]),
    ],
    ids=["production", "FP8 keys", "BF16"],
)
def test_the_cache_of_a_million_tokens_has_50_40_and_5_280_and_3_688_gigabytes(precision, gigabytes, ratios):
    v32, pro, flash = (size(model, LONG, precision) for model in (V32(), PRO, FLASH))
    assert [f"{n / 1e9:.3f}" for n in (v32, pro, flash)] == gigabytes
    assert [f"{v32 / n:.2f}" for n in (pro, flash)] == ratios


CURVE = {  # K tokens: GB of V3.2, Pro and Flash
    4: ("0.197", "0.0252", "0.0176"),
    32: ("1.575", "0.169", "0.118"),
    128: ("6.300", "0.664", "0.464"),
    256: ("12.60", "1.324", "0.924"),
    512: ("25.20", "2.642", "1.846"),
    1024: ("50.40", "5.280", "3.688"),
}


@pytest.mark.parametrize("length", CURVE)
def test_the_cache_curves_of_figure_1_pass_through_the_points_of_the_table(length):
    sizes = [size(model, length * 1024) / 1e9 for model in (V32(), PRO, FLASH)]
    assert tuple(f"{n:.{len(p.partition('.')[2])}f}" for n, p in zip(sizes, CURVE[length])) == CURVE[length]


def test_the_cache_is_2_02_and_2_00_percent_of_grouped_queries_with_8_heads():
    shares = [100 * size(config) / gqa8(config).cache_bytes(LONG) for config in (PRO, FLASH)]
    assert [f"{share:.2f}" for share in shares] == ["2.02", "2.00"]
    assert [f"{gqa8(config).cache_bytes(LONG) / 1e9:.1f}" for config in (PRO, FLASH)] == ["262.0", "184.7"]


def test_plain_attentions_keep_what_their_definitions_say():
    per_layer = {make.__name__: make(FLASH).cache_bytes(1) / 43 for make in (gqa8, mha, mla)}
    assert per_layer == {"gqa8": 4096, "mha": 2 * 64 * 128 * 2, "mla": 1152}
    assert mla(FLASH).flops(1) == 43 * 2 * 64 * (576 + 512)


def test_storing_every_window_entry_takes_7_88_and_7_95_times_the_compressed_entries():
    with_keys, without = [], []
    for config in (PRO, FLASH):
        grown = per_token(config)
        entries = grown["CSA entries"] + grown["HCA entries"]
        without.append(f"{grown['every window entry'] / entries:.2f}")
        with_keys.append(f"{grown['every window entry'] / (entries + grown['indexer keys']):.2f}")
    assert without == ["7.88", "7.95"]  # the report's "about 8 times" means without the indexer's keys
    assert with_keys == ["7.08", "7.15"]


def test_the_cache_grows_by_5031_and_3514_bytes_a_token():
    for config, slope in ((PRO, 5031), (FLASH, 3514)):
        grown = sum(amount for kind, amount in per_token(config).items() if kind != "every window entry")
        assert int(grown) == slope
        # Affine: any 128 tokens beyond the window add the same bytes, a whole number of entries of both kinds.
        sizes = np.diff(sum(cache(config, 128 * np.arange(2, 6)).values()))
        np.testing.assert_array_equal(sizes, 128 * grown)


def test_an_entry_has_584_bytes_a_key_68_and_a_token_of_v3_2_656_and_132():
    assert memory.entry_bytes(512, 64, "fp8") == 584 and memory.key_bytes(128, "fp4") == 68
    assert {kind: int(n) / 61 for kind, n in cache(V32(), 1).items()} == {"MLA entries": 656, "indexer keys": 132}
    assert memory.entry_bytes(512, 64, "bf16") == 1024 and memory.key_bytes(128, "bf16") == 256


def test_the_state_of_a_request_has_4_56_and_3_21_megabytes_of_window_and_18_7_and_12_2_of_tail():
    assert [f"{cache(config, LONG)['window'] / 1e6:.2f}" for config in (PRO, FLASH)] == ["4.56", "3.21"]
    assert [f"{tail_room(config) / 1e6:.1f}" for config in (PRO, FLASH)] == ["18.7", "12.2"]


def test_the_tail_never_needs_more_than_the_room_that_the_released_code_keeps():
    assert max(tail_state(FLASH, n) for n in range(1, 300)) <= tail_room(FLASH)


@pytest.mark.slow
@pytest.mark.parametrize("n_tokens", [1, 2, 3, 6, 7, 8, 11, 12, 13, 35, 36, 200])
@pytest.mark.parametrize(("dtype", "item"), [(torch.float32, "fp32"), (torch.float64, "fp64")])
def test_the_formula_equals_the_bytes_of_a_real_cache_kind_by_kind(n_tokens, dtype, item):
    config = Config.tiny()
    model = Model(config).to(dtype)
    real = model.new_cache(batch_size=2)
    model(torch.arange(2 * n_tokens).reshape(2, n_tokens) % config.vocab_size, cache=real)
    wanted = cache(config, n_tokens, Precision(item, item)) | {"tail state": 0}
    wanted["tail state"] = tail_state(config, n_tokens, memory.ITEM[item])
    assert real.report() == {kind: 2 * amount for kind, amount in wanted.items()}
    assert real.n_bytes() == 2 * sum(wanted.values())


def test_a_token_reads_all_keys_but_only_the_entries_that_it_picks():
    held = cache(FLASH, LONG)
    assert read_bytes(FLASH, LONG) == sum(held.values()) - held["CSA entries"] + 21 * 512 * 584
    assert read_bytes(FLASH, 2048) == sum(cache(FLASH, 2048).values())  # 512 entries: all are picked
    assert read_bytes(V32(), LONG) == 61 * (LONG * 132 + 2048 * 656)


@pytest.mark.parametrize("function", [cache, read_bytes])
def test_something_that_is_no_model_is_refused_with_a_sentence(function):
    with pytest.raises(ValueError, match="3 is no model; give a Config"):
        function(3, 4)
