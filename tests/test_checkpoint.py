"""Checkpoints: released names, bit-exact round trips, folders of transformers both ways, and what is refused."""

import os

import pytest
import torch
from oracle import pair
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small import TINY, off, small_model, token_ids
from transformers import AutoModelForCausalLM

import minidsv4 as v4
from minidsv4 import checkpoint

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


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
    assert {parameter.dtype for parameter in back.parameters()} == {dtype}
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


def test_saving_leaves_nothing_else_in_the_folder(tmp_path):
    v4.save(small_model(dtype=torch.float32), tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", WEIGHTS]


# ---- folders of transformers ----


def test_a_folder_of_save_pretrained_loads_with_equal_logits(twins, tmp_path):
    ours, peer = twins
    peer.save_pretrained(tmp_path)
    back = v4.load(tmp_path)
    assert same_weights(back, ours)
    ids_BT = token_ids(2, 30)
    assert off(back(ids_BT), peer(ids_BT).logits) < 1e-5  # rounding of float32, 4 layers deep


def test_a_folder_in_shards_loads_as_a_whole(twins, tmp_path):
    ours, peer = twins
    peer.save_pretrained(tmp_path, max_shard_size="50KB")
    assert (tmp_path / INDEX).is_file() and not (tmp_path / WEIGHTS).is_file()
    assert same_weights(v4.load(tmp_path), ours)


def test_the_names_of_a_state_dict_of_transformers_load_too(twins, tmp_path):
    ours, peer = twins
    state = {name: t.contiguous() for name, t in peer.state_dict().items() if not name.endswith("inv_freq")}
    assert "model.layers.0.self_attn.q_a_proj.weight" in state and "model.layers.1.mlp.experts.gate_up_proj" in state
    save_file(state, tmp_path / WEIGHTS)
    peer.config.save_pretrained(tmp_path)
    assert same_weights(v4.load(tmp_path), ours)


def test_an_exported_folder_opens_in_transformers_with_every_tensor_in_its_place(saved, tmp_path):
    model, _ = saved
    v4.export_hf(model, tmp_path)
    # The experts' default wants rows of whole 16 bytes, which these sizes are not.
    peer, info = AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager", experts_implementation="eager"
    )
    assert {kind: list(found) for kind, found in info.items() if found} == {}
    ids_BT = token_ids(2, 30)
    with torch.no_grad():
        assert off(model(ids_BT), peer(ids_BT).logits) < 1e-5  # rounding of float32, 4 layers deep


def test_an_exported_folder_loads_here_again_without_mtp(saved, tmp_path):
    model, _ = saved
    v4.export_hf(model, tmp_path)
    back = v4.load(tmp_path)
    assert not back.mtp and torch.equal(back(token_ids(2, 14)), model(token_ids(2, 14)))
    assert not any(name.startswith("mtp.") for name in names_in(tmp_path))


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


# ---- saving over what is there ----


@pytest.mark.parametrize("broken", ["save_file", "os.replace"])
def test_a_failed_save_leaves_the_old_checkpoint_as_it_was(broken, tmp_path, monkeypatch):
    old = small_model(dtype=torch.float32)
    v4.save(old, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(first, *args, **kwargs):
        if broken == "save_file":
            args[0].write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os if broken == "os.replace" else checkpoint, broken.split(".")[-1], fail)
    with pytest.raises(OSError, match="what stood there is untouched"):
        v4.save(small_model(seed=1, dtype=torch.float32), tmp_path)
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
