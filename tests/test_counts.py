"""Parameters of the released configs, counted on modules without memory: the paper's 284B and 1.6T, part by part."""

import functools
import re

import pytest
import torch

import minidsv4 as v4

PARTS = {  # how a parameter's name tells its part; the first that matches counts
    "mtp": r"^mtp\.",
    "vectors": r"norm|sink|\.ape$",  # not in the table
    "routed experts": r"\.ffn\.experts\.",
    "shared expert": r"\.shared_experts\.",
    "indexer": r"\.indexer\.",
    "compressors": r"\.compressor\.",
    "router": r"\.gate\.",
    "mHC": r"hc_",
    **{matrix: rf"\.attn\.{matrix}\." for matrix in ("wq_a", "wq_b", "wkv", "wo_a", "wo_b")},
    "embedding": r"^embed\.",
    "head": r"^head\.",
}

# Section 7's table in billions, to its printed digit.
FLASH = {"routed experts": 277.025, "shared expert": 1.082, "wq_b": 1.443, "wo_a": 1.443, "wo_b": 1.443, "wq_a": 0.180}
FLASH |= {"wkv": 0.090, "compressors": 0.260, "indexer": 0.226, "router": 0.045, "mHC": 0.034, "embedding": 0.530}
PRO = {"routed experts": 1547.396, "shared expert": 4.030, "wq_b": 6.140, "wo_a": 4.094, "wo_b": 7.164, "wq_a": 0.672}
PRO |= {"wkv": 0.224, "compressors": 0.668, "indexer": 0.501, "router": 0.168, "mHC": 0.084, "embedding": 0.927}
TABLE = {"flash": FLASH | {"head": 0.530}, "pro": PRO | {"head": 0.927}}


@functools.cache
def counts(name):
    """Parameters by part."""
    with torch.device("meta"):
        model = v4.Model(getattr(v4.Config, name)())
    total = dict.fromkeys(PARTS, 0)
    for parameter_name, parameter in model.named_parameters():
        assert parameter.is_meta
        total[next(part for part, pattern in PARTS.items() if re.search(pattern, parameter_name))] += parameter.numel()
    return total


@pytest.mark.slow
@pytest.mark.parametrize(("name", "part"), [(name, part) for name, table in TABLE.items() for part in table])
def test_the_parameters_of_a_part_are_those_of_the_table(name, part):
    assert round(counts(name)[part] / 1e9, 3) == TABLE[name][part]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "digits", "without_mtp", "with_mtp", "mtp"),
    [("flash", 2, 284.33, 290.94, 6.61), ("pro", 1, 1573.0, 1598.8, 25.8)],
)
def test_all_parameters_with_and_without_mtp_are_those_of_the_report(name, digits, without_mtp, with_mtp, mtp):
    total = sum(counts(name).values()) / 1e9
    block = counts(name)["mtp"] / 1e9
    assert [round(n, digits) for n in (total - block, total, block)] == [without_mtp, with_mtp, mtp]


@pytest.mark.slow
def test_norms_sinks_and_position_biases_are_not_in_the_table_and_are_few():
    for name in ("flash", "pro"):
        assert counts(name)["vectors"] < 4e6  # most of it: 128 biases of 512 channels in each HCA layer


def test_the_mtp_block_of_flash_is_one_window_block_two_matrices_and_its_own_collapse():
    config = v4.Config.flash().replace(num_hidden_layers=1, compress_ratios=(0, 0), num_hash_layers=0)
    with torch.device("meta"):
        block = v4.Model(config.replace(num_nextn_predict_layers=0)).layers[0]
    width, collapse = config.hidden_size, 4 * 4 * config.hidden_size + 5
    expected = sum(parameter.numel() for parameter in block.parameters()) + 2 * width**2 + 3 * width + collapse
    assert counts("flash")["mtp"] == expected
