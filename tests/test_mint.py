"""Random weights in the released layout: bytes by the formula, real sizes, and nothing half written."""

import json
import re
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import token_ids

import minidsv4 as v4
from minidsv4.__main__ import main
from minidsv4.checkpoint import StoredTensor, open_released
from minidsv4.config import LayerKind, Routing
from minidsv4.cost.parameters import checkpoint_bytes, stored_bytes
from minidsv4.cost.parameters import weights as bill_of
from minidsv4.train import mint
from minidsv4.train.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def minted(tmp_path_factory):
    """A small folder with a layer of each kind; read only."""
    return mint.mint(tmp_path_factory.mktemp("mint") / "folder", layers=4)


def test_a_minted_folder_opens_loads_and_is_whole_by_its_checksums(minted):
    opened = open_released(minted)
    opened.verify()
    kinds = (LayerKind.WINDOW, LayerKind.WINDOW, LayerKind.CSA, LayerKind.HCA, LayerKind.WINDOW)
    assert opened.config.layer_types == kinds
    assert opened.config.mlp_layer_types == (*[Routing.HASH] * 3, Routing.LEARNED)
    for name in opened.names:
        opened.read(name)
    model = v4.load(minted)
    logits = model(token_ids(2, 40, config=model.config))
    assert logits.isfinite().all() and 0.1 < logits.std() < 100


def test_the_files_of_a_release_are_there_by_name_and_readable_as_others(minted):
    shards = [f"model-{n:05}-of-00006.safetensors" for n in range(1, 7)]
    texts = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "SHA256SUMS"]
    found = {path.name: path.stat().st_mode for path in minted.iterdir()}
    assert sorted(found) == sorted([*shards, *texts, "model.safetensors.index.json"])
    assert len(set(found.values())) == 1
    fields = json.loads((minted / "config.json").read_text())
    assert fields["expert_dtype"] == "fp4" and fields["quantization_config"]["scale_fmt"] == "ue8m0"
    assert v4.Config.from_json(minted) == open_released(minted).config


