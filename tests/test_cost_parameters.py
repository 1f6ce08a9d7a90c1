"""Parameters and checkpoint bytes: the report's numbers, the table of the specification, and real modules."""

import re
from collections import Counter

import pytest
import torch

from minidsv4 import Config, Model
from minidsv4.checkpoint import to_released
from minidsv4.cost import V32
from minidsv4.cost.parameters import checkpoint_bytes, parameters, total, weights, with_experts_in

FLASH, PRO = parameters(weights(Config.flash())), parameters(weights(Config.pro()))

TABLE = """
routed experts  277.025 6.493 1547.396 24.178
shared expert     1.082 1.082    4.030  4.030
wq_b              1.443 1.443    6.140  6.140
wo_a              1.443 1.443    4.094  4.094
wo_b              1.443 1.443    7.164  7.164
wq_a              0.180 0.180    0.672  0.672
wkv               0.090 0.090    0.224  0.224
compressors       0.260 0.260    0.668  0.668
indexer           0.226 0.226    0.501  0.501
router            0.045 0.045    0.168  0.168
mHC               0.034 0.034    0.084  0.084
embedding         0.530 0.000    0.927  0.000
head              0.530 0.530    0.927  0.927
"""


def billions(*counts):
    """Totals and active counts as printed in the table."""
    return [f"{number / 1e9:.3f}" for count in counts for number in (count.total, count.active)]


@pytest.mark.parametrize("row", TABLE.strip().splitlines(), ids=lambda row: re.split(r"\s{2,}", row)[0])
def test_each_component_has_as_many_parameters_as_the_table_prints(row):
    part, *printed = re.fullmatch(r"(\S+(?: \S+)?)" + r"\s+([\d.]+)" * 4, row).groups()
    assert billions(FLASH[part], PRO[part]) == printed


def test_flash_has_284_33_billion_parameters_of_which_a_token_uses_13_27():
    whole, with_table = total(FLASH), total(FLASH).active + FLASH["embedding"].total
    assert [f"{n / 1e9:.2f}" for n in (whole.total, whole.active, with_table)] == ["284.33", "13.27", "13.80"]
    assert f"{total(FLASH, mtp=True).total / 1e9:.2f}" == "290.94"
    assert f"{FLASH['MTP block'].total / 1e9:.2f}" == "6.61"


def test_pro_has_1573_0_billion_parameters_1598_8_with_mtp_of_which_a_token_uses_48_85():
    whole, with_table = total(PRO), total(PRO).active + PRO["embedding"].total
    assert f"{whole.total / 1e9:.1f}" == "1573.0" and f"{total(PRO, mtp=True).total / 1e9:.1f}" == "1598.8"
    assert [f"{n / 1e9:.2f}" for n in (whole.active, with_table)] == ["48.85", "49.78"]
    assert f"{PRO['MTP block'].total / 1e9:.2f}" == "25.84"


def test_v3_2_multiplies_each_token_with_37_48_billion_weights():
    assert f"{total(parameters(weights(V32()))).active / 1e9:.2f}" == "37.48"


def real_tensors(config):
    """(released name, shape) -> how many, of a model's tensors on the meta device; experts without their number."""
    with torch.device("meta"):
        state = to_released(Model(config).state_dict())
    return Counter((re.sub(r"experts\.\d+\.", "experts.", name), tuple(t.shape)) for name, t in state.items())


@pytest.mark.slow
@pytest.mark.parametrize("make", [Config.tiny, Config.mini, Config.flash, Config.pro])
def test_the_list_of_weights_is_that_of_the_whole_model_though_one_layer_of_each_combination_is_built(make):
    assert real_tensors(make()) == {(row.name, row.shape): row.copies for row in weights(make())}


def test_a_model_without_mtp_has_no_mtp_row_and_fewer_bytes():
    config = Config.flash()
    without = weights(config.replace(num_nextn_predict_layers=0))
    assert "MTP block" not in parameters(without)
    saved = checkpoint_bytes(weights(config)) - checkpoint_bytes(without)
    assert f"{saved / 1e9:.1f}" == "3.6"


@pytest.mark.parametrize(("make", "instruct", "base"), [(Config.flash, "159.6", 292), (Config.pro, "864.7", 1602)])
def test_the_released_checkpoints_have_159_6_and_864_7_gigabytes(make, instruct, base):
    rows = weights(make())
    assert f"{checkpoint_bytes(rows) / 1e9:.1f}" == instruct
    # The base models' sizes are quoted as "about".
    assert checkpoint_bytes(with_experts_in("fp8", rows)) / 1e9 == pytest.approx(base, abs=0.6)


def test_the_routed_experts_are_147_2_gigabytes_of_flash_and_822_1_of_pro():
    """The MTP block's experts are counted with that block."""
    sizes = []
    for config in (Config.flash(), Config.pro()):
        rows = [row for row in weights(config) if row.part == "routed experts"]
        sizes.append(f"{checkpoint_bytes(rows) / 1e9:.1f}")
    assert sizes == ["147.2", "822.1"]


def test_something_that_is_no_model_is_refused_with_a_sentence():
    with pytest.raises(ValueError, match="'flash' is no model; give a Config"):
        weights("flash")
