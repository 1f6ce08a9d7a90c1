"""The released layout: one tensor at a time as it is stored, and whole models there and back."""

import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small import TINY, off, small_model, token_ids

import minidsv4 as v4
from minidsv4.checkpoint import layout, open_released, to_released
from minidsv4.checkpoint.names import here
from minidsv4.cost.parameters import checkpoint_bytes
from minidsv4.cost.parameters import weights as bill_of
from minidsv4.lowbit import fp8, mxfp4

SMALL = TINY.replace(hidden_size=64, moe_intermediate_size=32, n_routed_experts=5)  # whole groups of FP4
WEIGHTS = "model.safetensors"
CHANGED = r"^checkpoint: model\.safetensors has changed since it was opened; open the folder again$"
EXPERT = "layers.2.ffn.experts.3.w2"


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A float32 model and the folder that holds it in the released formats, in several files; read only."""
    model, folder = small_model(SMALL, dtype=torch.float32), tmp_path_factory.mktemp("released")
    return model, v4.save(model, folder, precision="released", shard_bytes=50_000)


def test_a_folder_opens_with_every_tensor_and_its_shape_and_no_scale_among_them(released):
    model, folder = released
    opened = open_released(folder)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 3 and opened.config == SMALL
    assert opened.shapes == {name: tuple(t.shape) for name, t in to_released(model.state_dict()).items()}
    assert opened.names == list(opened.shapes) and not any(name.endswith("wq_a.scale") for name in opened.names)


def test_each_tensor_is_given_as_it_is_stored_mapped_or_in_memory_of_its_own(released):
    _, folder = released
    opened, held = open_released(folder), {}
    for path in folder.glob("*.safetensors"):
        held |= load_file(path)
    for name in opened.names:
        for stored in (opened.stored(name), opened.read(name)):
            assert stored.data.dtype == held[name].dtype and torch.equal(bytes_of(stored.data), bytes_of(held[name]))
            if stored.kind in ("fp4", "fp8"):
                assert torch.equal(bytes_of(stored.scale), bytes_of(held[name.replace("weight", "scale")]))
            else:
                assert stored.scale is None
            assert stored.kind == opened.kind(name) and stored.n_bytes == opened.n_bytes(name)
            assert tuple(stored.wide().shape) == opened.shapes[name]


def bytes_of(tensor):
    return tensor.contiguous().view(torch.uint8)


def test_the_kinds_are_those_of_the_released_instruct_files(released):
    opened = open_released(released[1])
    kinds = {row.name.replace(".experts.", ".experts.3."): row.stored for row in bill_of(SMALL)}
    assert set(kinds.values()) == {"fp4", "fp8", "bf16", "fp32", "int64"}
    for name, kind in kinds.items():
        assert opened.kind(name) == kind.replace("int64", "int"), name
    assert opened.read("layers.0.ffn.gate.tid2eid").data.dtype == torch.int64


def test_what_is_stored_is_what_quantisation_leaves_of_the_weights(released):
    model, folder = released
    opened, ours = open_released(folder), to_released(model.state_dict())
    name = f"{EXPERT}.weight"
    assert torch.equal(opened.read(name).wide(), mxfp4.dequantise(*mxfp4.quantise(ours[name])))
    name = "layers.1.attn.wq_b.weight"
    assert torch.equal(opened.read(name).wide(), fp8.dequantise(*fp8.quantise(ours[name])))
    assert torch.equal(opened.read("layers.1.attn.attn_sink").data, ours["layers.1.attn.attn_sink"])


def test_the_bytes_on_disk_are_those_of_the_formula(released):
    opened = open_released(released[1])
    on_disk = sum(stored.nbytes for path in released[1].glob("*.safetensors") for stored in load_file(path).values())
    assert sum(map(opened.n_bytes, opened.names)) == on_disk == checkpoint_bytes(bill_of(SMALL))


def test_opening_reads_no_numbers(released, tmp_path):
    """Kind: a reader that takes a folder in on opening; here all numbers are holes of a sparse file."""
    _, folder = released
    for path in folder.iterdir():
        whole = path.read_bytes()
        n_header = 8 + int.from_bytes(whole[:8], "little") if path.suffix == ".safetensors" else len(whole)
        with (tmp_path / path.name).open("wb") as file:
            file.write(whole[:n_header])
            file.truncate(len(whole))
    assert open_released(tmp_path).names == open_released(folder).names
    with pytest.raises(ValueError, match=r"embed\.weight in model-\S+ is not what was saved"):
        open_released(tmp_path).verify()


def test_a_loaded_folder_gives_the_same_model_and_saves_and_loads_to_the_same_bits(released, tmp_path):
    model, folder = released
    back = v4.load(folder)
    opened = open_released(folder)
    assert {p.dtype for p in back.parameters()} == {torch.float32} and back.config == SMALL
    for name, tensor in to_released(back.state_dict()).items():
        assert torch.equal(tensor, opened.stored(name).wide()), name
    again = v4.load(v4.save(back, tmp_path, precision="released"))
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in back.state_dict().items())
    ids_BT = token_ids(2, 14)
    assert 1e-4 < off(back(ids_BT), model(ids_BT)) < 2  # 4 bits through 4 layers: another model, of the same scale


def test_a_tensor_that_is_gone_or_cut_off_while_the_folder_is_open_is_named(released, tmp_path):
    model, _ = released
    v4.save(model, tmp_path, precision="released")
    opened = open_released(tmp_path)
    size = (tmp_path / WEIGHTS).stat().st_size
    with (tmp_path / WEIGHTS).open("r+b") as file:
        file.truncate(size // 2)
    for take in (opened.read, opened.stored):
        for name in opened.names:
            with pytest.raises(ValueError, match=CHANGED):
                take(name)
    (tmp_path / WEIGHTS).unlink()
    for take in (opened.read, opened.stored):
        with pytest.raises(ValueError, match=r"^checkpoint: model\.safetensors cannot be read \(.*No such file"):
            take("embed.weight")


def test_a_folder_that_was_saved_over_is_refused_by_the_file_that_changed(released, tmp_path):
    """Kind: the old header's offsets in the new file, whose bytes are another model's."""
    model, _ = released
    v4.save(model, tmp_path, precision="released")
    opened = open_released(tmp_path)
    v4.save(small_model(SMALL, seed=1, dtype=torch.float32), tmp_path, precision="released")
    for take in (opened.read, opened.stored):
        with pytest.raises(ValueError, match=CHANGED):
            take("embed.weight")
    open_released(tmp_path).read("embed.weight")


@pytest.mark.parametrize(
    "rows", [range(0, 10**6), range(-2, 1), range(0, 4, 2), range(3, 3), range(4, 2), slice(0, 2), [0]], ids=str
)
def test_rows_that_a_tensor_does_not_have_are_refused(rows, released):
    opened = open_released(released[1])
    with pytest.raises(ValueError, match=r"^open_released: rows = .* of embed\.weight .*within range\(0, \d+\)$"):
        opened.read("embed.weight", rows=rows)
    n_rows = opened.shapes["embed.weight"][0]
    last = opened.read("embed.weight", rows=range(n_rows - 1, n_rows)).data
    assert torch.equal(last, opened.read("embed.weight").data[-1:])


def test_rows_of_a_tensor_with_a_scale_are_refused(released):
    with pytest.raises(ValueError, match=r"rows = range\(0, 1\) of layers.*w2\.weight, which has a scale; give None"):
        open_released(released[1]).read(f"{EXPERT}.weight", rows=range(1))


@pytest.mark.parametrize("ask", ["read", "stored", "kind", "dtype", "n_bytes"])
@pytest.mark.parametrize(
    ("name", "right"), [("embed.weigth", r"did you mean embed\.weight\?"), ("nope", "names has"), (3, "names has")]
)
def test_a_tensor_that_is_not_there_is_refused_with_a_close_name(ask, name, right, released):
    with pytest.raises(ValueError, match=rf"^open_released: '?{name}'? is no tensor of this folder; {right}"):
        getattr(open_released(released[1]), ask)(name)


FORMATS = {
    "expert_dtype": "int4",
    "quantization_config": "gptq",
    "quantization_config.quant_method": "gptq",
    "quantization_config.weight_block_size": [64, 64],
}


@pytest.mark.slow
@pytest.mark.parametrize("field", FORMATS)
@pytest.mark.parametrize("opening", [v4.load, open_released])
def test_a_config_that_tells_other_formats_is_refused(opening, field, released, tmp_path):
    model, _ = released
    path = v4.save(model, tmp_path, precision="released") / "config.json"
    (tmp_path / "SHA256SUMS").unlink()
    opening(tmp_path)
    fields = json.loads(path.read_text())
    *table, name = field.split(".")
    (fields[table[0]] if table else fields)[name] = FORMATS[field]
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=rf"^config: {re.escape(field)} = .*{re.escape(str(FORMATS[field]))}.* cannot"):
        opening(tmp_path)


def test_the_copies_that_some_releases_hold_for_mtp_are_left_out(released, tmp_path):
    """Kind: base models repeat embedding and head under `mtp.0.`; the block shares the model's."""
    model, _ = released
    v4.save(model, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    copies = {"mtp.0.emb.tok_emb.weight": tensors["embed.weight"], "mtp.0.head.weight": tensors["head.weight"]}
    save_file(tensors | {name: tensor.clone() for name, tensor in copies.items()}, tmp_path / WEIGHTS)
    (tmp_path / "SHA256SUMS").unlink()
    assert open_released(tmp_path).names == list(layout(SMALL))
    assert torch.equal(v4.load(tmp_path).mtp[0].e_proj.weight, model.mtp[0].e_proj.weight)


def test_every_tensor_of_the_layout_has_a_place_in_the_model():
    state = v4.Model(SMALL).state_dict()
    apart = [name for name in layout(SMALL) if ".experts." not in name]
    assert {here(name) for name in apart} == {name for name in state if ".experts." not in name}


def test_a_header_tells_the_types_of_the_release(released):
    letters = set()
    for path in released[1].glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            letters |= {file.get_slice(name).get_dtype() for name in file.keys()}
    assert letters == {"I8", "F8_E4M3", "F8_E8M0", "BF16", "F32", "I64"}