def test_the_bytes_written_are_those_that_are_told_and_those_of_the_bill(minted):
    on_disk = sum(t.nbytes for path in minted.glob("*.safetensors") for t in load_file(path).values())
    planned = mint.plan(v4.Config.from_json(minted))
    assert on_disk == planned.total() == checkpoint_bytes(bill_of(planned.config))
    index = json.loads((minted / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == on_disk
    whole = sum(path.stat().st_size for path in minted.iterdir())
    assert whole < planned.on_disk() < 2 * whole


@pytest.mark.slow
@pytest.mark.parametrize(("like", "n_layers", "gigabytes"), [("flash", 43, 159.6), ("pro", 61, 864.7)])
def test_a_whole_release_would_have_the_bytes_that_are_quoted_of_it(like, n_layers, gigabytes):
    planned = mint.plan(mint.config_like(like, n_layers, "real", mtp=True))
    assert planned.config == getattr(v4.Config, like)()
    assert round(planned.total() / 1e9, 1) == gigabytes and planned.total() == checkpoint_bytes(bill_of(planned.config))


def test_one_real_layer_of_flash_takes_three_and_a_half_gigabytes():
    planned = mint.plan(mint.config_like("flash", 3, "real", mtp=True))
    names = {row.name for row in bill_of(planned.config)}
    assert {name.replace(".experts.0.", ".experts.") for name in planned.shards[3]} >= {
        name for name in names if name.startswith("layers.2.")
    }
    layer = sum(stored_bytes(row) for row in bill_of(planned.config) if row.name.startswith("layers.2."))
    assert sum(mint.stored_bytes(*held) for held in planned.shards[3].values()) == layer
    assert round(layer / 1e9, 1) == 3.6  # 3.4 of them experts


def test_the_numbers_of_real_widths_are_of_the_size_that_products_need():
    random = np.random.default_rng(0)
    for kind in ("fp4", "fp8"):
        data, scale = mint.draw_narrow(random, kind, (256, 4096))
        wide = StoredTensor("experts.0.w1.weight", kind, data, scale).wide()
        assert 0.5 < wide.square().mean().sqrt() * 4096**0.5 < 2 and len(scale.float().unique()) == 3


def test_a_seed_gives_the_same_numbers_and_another_one_others(minted, tmp_path):
    same, other = mint.mint(tmp_path / "same", layers=4), mint.mint(tmp_path / "other", layers=4, seed=1)
    files = {path.name: path.read_bytes() for path in minted.iterdir()}
    assert {path.name: path.read_bytes() for path in same.iterdir()} == files
    for path in other.glob("*.safetensors"):
        assert path.read_bytes() != files[path.name]


def test_a_deeper_folder_has_the_same_layers_and_more(minted, tmp_path):
    short = open_released(mint.mint(tmp_path / "short", layers=2, mtp=False))
    long = open_released(minted)
    assert not short.config.num_nextn_predict_layers and {*short.names} < {*long.names}
    for name in short.names:
        assert torch.equal(short.stored(name).wide(), long.stored(name).wide())


def test_the_tokenizer_knows_every_token_of_the_model(tmp_path):
    config = v4.Config.mini().replace(vocab_size=2500)
    tmp_path.mkdir(exist_ok=True)
    mint.write_texts(tmp_path, config)
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
    assert len(tokenizer) == 2500 and tokenizer.decode([2499]) == "<2499>"
    assert tokenizer.decode(tokenizer.encode("def f(x):")) == "def f(x):"


# ---- the command, and what is refused ----


def test_the_command_tells_the_bytes_before_it_writes_them_and_generate_runs_on_what_it_made(tmp_path, capsys):
    folder = tmp_path / "new" / "folder"
    assert main(["mint", str(folder), "--layers", "3", "--like", "pro", "--no-mtp"]) == 0
    total = mint.plan(v4.Config.from_json(folder)).total()
    assert f"{total:>18,} bytes in 5 files" in capsys.readouterr().out
    assert main(["generate", "x = 1", "--tokens", "3", "--model", str(folder)]) == 0
    assert capsys.readouterr().out.startswith("x = 1")


def refused(capsys, *words):
    code = main(["mint", *words])
    said = capsys.readouterr().err.splitlines()[-1]
    assert code == 2 and said.startswith("mint: ")
    return said


def test_a_folder_that_exists_is_left_as_it_is(minted, tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to("nowhere")
    for path in (minted, tmp_path / "file", tmp_path / "link"):
        assert "exists, and is left as it is" in refused(capsys, str(path))
    assert (tmp_path / "file").read_text() == "kept"


def test_too_little_space_is_told_before_anything_is_written(tmp_path, capsys, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9))
    said = refused(capsys, str(tmp_path / "deep" / "folder"), "--width", "real", "--layers", "1")
    assert re.search(r"9,\d{3},\d{3},\d{3} bytes are needed and 1,000,000,000 are free", said)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("step", ["write_shard", "write_texts"])
def test_an_error_on_the_way_leaves_nothing(error, step, tmp_path, monkeypatch):
    """Kind: Ctrl-C or a full disk in the third file."""
    write, calls = getattr(mint, step), []

    def fail(*arguments):
        calls.append(write(*arguments))
        if len(calls) == (3 if step == "write_shard" else 1):
            raise error

    monkeypatch.setattr(mint, step, fail)
    with pytest.raises(type(error)) as raised:
        mint.mint(tmp_path / "folder")
    assert not list(tmp_path.iterdir())
    if isinstance(error, OSError):
        assert str(raised.value).startswith("mint: cannot write 'folder'")


def test_words_that_name_no_release_are_refused(tmp_path):
    for words, said in (
        (dict(like="v3"), "like = 'v3'"),
        (dict(width="wide"), "width = 'wide'"),
        (dict(layers=44), "V4-Flash has 43"),
        (dict(layers=0), "layers = 0"),
        (dict(layers="3"), "layers = '3' cannot be"),
        (dict(layers=2.0), "layers = 2.0 cannot be"),
        (dict(layers=None), "layers = None cannot be"),
        (dict(seed=1.5), "seed = 1.5 cannot be; give an integer"),
        (dict(seed="a"), "seed = 'a' cannot be"),
        (dict(seed=None), "seed = None cannot be"),
        (dict(like=[]), r"like = \[\]"),
        (dict(mtp="no"), "mtp = 'no' cannot be; give True or False"),
    ):
        with pytest.raises(ValueError, match=f"^mint: .*{said}"):
            mint.mint(tmp_path / "folder", **words)
    assert not list(tmp_path.iterdir())
