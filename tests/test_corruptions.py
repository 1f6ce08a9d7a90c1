"""200 random corruptions of a folder in the released layout: each is a sentence that names a tensor or a file.

Never another model, never a traceback. Structural ones are tried without checksums, which would see them all.
"""

import json
import random
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import TINY, small_model

import minidsv4 as v4
from minidsv4.__main__ import main
from minidsv4.checkpoint import open_released
from minidsv4.train.ship import SHIPPED

INDEX, SUMS = "model.safetensors.index.json", "SHA256SUMS"
TYPES = [torch.int32, torch.uint8, torch.bool, torch.float8_e5m2, torch.float8_e8m0fnu, torch.float8_e4m3fn]
TYPES += [torch.complex64, torch.uint64]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder in several files, with a tokenizer and all checksums; read only."""
    config = TINY.replace(vocab_size=2048, hidden_size=64, moe_intermediate_size=32, n_routed_experts=3)
    folder = tmp_path_factory.mktemp("whole")
    shutil.copy(SHIPPED / "tokenizer.json", folder)
    return v4.save(small_model(config, dtype=torch.float32), folder, precision="released", shard_bytes=150_000)


def shards(folder):
    return sorted(folder.glob("model-*.safetensors"))


def changed(folder, draw, change, fits=lambda name: True):
    """Change the tensors of one file, which then holds no checksums; `change` gets them and a name that fits."""
    table = {path: load_file(path) for path in shards(folder)}
    path, name = draw.choice([(path, name) for path, tensors in table.items() for name in tensors if fits(name)])
    change(table[path], name)
    save_file(table[path], path)
    (folder / SUMS).unlink()
    weight_map = {key: file.name for file, tensors in table.items() for key in tensors}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return name


def rewritten(folder, change):
    """Change the index, and leave the files as they are."""
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))
    (folder / SUMS).unlink()


# Each takes the folder and a random generator.


def cut_off(folder, draw):
    path = draw.choice(shards(folder))
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def swapped_files(folder, draw):
    one, other = draw.sample(shards(folder), 2)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    (folder / SUMS).unlink()


def renamed_file(folder, draw):
    path = draw.choice(shards(folder))
    path.rename(folder / f"model-{draw.randrange(100, 999):05}-of-00999.safetensors")
    (folder / SUMS).unlink()


def lost_file(folder, draw):
    draw.choice([path for path in folder.iterdir() if path.name != SUMS]).unlink()


def other_type(folder, draw):
    def change(tensors, name):
        own = tensors[name].dtype
        same = (
            torch.uint8 if own == torch.int8 else own
        )  # bytes that hold two numbers of FP4 each may be of either type
        dtype = draw.choice([dtype for dtype in TYPES if dtype not in (own, same)])
        tensors[name] = torch.ones(tensors[name].shape).to(dtype)

    changed(folder, draw, change, lambda name: not name.endswith(("scale", "tid2eid")) or "hc_" in name)


def other_shape(folder, draw):
    def change(tensors, name):
        shape = list(tensors[name].shape)
        shape[draw.randrange(len(shape))] += draw.choice([-1, 1, 2])
        tensors[name] = torch.ones(shape).to(tensors[name].dtype)

    changed(folder, draw, change, lambda name: not name.startswith("hc_head_scale"))


def lost_tensor(folder, draw):
    changed(folder, draw, lambda tensors, name: tensors.pop(name))


def lost_scale(folder, draw):
    changed(folder, draw, lambda tensors, name: tensors.pop(name), lambda name: name.endswith(".scale"))


def strange_scale(folder, draw):
    strange = draw.choice([lambda scale: scale.float() * torch.nan, lambda scale: scale.view(torch.uint8)])

    def change(tensors, name):
        tensors[name] = strange(tensors[name])

    changed(folder, draw, change, lambda name: name.endswith(".scale"))


def added_tensor(folder, draw):
    def change(tensors, name):
        tensors[draw.choice([f"{name}s", f"model.{name}", name.replace("layers.", "layers.9")])] = torch.ones(2)

    changed(folder, draw, change, lambda name: name.startswith("layers."))


def copied_tensor(folder, draw):
    one, other = draw.sample(shards(folder), 2)
    tensors = load_file(one)
    name = draw.choice([*tensors])
    save_file(load_file(other) | {name: tensors[name]}, other)
    (folder / SUMS).unlink()


def table_of_nothing(folder, draw):
    strange = draw.choice(
        [torch.zeros_like, lambda t: t + 3, lambda t: t - 2, torch.Tensor.float, torch.Tensor.bool, lambda t: t + 0.5]
    )

    def change(tensors, name):
        tensors[name] = strange(tensors[name])

    changed(folder, draw, change, lambda name: name.endswith("tid2eid"))


def not_finite(folder, draw):
    def change(tensors, name):
        flat = tensors[name].flatten()
        flat[draw.randrange(len(flat))] = draw.choice([torch.nan, torch.inf, -torch.inf])
        tensors[name] = flat.view(tensors[name].shape)

    changed(folder, draw, change, lambda name: name.endswith(("norm.weight", "ape", "_fn", "gate.weight")))


def lying_index(folder, draw):
    files = [path.name for path in shards(folder)]

    def change(weight_map):
        name = draw.choice([*weight_map])
        lie = draw.choice(["other", "none", "strange", "no file"])
        if lie == "none":
            del weight_map[name]
        elif lie == "strange":
            weight_map[f"{name}.more"] = draw.choice(files)
        else:
            weight_map[name] = (
                "model-9.safetensors"
                if lie == "no file"
                else draw.choice([file for file in files if file != weight_map[name]])
            )

    rewritten(folder, change)


def flipped_bit(folder, draw):
    path = draw.choice([path for path in folder.iterdir() if path.name != SUMS])
    content = bytearray(path.read_bytes())
    first = 8 + int.from_bytes(content[:8], "little") if path.suffix == ".safetensors" else 0
    content[draw.randrange(first, len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(bytes(content))


def swapped_numbers(folder, draw):
    """Two experts' matrices in each other's place: shapes and types are right, only checksums see it."""
    path = draw.choice([path for path in shards(folder) if len(experts_in(path)) > 1])
    one, other = draw.sample(experts_in(path), 2)
    content = path.read_bytes()
    n_header = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + n_header])
    header[one], header[other] = header[other], header[one]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    path.write_bytes(content[:8] + text.ljust(n_header) + content[8 + n_header :])


def experts_in(path):
    return [name for name in load_file(path) if re.search(r"experts\.\d\.w1\.weight", name)]


def other_config(folder, draw):
    fields = json.loads((folder / "config.json").read_text())
    name = draw.choice(["vocab_size", "hidden_size", "q_lora_rank", "n_routed_experts", "index_n_heads", "hc_mult"])
    fields[name] += draw.choice([1, 2])
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / SUMS).unlink()


CORRUPTIONS = [
    *(cut_off, swapped_files, renamed_file, lost_file, other_type, other_shape, lost_tensor, lost_scale),
    *(strange_scale, added_tensor, copied_tensor, table_of_nothing, not_finite, lying_index, flipped_bit),
    *(swapped_numbers, other_config),
]
UNSEEN_UNTIL_READ = (strange_scale, table_of_nothing, not_finite, flipped_bit, swapped_numbers, lost_file)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 12))])
@pytest.mark.parametrize("corrupt", CORRUPTIONS)
def test_a_corruption_is_a_sentence_that_names_a_tensor_or_a_file(corrupt, seed, whole, tmp_path, capsys):
    folder = shutil.copytree(whole, tmp_path / "folder")
    known = {*open_released(folder).names} | {path.name for path in folder.iterdir()}
    parts = {name.rpartition(".")[0] for name in known} | {"layers.", "mtp.", "model."}
    corrupt(folder, random.Random(seed))
    with pytest.raises(ValueError, match=r"^(checkpoint|config): ") as refused:
        v4.load(folder)
    said = str(refused.value)
    assert any(name in said for name in known | parts), said
    assert "\n" not in said and len(said) < 1000
    with pytest.raises(ValueError, match=r"^(checkpoint|config): "):
        opened = open_released(folder)
        assert corrupt in UNSEEN_UNTIL_READ
        for name in opened.names:
            opened.read(name)
        opened.verify()
    capsys.readouterr()
    assert main(["generate", "x", "--tokens", "1", "--model", str(folder)]) == 2
    out, errors = capsys.readouterr()
    assert out == "" and errors.count("\n") == 1 and errors.endswith(".\n")


def test_a_folder_that_nothing_was_done_to_loads(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "folder")
    assert v4.load(folder).config == open_released(whole).config
    open_released(folder).verify()
