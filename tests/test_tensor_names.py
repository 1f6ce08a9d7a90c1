"""Released and transformers' names of every tensor, both directions, bit for bit; folders there and back."""

import re

import pytest
import torch
from oracle import pair
from safetensors.torch import load_file
from small import TINY, small_model, token_ids
from transformers import AutoModelForCausalLM

import minidsv4 as v4
from minidsv4.checkpoint import (
    from_released,
    layout,
    released_name,
    saving,
    to_released,
    to_transformers,
    transformers_name,
)
from minidsv4.checkpoint.names import MTP, ROLES, in_roles
from minidsv4.checkpoint.shards import INDEX


@pytest.fixture(scope="module")
def twins():
    """The same weights here and in transformers; and transformers' tensors, without its table of angles."""
    ours, reference = pair(TINY, seed=5)
    return ours, reference, {n: t for n, t in reference.state_dict().items() if not n.endswith("inv_freq")}


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one
    )


def test_each_name_of_transformers_leads_to_a_released_one_and_back(twins):
    released = [name for name in layout(TINY) if not name.startswith("mtp.")]
    assert {transformers_name(name) for name in released} == set(twins[2])
    for name in released:
        expert = re.search(r"\bexperts\.\d", name)
        assert expert or released_name(transformers_name(name)) == name


def test_tensors_go_to_transformers_and_back_bit_for_bit(twins):
    ours, _, theirs = twins
    there = to_transformers(ours.state_dict())
    assert same(there, theirs)
    assert same(from_released(there), ours.state_dict())
    assert same(to_transformers(from_released(theirs)), theirs)


def test_tensors_go_to_released_names_and_back_bit_for_bit():
    state = small_model(dtype=torch.float32).state_dict()
    assert same(from_released(to_released(state)), state)
    without_mtp = {name: tensor for name, tensor in state.items() if not name.startswith("mtp.")}
    assert same(from_released(to_transformers(state)), without_mtp)


def test_a_folder_of_transformers_becomes_one_here_and_one_there_again_bit_for_bit(twins, tmp_path):
    ours, reference, theirs = twins
    reference.save_pretrained(tmp_path / "theirs", max_shard_size="50KB")
    v4.save(v4.load(tmp_path / "theirs"), tmp_path / "ours")
    assert same(load_file(tmp_path / "ours" / "model.safetensors"), to_released(ours.state_dict()))
    v4.export_hf(v4.load(tmp_path / "ours"), tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path / "again", attn_implementation="eager", experts_implementation="eager"
    )
    assert same({n: t for n, t in again.state_dict().items() if not n.endswith("inv_freq")}, theirs)


def test_an_export_in_several_files_opens_there_and_is_replaced_as_a_whole(tmp_path, monkeypatch):
    """Kind: files of an older save, whole or cut, that are read in place of the new ones."""
    model, options = small_model(dtype=torch.float32), dict(attn_implementation="eager", experts_implementation="eager")
    v4.export_hf(small_model(seed=1, dtype=torch.float32), tmp_path)
    for shard_bytes in (50_000, 100_000, 10**9):
        monkeypatch.setattr(saving, "SHARD_BYTES", shard_bytes)
        v4.export_hf(model, tmp_path)
        weights = sorted(path.name for path in tmp_path.glob("*.safetensors"))
        assert (len(weights) == 1) == (shard_bytes == 10**9) and (tmp_path / INDEX).is_file() == (len(weights) > 1)
        assert weights[-1] in ("model.safetensors", f"model-{len(weights):05}-of-{len(weights):05}.safetensors")
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, **options).state_dict()
        for name, tensor in to_transformers(model.state_dict()).items():
            assert torch.equal(theirs[name], tensor), name


def test_a_released_folder_in_few_bits_goes_to_transformers_with_the_numbers_it_stands_for(tmp_path):
    config = TINY.replace(hidden_size=64, moe_intermediate_size=32, n_routed_experts=5)
    v4.save(small_model(config, dtype=torch.float32), tmp_path / "few", precision="released")
    model = v4.load(tmp_path / "few")
    v4.export_hf(model, tmp_path / "theirs")
    reference = AutoModelForCausalLM.from_pretrained(
        tmp_path / "theirs", attn_implementation="eager", experts_implementation="eager"
    )
    assert same(
        {n: t for n, t in reference.state_dict().items() if not n.endswith("inv_freq")},
        to_transformers(model.state_dict()),
    )
    ids_BT = token_ids(2, 30, config=config)
    with torch.no_grad():
        theirs = reference(ids_BT).logits
        assert (model(ids_BT) - theirs).abs().max() < 1e-5 * theirs.abs().max()  # float32, 4 layers deep


def test_the_table_names_every_tensor_of_the_layout_once_and_its_place_here():
    found = set(map(in_roles, layout(TINY)))
    listed = [role.released for role in ROLES]
    assert set(listed) == found and len(listed) - len(set(listed)) == 4  # the MTP block has a head of its own
    state = {re.sub(r"^(layers|mtp)\.\d+\.", "", name) for name in v4.Model(TINY).state_dict()}
    assert {re.sub(r"\[N\]$", "", role.here) for role in ROLES} == state
    assert all(role.holds for role in ROLES) and all(not role.transformers for role in MTP)
