"""Checkpoints: released names, bit-exact round trips, folders of transformers both ways, and what is refused.

Then the released formats: which tensor is kept in FP8, and every way in which a scale can be wrong.
"""

import copy
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import forks
import pytest
import torch
from oracle import pair
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small import TINY, off, small_model, token_ids
from transformers import AutoModelForCausalLM, modeling_rope_utils

import minidsv4 as v4
from minidsv4 import checkpoint
from minidsv4.__main__ import main
from minidsv4.checkpoint import from_released, loading, saving, to_released
from minidsv4.checkpoint.shards import Shards
from minidsv4.cost.parameters import checkpoint_bytes, with_experts_in
from minidsv4.cost.parameters import weights as bill_of
from minidsv4.lowbit import formats, fp8, mxfp4
from minidsv4.train import ship
from minidsv4.train.recompute import recomputing
from minidsv4.train.tokenizer import Tokenizer

WEIGHTS, INDEX, SUMS = "model.safetensors", "model.safetensors.index.json", "SHA256SUMS"


def names_in(folder):
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        return set(file.keys())


def released_names(config):
    """Every name of the released files, written out from the list of roles."""
    names = {"embed.weight", "norm.weight", "head.weight"}
    collapse = {f"hc_head_{part}" for part in ("fn", "base", "scale")}
    names |= collapse | {f"mtp.0.{name}" for name in collapse}
    names |= {f"mtp.0.{name}.weight" for name in ("e_proj", "h_proj", "enorm", "hnorm", "norm")}
    layers = [(f"layers.{n}.", *kinds) for n, kinds in enumerate(zip(config.layer_types, config.mlp_layer_types))]
    for prefix, kind, routing in [*layers, ("mtp.0.", v4.LayerKind.WINDOW, v4.Routing.LEARNED)]:
        parts = {f"attn.{name}.weight" for name in ("wq_a", "q_norm", "wq_b", "wkv", "kv_norm", "wo_a", "wo_b")}
        parts |= {"attn.attn_sink", "attn_norm.weight", "ffn_norm.weight", "ffn.gate.weight"}
        parts |= {"ffn.gate.tid2eid" if routing is v4.Routing.HASH else "ffn.gate.bias"}
        owners = [*(f"experts.{n}" for n in range(config.n_routed_experts)), "shared_experts"]
        parts |= {f"ffn.{owner}.{w}.weight" for owner in owners for w in ("w1", "w2", "w3")}
        parts |= {f"hc_{site}_{part}" for site in ("attn", "ffn") for part in ("fn", "base", "scale")}
        compressors = {"CSA": ["attn.compressor", "attn.indexer.compressor"], "HCA": ["attn.compressor"]}
        for name in compressors.get(kind.name, []):
            parts |= {f"{name}.wkv.weight", f"{name}.wgate.weight", f"{name}.ape", f"{name}.norm.weight"}
        if kind is v4.LayerKind.CSA:
            parts |= {"attn.indexer.wq_b.weight", "attn.indexer.weights_proj.weight"}
        names |= {prefix + name for name in parts}
    return names


def same_weights(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A float32 model and the folder it was saved into; read only."""
    model, folder = small_model(dtype=torch.float32), tmp_path_factory.mktemp("saved")
    v4.save(model, folder)
    return model, folder


@pytest.fixture(scope="module")
def twins():
    """The same weights here and in transformers."""
    return pair(TINY, seed=3)


# ---- this package's own folder ----


def test_a_saved_file_has_the_released_names_and_no_others(saved):
    assert names_in(saved[1]) == released_names(TINY)


def test_gate_and_up_of_an_expert_are_apart_in_the_file(saved):
    model, folder = saved
    tensors, w13 = load_file(folder / WEIGHTS), model.layers[2].ffn.experts.w13
    assert torch.equal(tensors["layers.2.ffn.experts.5.w1.weight"], w13[5, : TINY.moe_intermediate_size])
    assert torch.equal(tensors["layers.2.ffn.experts.5.w3.weight"], w13[5, TINY.moe_intermediate_size :])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_saving_and_loading_keeps_every_bit_the_dtype_and_the_config(dtype, tmp_path):
    model = small_model(dtype=dtype)
    v4.save(model, tmp_path / "new" / "folder")
    back = v4.load(tmp_path / "new" / "folder")
    assert same_weights(model, back) and back.config == model.config
    assert [p.dtype for p in back.parameters()] == [
        p.dtype for p in model.parameters()
    ] and back.embed.weight.dtype == dtype
    ids_BT = token_ids(2, 14)
    assert torch.equal(back(ids_BT), model(ids_BT))
    assert torch.equal(back.loss(ids_BT).total, model.loss(ids_BT).total)


def test_a_file_without_mtp_gives_a_model_without_mtp(saved, tmp_path):
    model, folder = saved
    tensors = {name: t for name, t in load_file(folder / WEIGHTS).items() if not name.startswith("mtp.")}
    save_file(tensors, tmp_path / WEIGHTS)
    model.config.to_json(tmp_path / "config.json")
    back = v4.load(tmp_path)
    assert not back.mtp and torch.equal(back(token_ids(2, 14)), model(token_ids(2, 14)))


def test_the_draft_stages_of_a_release_stay_in_the_file_unread(saved, tmp_path):
    """Kind: V4-Flash-0731, whose `mtp.*` tensors are three stages of another kind."""
    model, folder = saved
    save_file(load_file(folder / WEIGHTS) | {"mtp.2.markov.weight": torch.ones(3)}, tmp_path / WEIGHTS)
    fields = model.config.to_dict() | {"compress_ratios": [0, 3, 12, 3, 0, 0, 0], "num_nextn_predict_layers": 3}
    fields["layer_types"] = [*fields["layer_types"], "sliding_attention", "sliding_attention"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.warns(UserWarning, match="draft stages"):
        back = v4.load(tmp_path)
    assert not back.mtp and torch.equal(back(token_ids(2, 14)), model(token_ids(2, 14)))


def test_an_mtp_block_that_the_config_denies_is_refused_and_not_left_out_in_silence(saved, tmp_path):
    model, folder = saved
    shutil.copy(folder / WEIGHTS, tmp_path / WEIGHTS)
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict() | {"num_nextn_predict_layers": 0}))
    with pytest.raises(ValueError, match=r"not known: mtp\.0\."):
        v4.load(tmp_path)


def test_saving_leaves_nothing_else_in_the_folder(tmp_path):
    v4.save(small_model(dtype=torch.float32), tmp_path)
    assert sorted(os.listdir(tmp_path)) == [SUMS, "config.json", WEIGHTS]


# ---- folders of transformers ----


def test_a_folder_of_save_pretrained_loads_with_equal_logits(twins, tmp_path):
    ours, reference = twins
    reference.save_pretrained(tmp_path)
    back = v4.load(tmp_path)
    assert same_weights(back, ours)
    ids_BT = token_ids(2, 30)
    assert off(back(ids_BT), reference(ids_BT).logits) < 1e-5  # rounding of float32, 4 layers deep


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_folder_of_mixed_types_keeps_the_type_and_the_bits_of_every_tensor(dtype, twins, tmp_path):
    twins[1].save_pretrained(tmp_path / "wide")
    options = dict(dtype=dtype, attn_implementation="eager", experts_implementation="eager")
    AutoModelForCausalLM.from_pretrained(tmp_path / "wide", **options).save_pretrained(tmp_path / "mixed")
    back = v4.load(tmp_path / "mixed")
    stored = from_released({checkpoint.released_name(n): t for n, t in load_file(tmp_path / "mixed" / WEIGHTS).items()})
    assert {tensor.dtype for tensor in stored.values()} == {dtype, torch.float32, torch.int64}
    for name, tensor in back.state_dict().items():
        assert tensor.dtype == stored[name].dtype and torch.equal(tensor, stored[name]), name
    assert back(token_ids(2, 40)).isfinite().all()
    v4.save(back, tmp_path / "again")
    again = load_file(tmp_path / "again" / WEIGHTS)
    assert all(again[name].dtype == tensor.dtype for name, tensor in to_released(stored).items())
    assert same_weights(v4.load(tmp_path / "again"), back)


@pytest.mark.parametrize("name", ["layers.1.attn.wq_b.weight", "layers.1.ffn.experts.3.w2.weight", "head.weight"])
def test_one_matrix_wider_than_the_embedding_is_not_rounded(name, saved, tmp_path):
    def narrow_all_but_one(tensors):
        for key, tensor in tensors.items():
            if tensor.is_floating_point() and key != name:
                tensors[key] = tensor.bfloat16()
        for expert in range(TINY.n_routed_experts):  # a stack has one type
            key = name.replace("experts.3", f"experts.{expert}")
            tensors[key] = tensors[key].float()

    back = v4.load(damaged(saved, tmp_path, narrow_all_but_one))
    assert torch.equal(to_released(back.state_dict())[name], load_file(saved[1] / WEIGHTS)[name])
    assert back(token_ids(2, 14)).isfinite().all()


def test_islands_stored_in_16_bits_are_float32_in_the_model(saved, tmp_path):
    def narrow(tensors):
        for key, tensor in tensors.items():
            tensors[key] = tensor.bfloat16() if tensor.is_floating_point() else tensor

    back = v4.load(damaged(saved, tmp_path, narrow))
    assert back.embed.weight.dtype == torch.bfloat16
    assert back.layers[1].ffn.gate.bias.dtype == back.layers[0].attn.attn_sink.dtype == torch.float32


def test_a_folder_in_shards_loads_as_a_whole(twins, tmp_path):
    ours, reference = twins
    reference.save_pretrained(tmp_path, max_shard_size="50KB")
    assert (tmp_path / INDEX).is_file() and not (tmp_path / WEIGHTS).is_file()
    assert same_weights(v4.load(tmp_path), ours)


def test_the_names_of_a_state_dict_of_transformers_load_too(twins, tmp_path):
    ours, reference = twins
    state = {name: t.contiguous() for name, t in reference.state_dict().items() if not name.endswith("inv_freq")}
    assert "model.layers.0.self_attn.q_a_proj.weight" in state and "model.layers.1.mlp.experts.gate_up_proj" in state
    save_file(state, tmp_path / WEIGHTS)
    reference.config.save_pretrained(tmp_path)
    assert same_weights(v4.load(tmp_path), ours)


def test_an_exported_folder_opens_in_transformers_with_every_tensor_in_its_place(saved, tmp_path):
    model, _ = saved
    v4.export_hf(model, tmp_path)
    # The experts' default wants rows of whole 16 bytes, which these sizes are not.
    reference, info = AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager", experts_implementation="eager"
    )
    assert {kind: list(found) for kind, found in info.items() if found} == {}
    ids_BT = token_ids(2, 30)
    with torch.no_grad():
        assert off(model(ids_BT), reference(ids_BT).logits) < 1e-5  # rounding of float32, 4 layers deep


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "mini", "shipped"])
def test_transformers_opens_an_export_without_a_warning_and_with_equal_logits(name, tmp_path, caplog, monkeypatch):
    """Kind: a config that transformers takes with a warning of other angles than were trained."""
    model = v4.load_pretrained() if name == "shipped" else small_model(getattr(v4.Config, name)(), dtype=torch.float32)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)  # what caplog listens to
    modeling_rope_utils.logger.warning_once.__func__.cache_clear()  # it says everything once a process
    v4.export_hf(model, tmp_path)
    with caplog.at_level(logging.WARNING):
        reference = AutoModelForCausalLM.from_pretrained(
            tmp_path, attn_implementation="eager", experts_implementation="eager"
        )
    assert [record.getMessage() for record in caplog.records] == []
    ids_BT = token_ids(2, 30)
    with torch.no_grad():
        assert off(model(ids_BT), reference(ids_BT).logits) < 1e-5  # rounding of float32, 4 to 6 layers deep


def test_an_exported_folder_loads_here_again_without_mtp(saved, tmp_path):
    model, _ = saved
    v4.export_hf(model, tmp_path)
    back = v4.load(tmp_path)
    assert not back.mtp and torch.equal(back(token_ids(2, 14)), model(token_ids(2, 14)))
    assert not any(name.startswith("mtp.") for name in names_in(tmp_path))


class Mean(torch.nn.RMSNorm):
    """A part of another make, whose weights have the released names."""


def test_what_transformers_would_compute_otherwise_is_not_exported(tmp_path):
    """Kind: layers, parts or operations of another make, once exported as V4's own, with other logits."""
    model = small_model(dtype=torch.float32)
    model.use(v4.PLAIN._replace(swiglu=lambda gate, up, limit: gate * up))
    with pytest.raises(ValueError, match="export_hf: the model runs operations unknown to transformers; save writes"):
        v4.export_hf(model, tmp_path)
    model.use(v4.PLAIN)
    model.layers[1].attn_norm = Mean(TINY.hidden_size)
    with pytest.raises(ValueError, match="export_hf: layers.1.attn_norm is of type Mean, unknown to transformers"):
        v4.export_hf(model, tmp_path)
    model.config = copy.copy(TINY)
    kinds = (*TINY.layer_types[:3], SimpleNamespace(name="MEAN", value="mean_attention"), TINY.layer_types[-1])
    object.__setattr__(model.config, "layer_types", kinds)
    with pytest.raises(ValueError, match="export_hf: MEAN layers are unknown to transformers"):
        v4.export_hf(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_plain_and_a_fast_model_and_one_that_recomputes_are_exported_alike(tmp_path):
    model = small_model(dtype=torch.float32)
    for table in (v4.PLAIN, v4.FAST):
        v4.export_hf(model.use(table), tmp_path / type(table).__name__)
    with recomputing(model):
        v4.export_hf(model, tmp_path / "again")
    assert same_weights(v4.load(tmp_path / "Ops"), v4.load(tmp_path / "again"))


@pytest.mark.parametrize("name", [f"layers.{n}.attn.wq_a.weight" for n in (0, 11)] + ["mtp.0.hc_head_fn"])
def test_a_released_name_passes_through_unchanged(name):
    assert checkpoint.released_name(name) == name


# ---- what is refused ----


def damaged(saved, folder, change):
    """A copy of the saved folder whose tensors were changed."""
    model, source = saved
    tensors = load_file(source / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    model.config.to_json(folder / "config.json")
    return folder


def test_a_missing_tensor_is_named(saved, tmp_path):
    damaged(saved, tmp_path, lambda tensors: tensors.pop("layers.1.attn.compressor.ape"))
    with pytest.raises(ValueError, match=r"missing: layers\.1\.attn\.compressor\.ape"):
        v4.load(tmp_path)


def test_a_missing_matrix_of_an_expert_is_named(saved, tmp_path):
    damaged(saved, tmp_path, lambda tensors: tensors.pop("layers.2.ffn.experts.4.w3.weight"))
    with pytest.raises(ValueError, match=r"layers\.2\.ffn\.experts\.4\.w3\.weight missing"):
        v4.load(tmp_path)


def test_an_extra_tensor_is_named(saved, tmp_path):
    damaged(saved, tmp_path, lambda tensors: tensors.update({"layers.1.attn.wk.weight": torch.ones(3)}))
    with pytest.raises(ValueError, match=r"not known: layers\.1\.attn\.wk\.weight"):
        v4.load(tmp_path)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(saved, tmp_path):
    damaged(saved, tmp_path, lambda tensors: tensors.update({"layers.3.attn.wkv.weight": torch.ones(24, 20)}))
    with pytest.raises(ValueError, match=r"layers\.3\.attn\.wkv\.weight has shape \(24, 20\), .* \(20, 24\)"):
        v4.load(tmp_path)


def test_experts_of_another_width_are_named(saved, tmp_path):
    def widen(tensors):
        for n in range(TINY.n_routed_experts):
            tensors[f"layers.0.ffn.experts.{n}.w2.weight"] = torch.ones(24, 19)

    with pytest.raises(ValueError, match=r"layers\.0\.ffn\.experts\.w2 has shape \(9, 24, 19\), .* \(9, 24, 18\)"):
        v4.load(damaged(saved, tmp_path, widen))


def test_experts_of_unlike_shapes_are_refused_by_name(saved, tmp_path):
    damaged(saved, tmp_path, lambda tensors: tensors.update({"layers.0.ffn.experts.7.w1.weight": torch.ones(17, 24)}))
    with pytest.raises(ValueError, match=r"layers\.0\.ffn\.experts"):
        v4.load(tmp_path)


def test_one_expert_too_many_is_refused(saved, tmp_path):
    def add(tensors):
        for w in ("w1", "w2", "w3"):
            tensors[f"layers.0.ffn.experts.9.{w}.weight"] = tensors[f"layers.0.ffn.experts.8.{w}.weight"].clone()

    with pytest.raises(ValueError, match=r"experts\.w\w+ has shape \(10, .* needs \(9, "):
        v4.load(damaged(saved, tmp_path, add))


def test_tensors_in_8_bits_are_refused_with_what_to_do(saved, tmp_path):
    key = "layers.0.attn.wq_a.weight"
    damaged(saved, tmp_path, lambda tensors: tensors.update({key: tensors[key].to(torch.float8_e4m3fn)}))
    with pytest.raises(ValueError, match="float8_e4m3fn; dequantise"):
        v4.load(tmp_path)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", ["layers.2.ffn.experts.7.w2.weight", "layers.1.ffn.gate.bias", "hc_head_scale"])
def test_a_weight_that_is_not_finite_is_refused_by_name(name, number, saved, tmp_path):
    def spoil(tensors):
        tensors[name][..., -1] = float(number)

    ours = {"hc_head_scale": "hc_head.scale"}.get(name, name.replace(".7.w2.weight", ".w2"))
    with pytest.raises(ValueError, match=rf"{re.escape(ours)} holds {number} \(\d+ not finite"):
        v4.load(damaged(saved, tmp_path, spoil))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float8_e5m2, torch.float8_e8m0fnu])
def test_a_weight_in_a_type_that_holds_no_weights_is_refused_by_name(dtype, saved, tmp_path):
    key = "layers.1.attn_norm.weight"
    damaged(saved, tmp_path, lambda tensors: tensors.update({key: tensors[key].to(dtype)}))
    with pytest.raises(ValueError, match=rf"{re.escape(key)} is {dtype}"):
        v4.load(tmp_path)


TABLES = {  # what is done to the table of experts, and what the sentence says
    "all zeros": (torch.zeros_like, r"gives token 0 experts \[0, 0\]"),
    "bfloat16": (torch.Tensor.bfloat16, "is torch.bfloat16; a table"),
    "fractions": (lambda table: table + 0.5, "is torch.float32; a table"),
    "unsigned": (lambda table: table.to(torch.uint64), "is torch.uint64; a table of experts holds integers"),
    "complex": (lambda table: table.to(torch.complex64), "is torch.complex64; a table"),
    "truths": (torch.Tensor.bool, "is torch.bool; a table"),
    "below": (lambda table: table - 1, "names expert -1"),
    "beyond": (lambda table: table + 1, "names expert 9; .* 0 .. 8"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_names_no_distinct_experts_is_refused_by_name(name, saved, tmp_path):
    """Kind: a table of numbers that name no experts, of any type of number that a file can hold."""
    change, sentence = TABLES[name]
    key = "layers.0.ffn.gate.tid2eid"
    damaged(saved, tmp_path, lambda tensors: tensors.update({key: change(tensors[key])}))
    with pytest.raises(ValueError, match=rf"{re.escape(key)} {sentence}"):
        v4.load(tmp_path)


def test_two_spellings_of_one_tensor_are_refused_by_name(saved, tmp_path):
    """Kind: a tensor that a file holds twice, of which the last won in silence."""
    theirs = "model.layers.0.self_attn.q_a_proj.weight"
    damaged(saved, tmp_path, lambda tensors: tensors.update({theirs: torch.zeros(22, 24)}))
    with pytest.raises(ValueError, match=r"q_a_proj\.weight.* spelling of layers\.0\.attn\.wq_a\.weight"):
        v4.load(tmp_path)


SECOND_SPELLINGS = {  # a name that is added, and how the sentence calls it
    "layers.1.ffn.experts.gate_up_proj": "is another spelling of layers.1.ffn.experts.w13",
    "model.layers.1.mlp.experts.down_proj": "is another spelling of layers.1.ffn.experts.w2",
    "layers.1.ffn.experts.w13": "is another spelling of layers.1.ffn.experts.w13",
    "layers.1.ffn.experts.w2": "is another spelling of layers.1.ffn.experts.w2",
    "layers.1.hc_attn.fn": "is another spelling of layers.1.hc_attn.fn",
    "hc_head.fn": "is another spelling of hc_head.fn",
    "mtp.0.hc_head.scale": "is another spelling of mtp.0.hc_head.scale",
    "layers.1.ffn.experts.01.w1.weight": "not known: layers.1.ffn.experts.01.w1.weight",
    "layers.1.ffn.experts.\u0661.w1.weight": "not known: layers.1.ffn.experts.\u0661.w1.weight",
}


@pytest.mark.parametrize("name", SECOND_SPELLINGS)
def test_a_second_spelling_in_any_of_the_three_layouts_is_refused_by_name(name, saved, tmp_path):
    """Kind: a tensor under a stacked name, one of this package's or another numeral, dropped in silence."""
    damaged(saved, tmp_path, lambda tensors: tensors.update({name: torch.zeros(3)}))
    with pytest.raises(ValueError, match=re.escape(SECOND_SPELLINGS[name])):
        v4.load(tmp_path)


@pytest.mark.parametrize("number", ["99999999", "9" * 5000])
def test_an_expert_far_beyond_the_others_is_refused_at_once(number, saved, tmp_path):
    """Kind: a number in a name that is counted up to, once minutes and all memory, or Python's own words."""
    name = f"layers.1.ffn.experts.{number}.w1.weight"
    damaged(saved, tmp_path, lambda tensors: tensors.update({name: torch.zeros(18, 24)}))
    began = time.process_time()
    with pytest.raises(ValueError, match=r"^checkpoint: .*layers\.1\.ffn\.experts\.9") as refused:
        v4.load(tmp_path)
    assert time.process_time() - began < 5 and len(str(refused.value)) < 600  # counted up, it is minutes


@pytest.mark.parametrize("path", [None, 3, "", "a\0b", b"folder", ["folder"]], ids=repr)
def test_what_is_no_path_is_refused_wherever_one_is_taken(path, saved, tmp_path, monkeypatch):
    """Kind: a path of another type, empty or with a null, once a TypeError or files in the folder one stands in."""
    model, _ = saved
    monkeypatch.chdir(tmp_path)
    takers = {
        "load": v4.load,
        "save": lambda path: v4.save(model, path),
        "export_hf": lambda path: v4.export_hf(model, path),
        "to_json": model.config.to_json,
        "config": v4.Config.from_json,
    }
    for name, take in takers.items():
        with pytest.raises(ValueError, match=rf"^{name}: .* names no file or folder; give its path"):
            take(path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [v4.save, v4.export_hf])
def test_what_is_no_model_or_has_no_numbers_is_refused_and_no_folder_is_made(write, tmp_path):
    """Kind: something that cannot be written, once an AttributeError or torch's own words."""
    with torch.device("meta"):
        empty = v4.Model(TINY)
    for wrong, sentence in ((3, "int is no model"), (None, "NoneType is no model"), (empty, "embed.* no numbers")):
        with pytest.raises(ValueError, match=rf"^{write.__name__}: {sentence}"):
            write(wrong, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_a_model_is_loaded_on_the_cpu_whatever_the_default_device_is(saved):
    """Kind: a default device without numbers, under which constants could not be filled in."""
    model, folder = saved
    with torch.device("meta"):
        loaded = v4.load(folder)
    ids_BT = token_ids(2, 5)
    assert torch.equal(loaded(ids_BT), model(ids_BT))
    assert {tensor.device.type for tensor in (*loaded.parameters(), *loaded.buffers())} == {"cpu"}


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_file_that_was_cut_off_is_refused(share, saved, tmp_path):
    model, source = saved
    whole = (source / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[: int(len(whole) * share)])
    model.config.to_json(tmp_path / "config.json")
    with pytest.raises(ValueError, match="model.safetensors cannot be read .*cut off"):
        v4.load(tmp_path)


def test_a_folder_without_config_or_without_weights_is_refused(saved, tmp_path):
    with pytest.raises(ValueError, match="no config.json"):
        v4.load(tmp_path)
    with pytest.raises(ValueError, match="no config.json"):
        v4.load(tmp_path / "nowhere")
    saved[0].config.to_json(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"has no model\.safetensors"):
        v4.load(tmp_path)


def test_a_missing_shard_is_named(twins, tmp_path):
    twins[1].save_pretrained(tmp_path, max_shard_size="50KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ValueError, match=f"has no {shard.name}"):
        v4.load(tmp_path)


def test_a_config_of_another_size_is_refused(saved, tmp_path):
    model, source = saved
    save_file(load_file(source / WEIGHTS), tmp_path / WEIGHTS)
    model.config.replace(vocab_size=62).to_json(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"has shape \(61, "):
        v4.load(tmp_path)


def test_an_index_that_is_no_index_is_refused(saved, tmp_path):
    saved[0].config.to_json(tmp_path / "config.json")
    (tmp_path / INDEX).write_text('{"weight_map": {"a": "model-0000')
    with pytest.raises(ValueError, match="index"):
        v4.load(tmp_path)


INDEXES = {
    "deep": "[" * 100000,
    "a list": '{"weight_map": [1]}',
    "numbers": '{"weight_map": {"a": 3}}',
    "mixed": '{"weight_map": {"a": 3, "b": "model.safetensors"}}',
    "nested": '{"weight_map": {"a": ["model.safetensors"]}}',
    "elsewhere": '{"weight_map": {"a": "../model.safetensors"}}',
    "a null": '{"weight_map": {"a": "model\\u0000.safetensors"}}',
    "long": json.dumps({"weight_map": {"a": "x" * 5000 + ".safetensors"}}),
    "no UTF-8": b"\xff\xfe{}",
}


@pytest.mark.parametrize("kind", INDEXES)
def test_a_damaged_index_is_refused_with_a_sentence_that_names_it(kind, saved, tmp_path):
    """Kind: an index file of another shape, once a TypeError, a RecursionError or an OSError."""
    saved[0].config.to_json(tmp_path / "config.json")
    text = INDEXES[kind]
    (tmp_path / INDEX).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f"checkpoint: {re.escape(INDEX)} (cannot be read|names)"):
        v4.load(tmp_path)


# ---- in the released formats ----

LETTERS = {"F8_E4M3": "fp8", "F8_E8M0": "scale", "BF16": "bf16", "F32": "fp32", "I64": "int64"}


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    """A float64 model and the folder it was saved into in the released formats; read only."""
    model, folder = small_model(), tmp_path_factory.mktemp("small")
    v4.save(model, folder, precision="fp8")
    return model, folder


def test_every_tensor_has_the_format_that_the_released_checkpoints_have(small_file):
    names = r"(wq_a|wq_b|wkv|wo_a|wo_b|e_proj|h_proj|experts\.\d+\.w[123]|shared_experts\.w[123])\.weight"
    with safe_open(small_file[1] / WEIGHTS, framework="pt") as file:
        found = {name: LETTERS[file.get_slice(name).get_dtype()] for name in file.keys()}
    for name in released_names(TINY):
        wanted = "fp8" if re.search(names + "$", name) and ".compressor." not in name else "bf16"
        if re.search(r"(ape|attn_sink|gate\.bias)$|hc_\w+$", name):
            wanted = "fp32"
        assert found[name] == ("int64" if name.endswith("tid2eid") else wanted), name
        assert (found.get(name.replace("weight", "scale")) == "scale") == (wanted == "fp8"), name
    assert len(found) == len(released_names(TINY)) + sum(kind == "fp8" for kind in found.values())


def test_the_tensors_hold_the_bytes_that_the_bill_counts_for_a_checkpoint_with_experts_in_fp8():
    config = TINY.replace(vocab_size=300, hidden_size=160)  # more than one block
    for one in (TINY, config):
        tensors = formats.to_stored(to_released(v4.Model(one).state_dict()))
        assert sum(t.nbytes for t in tensors.values()) == checkpoint_bytes(with_experts_in("fp8", bill_of(one)))


def test_what_is_read_back_is_float32_and_what_fp8_and_bf16_leave_of_the_weights(small_file):
    model, folder = small_file
    back, ours = v4.load(folder), to_released(model.state_dict())
    assert {p.dtype for p in back.parameters()} == {torch.float32} and back.config == model.config
    for name, tensor in to_released(back.state_dict()).items():
        rounded = {"fp8": lambda x: fp8.dequantise(*fp8.quantise(x)), "bf16": torch.Tensor.bfloat16}
        wanted = rounded.get(formats.stored_as(name), torch.Tensor.float)(ours[name]) if name in ours else None
        assert torch.equal(tensor, wanted.to(tensor.dtype)), name
    ids_BT = token_ids(2, 14)
    assert 1e-4 < off(back(ids_BT), model(ids_BT).float()) < 0.5  # 2^-4 a number, through 4 layers: near, not equal


def test_saving_what_was_loaded_from_fp8_gives_the_same_model_again(small_file, tmp_path):
    back = v4.load(small_file[1])
    v4.save(back, tmp_path, precision="fp8")
    assert same_weights(v4.load(tmp_path), back)


def test_config_json_says_how_the_weights_are_stored_as_the_released_one_does(small_file, saved):
    wanted = {"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]}
    found = json.loads((small_file[1] / "config.json").read_text())["quantization_config"]
    assert found == wanted | {"activation_scheme": "dynamic"}
    assert "quantization_config" not in json.loads((saved[1] / "config.json").read_text())


def test_a_file_in_fp8_without_mtp_gives_a_model_without_mtp(small_file, tmp_path):
    back = v4.load(changed(small_file, tmp_path, drop=r"mtp\."))
    assert not back.mtp and torch.equal(back(token_ids(2, 14)), v4.load(small_file[1])(token_ids(2, 14)))


def test_weights_and_scales_in_different_files_find_each_other(small_file, tmp_path):
    tensors = load_file(small_file[1] / WEIGHTS)
    parts = {"scales": {n: t for n, t in tensors.items() if n.endswith(".scale")}}
    parts["others"] = {n: t for n, t in tensors.items() if n not in parts["scales"]}
    for part, held in parts.items():
        save_file(held, tmp_path / f"{part}.safetensors")
    weight_map = {name: f"{part}.safetensors" for part, held in parts.items() for name in held}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    TINY.to_json(tmp_path / "config.json")
    assert same_weights(v4.load(tmp_path), v4.load(small_file[1]))


def test_a_part_of_the_experts_is_read_with_its_scales(small_file):
    def keep(name):
        return name if "layers.1.ffn.experts.3" in name else None

    read = loading.numbers(Shards(small_file[1]), keep)
    assert sorted(read) == [f"layers.1.ffn.experts.3.w{n}.weight" for n in (1, 2, 3)]
    w2 = v4.load(small_file[1]).layers[1].ffn.experts.w2[3]
    assert torch.equal(read["layers.1.ffn.experts.3.w2.weight"], w2)


def changed(small_file, folder, drop=r"^$", **tensors):
    """A copy of the small folder without some tensors, and with others; a name's dots are written as __."""
    kept = {n: t for n, t in load_file(small_file[1] / WEIGHTS).items() if not re.match(drop, n)}
    save_file(kept | {name.replace("__", "."): t for name, t in tensors.items()}, folder / WEIGHTS)
    (folder / "config.json").write_text((small_file[1] / "config.json").read_text())
    return folder


def test_a_missing_scale_is_named(small_file, tmp_path):
    folder = changed(small_file, tmp_path, drop=r"layers\.2\.attn\.wo_a\.scale")
    with pytest.raises(
        ValueError, match=r"layers\.2\.attn\.wo_a\.weight .* needs layers\.2\.attn\.wo_a\.scale: missing"
    ):
        v4.load(folder)


def test_a_missing_scale_of_mtp_is_named_too(small_file, tmp_path):
    folder = changed(small_file, tmp_path, drop=r"mtp\.0\.e_proj\.scale")
    with pytest.raises(ValueError, match=r"mtp\.0\.e_proj\.scale: missing"):
        v4.load(folder)


def test_a_scale_of_another_shape_is_named_with_both_shapes(small_file, tmp_path):
    wrong = torch.ones(2, 1).to(torch.float8_e8m0fnu)
    folder = changed(small_file, tmp_path, layers__0__attn__wkv__scale=wrong)
    with pytest.raises(ValueError, match=r"layers\.0\.attn\.wkv\.scale: .*shape \(2, 1\).* needs \(1, 1\)"):
        v4.load(folder)


def test_a_scale_of_whole_numbers_is_refused(small_file, tmp_path):
    folder = changed(small_file, tmp_path, layers__0__attn__wkv__scale=torch.ones(1, 1, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"layers\.0\.attn\.wkv\.scale is torch\.uint8"):
        v4.load(folder)


def test_a_scale_without_a_weight_is_named(small_file, tmp_path):
    folder = changed(small_file, tmp_path, layers__0__attn__wk__scale=torch.ones(1, 1))
    with pytest.raises(ValueError, match=r"not known: layers\.0\.attn\.wk\.scale"):
        v4.load(folder)


@pytest.mark.parametrize("owner", ["layers.0.ffn.gate", "layers.0.attn_norm", "layers.1.attn.compressor.wkv"])
def test_a_scale_beside_a_weight_in_16_bits_is_named(owner, small_file, tmp_path):
    folder = changed(small_file, tmp_path, **{f"{owner}.scale": torch.ones(1, 1)})
    with pytest.raises(ValueError, match=rf"{owner}\.scale stands beside a weight that is not in FP8"):
        v4.load(folder)


def test_packed_fp4_is_read_and_an_expert_of_another_shape_is_named(small_file, tmp_path):
    packed, scale = mxfp4.quantise(torch.ones(18, 32))
    w1 = "layers.0.ffn.experts.1.w1.weight"
    for stored in (packed, packed.view(torch.uint8)):
        assert torch.equal(loading.widened({w1: stored, formats.scale_of(w1): scale})[w1], torch.ones(18, 32))
    names = ("layers__0__ffn__experts__1__w1__weight", "layers__0__ffn__experts__1__w1__scale")
    with pytest.raises(ValueError, match=r"layers\.0\.ffn\.experts\.N\.w1\.weight have shapes .*\(18, 32\)"):
        v4.load(changed(small_file, tmp_path, **dict(zip(names, (packed, scale)))))
    with pytest.raises(ValueError, match=r"experts\.1\.w1\.scale: .*\(18, 2\).* needs \(18, 1\)"):
        loading.widened({w1: packed, formats.scale_of(w1): scale.repeat(1, 2)})
    with pytest.raises(ValueError, match=r"experts\.1\.w1\.weight is torch\.int8; .*scale: missing"):
        loading.widened({w1: packed})


def test_routed_experts_and_nothing_else_can_be_stored_in_fp4(saved):
    tensors = to_released(saved[0].state_dict())
    as_fp4 = {name for name in tensors if formats.stored_as(name, "fp4") == "fp4"}
    assert as_fp4 == {name for name in tensors if ".experts." in name} and as_fp4
    assert (
        formats.stored_as("layers.1.ffn.experts.w13", "fp4")
        == formats.stored_as("mtp.0.ffn.experts.w2", "fp4")
        == "fp4"
    )
    wide = {name: torch.ones(6, 64) if name in as_fp4 else tensor for name, tensor in tensors.items()}
    stored, as_fp8 = formats.to_stored(wide, "fp4"), formats.to_stored(wide)
    for name, tensor in stored.items():
        owner = name.replace(".scale", ".weight")
        if owner in as_fp4:
            assert tuple(tensor.shape) == ((6, 32) if name == owner else (6, 2))
        else:
            assert torch.equal(tensor.float(), as_fp8[name].float()) and tensor.dtype == as_fp8[name].dtype
    name = sorted(as_fp4)[0]
    with pytest.raises(ValueError, match=rf"{name}: mxfp4: 24 columns do not fill groups of 32"):
        formats.to_stored({name: torch.ones(3, 24)}, "fp4")


def test_a_weight_that_is_not_finite_is_named_and_nothing_is_written(tmp_path):
    model = small_model()
    with torch.no_grad():
        model.layers[2].ffn.experts.w2[7, 3, 2] = torch.nan
    with pytest.raises(ValueError, match=r"layers\.2\.ffn\.experts\.7\.w2\.weight: .*NaN"):
        v4.save(model, tmp_path, precision="fp8")
    assert not list(tmp_path.iterdir())


def test_other_formats_are_refused(tmp_path):
    with pytest.raises(ValueError, match="precision = 'fp4' is not known"):
        v4.save(small_model(), tmp_path, precision="fp4")


# ---- the checkpoint that the package ships ----


@pytest.fixture
def finished(tmp_path):
    """The folder of a finished run: a model and its tokenizer, and what else a run leaves."""
    v4.save(small_model(TINY.replace(vocab_size=300), dtype=torch.float32), tmp_path / "run")
    Tokenizer.train(["def f(x):\n    return x\n"], 300).save(tmp_path / "run" / "tokenizer.json")
    (tmp_path / "run" / "log.jsonl").write_text("{}\n")
    return tmp_path / "run"


def test_a_finished_run_is_shipped_and_loads_with_its_tokenizer(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ship, "SHIPPED", tmp_path / "package" / "mini")
    assert main(["ship", str(finished), "--out", str(ship.SHIPPED)]) == 0
    assert sorted(os.listdir(ship.SHIPPED)) == [SUMS, "config.json", WEIGHTS, "tokenizer.json"]
    size = sum(path.stat().st_size for path in ship.SHIPPED.iterdir())
    assert f"{size:,} bytes of at most 12,000,000" in capsys.readouterr().out
    run = v4.load(finished)
    model, tokenizer = v4.load_pretrained(), v4.pretrained_tokenizer()
    assert same_weights(model, v4.load(ship.SHIPPED)) and model.config == run.config
    assert model.config.vocab_size == 300 and tokenizer.decode(tokenizer.encode("x = 1")) == "x = 1"
    w3 = run.layers[1].ffn.shared_experts.w3.weight
    assert torch.equal(model.layers[1].ffn.shared_experts.w3.weight, fp8.dequantise(*fp8.quantise(w3)))


def test_too_many_bytes_are_not_shipped_and_what_was_there_stays(finished, tmp_path, monkeypatch):
    ship.ship(finished, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    v4.save(small_model(TINY.replace(vocab_size=300), seed=5), finished)
    monkeypatch.setattr(ship, "LIMIT", sum(map(len, before.values())) - 1)
    with pytest.raises(ValueError, match=r"ship: [\d,]+ bytes are too many; at most [\d,]+ are shipped"):
        ship.ship(finished, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_run_that_is_not_finished_is_not_shipped(finished, tmp_path, capsys):
    (finished / WEIGHTS).unlink()
    assert main(["ship", str(finished), "--out", str(tmp_path / "out")]) == 2
    assert "has no model.safetensors" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_package_without_its_model_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(ship, "SHIPPED", tmp_path)
    for call in (v4.load_pretrained, v4.pretrained_tokenizer):
        with pytest.raises(ValueError, match=r"came without assets/mini/config\.json; .*python -m minidsv4 tour"):
            call()


def test_generate_writes_with_the_shipped_model_unless_another_is_named(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ship, "SHIPPED", tmp_path / "package")
    words = ["generate", "x = 1", "--tokens", "3", "--temperature", "0"]
    assert main(words) == 2 and "came without" in capsys.readouterr().err
    ship.ship(finished, ship.SHIPPED)
    assert main(words) == 0
    shipped = capsys.readouterr().out
    assert shipped.startswith("x = 1") and main([*words, "--model", str(ship.SHIPPED)]) == 0
    assert capsys.readouterr().out == shipped
    (tmp_path / "runs" / "tour").mkdir(parents=True)
    assert main(words) == 0 and capsys.readouterr().out == shipped
    assert main([*words, "--model", "runs/tour"]) == 2 and "no config.json" in capsys.readouterr().err


def test_the_files_of_the_shipped_model_travel_with_the_package():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["minidsv4"]
    place = ship.SHIPPED.relative_to(Path(v4.__file__).parent)
    places = [place, place.with_name("chat"), *(place.with_name("specialists") / own for own in ship.SPECIALISTS)]
    files = [place / name for place in places for name in ship.FILES]
    assert all(any(file.match(pattern) for pattern in patterns) for file in files)


# ---- saving over what is there ----


@pytest.mark.parametrize("weights", [None, "fp8"])
@pytest.mark.parametrize("broken", ["save_file", "os.replace"])
def test_a_failed_save_leaves_the_old_checkpoint_as_it_was(broken, weights, tmp_path, monkeypatch):
    old = small_model(dtype=torch.float32)
    v4.save(old, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(first, *args, **kwargs):
        if broken == "save_file":
            args[0].write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os if broken == "os.replace" else checkpoint.saving, broken.split(".")[-1], fail)
    with pytest.raises(OSError, match="what stood there is untouched"):
        v4.save(small_model(seed=1, dtype=torch.float32), tmp_path, precision=weights)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert same_weights(v4.load(tmp_path), old)


def test_saving_where_nothing_can_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot write into 'file'"):
        v4.save(small_model(dtype=torch.float32), tmp_path / "file")


def test_saving_over_a_folder_of_shards_is_what_loads_afterwards(twins, tmp_path):
    twins[1].save_pretrained(tmp_path, max_shard_size="50KB")
    mine = small_model(seed=7, dtype=torch.float32)
    v4.save(mine, tmp_path)
    assert same_weights(v4.load(tmp_path), mine)


# ---- checksums ----


def test_a_checksum_is_that_of_the_name_the_type_the_shape_and_the_bytes_of_a_tensor(saved):
    with safe_open(saved[1] / WEIGHTS, framework="pt") as file:
        sums = json.loads(file.metadata()["sha256"])
    assert sums.keys() == names_in(saved[1])
    weights = saved[0].layers[1].attn_norm.weight.detach()
    text = b"layers.1.attn_norm.weight torch.float32 (24,) " + weights.numpy().tobytes()
    assert sums["layers.1.attn_norm.weight"] == hashlib.sha256(text).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("weights", [None, "fp8"])
def test_two_processes_write_the_same_bytes(weights, tmp_path):
    """Kind: a file whose metadata stand in another order in every process; one in 2^5 runs would not show it."""
    program = (
        "import sys, torch, minidsv4 as v4; torch.manual_seed(0); "
        "model = v4.Model(v4.Config.tiny().replace(n_routed_experts=2)); "
        f"[v4.save(model, f'{{sys.argv[1]}}{{n}}', precision={weights!r}) for n in range(6)]"
    )
    forks.python(program, str(tmp_path / "folder")).check_returncode()
    assert len({(tmp_path / f"folder{n}" / WEIGHTS).read_bytes() for n in range(6)}) == 1


def test_checksums_that_are_damaged_or_lack_a_tensor_are_refused(saved, tmp_path):
    tensors = load_file(saved[1] / WEIGHTS)
    saved[0].config.to_json(tmp_path / "config.json")
    for sums, sentence in {"{": "cannot be read", "[1]": "cannot be read", "{}": "is not what was saved"}.items():
        save_file(tensors, tmp_path / WEIGHTS, metadata={"sha256": sums})
        with pytest.raises(ValueError, match=f"^checkpoint: .*{sentence}.*copy it again"):
            v4.load(tmp_path)


def test_an_export_holds_checksums_and_opens_in_transformers(saved, tmp_path):
    v4.export_hf(saved[0], tmp_path)
    with safe_open(tmp_path / WEIGHTS, framework="pt") as file:
        assert [*file.metadata()] and file.metadata()["format"] == "pt" and "sha256" in file.metadata()
    options = dict(attn_implementation="eager", experts_implementation="eager")
    AutoModelForCausalLM.from_pretrained(tmp_path, **options)


@pytest.mark.parametrize("write", [v4.save, v4.export_hf])
@pytest.mark.parametrize("stood", [False, True])
def test_a_full_disk_leaves_no_folder_that_was_not_there(write, stood, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(saving, "write_weights", full)
    folder = tmp_path / "stood" / "deep" / "model"
    (folder if stood else tmp_path / "stood").mkdir(parents=True)
    with pytest.raises(OSError, match="cannot write into 'model'"):
        write(v4.Model(TINY), folder)
    assert folder.exists() == folder.parent.exists() == stood and (tmp_path / "stood").exists()


@pytest.mark.parametrize("shard_bytes", ["1 GX", float("nan"), 0, -1, True, [5]])
def test_files_of_no_amount_of_bytes_are_refused(shard_bytes, tmp_path):
    with pytest.raises(ValueError, match="^save: shard_bytes = .* is no amount; give bytes, or such as '8 GB'"):
        v4.save(v4.Model(TINY), tmp_path / "model", shard_bytes=shard_bytes)
    assert not (tmp_path / "model").exists()


def test_files_of_an_amount_in_words_are_cut_as_those_of_so_many_bytes(tmp_path):
    for name, shard_bytes in {"number": 100_000, "words": "100 kB", "whole": None}.items():
        v4.save(small_model(TINY), tmp_path / name, shard_bytes=shard_bytes)
    held = {name: sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("number", "words", "whole")}
    assert held["number"] == held["words"] and len(held["whole"]) < len(held["words"])
