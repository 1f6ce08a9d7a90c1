"""A model whose weights stay on disk: the bits of one that was loaded whole, within a budget, whatever the formats."""

import copy
import dataclasses
import math
import random
import shutil

import forks
import pytest
import torch
from oracle import random_config
from safetensors.torch import load_file, save_file
from small import TINY, disturb, small_model, token_ids

import minidsv4 as v4
from minidsv4 import checkpoint
from minidsv4.__main__ import main
from minidsv4.bench import disk as bench
from minidsv4.cost import disk as cost
from minidsv4.cost import roofline
from minidsv4.cost.parameters import weights
from minidsv4.lowbit import fp8, mxfp4, qat
from minidsv4.lowbit.formats import scale_of
from minidsv4.options import check_memory
from minidsv4.serve import progress
from minidsv4.serve.disk import ModelOnDisk

NARROW = TINY.replace(hidden_size=64, moe_intermediate_size=32)  # experts that FP4 takes
FILE = "model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small folder in the released formats."""
    return v4.save(small_model(NARROW), tmp_path_factory.mktemp("small") / "released", precision="released")


def on_disk(folder, memory=None):
    return v4.load(folder, weights="disk", memory=memory)


def largest(model):
    """Bytes of the largest piece, the smallest budget there is."""
    return max(piece.room for piece in model.source.store.pieces.values())


def mixed(folder, draw):
    """Matrices of experts that a folder holds without scales put into other formats, each by lot; no checksums."""
    tensors = load_file(folder / FILE)
    wide = [name for name in tensors if name.endswith(".weight") and scale_of(name) not in tensors]
    for name in (name for name in wide if ".experts." in name):
        fits = tensors[name].shape[1] % mxfp4.GROUP == 0
        kind = draw.choice(["keep", "bf16", "fp8", "fp4"] if fits else ["keep", "bf16", "fp8"])
        if kind == "bf16":
            tensors[name] = tensors[name].bfloat16()
        elif kind != "keep":
            tensors[name], tensors[scale_of(name)] = (fp8 if kind == "fp8" else mxfp4).quantise(tensors[name])
    save_file(tensors, folder / FILE)
    (folder / "SHA256SUMS").unlink()
    return folder


# ---- the same bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=[pytest.mark.slow] * (seed >= 12)) for seed in range(50)])
def test_from_disk_and_loaded_whole_give_the_same_bits(seed, tmp_path):
    """Any sizes, with MTP and hash layers, in FP8, FP4, BF16 or wider, in one file or several, with any budget."""
    draw = random.Random(seed)
    config, n_batch, n_tokens = random_config(seed)
    config = config.replace(moe_intermediate_size=draw.choice([config.moe_intermediate_size, 32]))
    dtype = draw.choice([torch.float32, torch.bfloat16, torch.float64])
    precision, shard = draw.choice([(None, 10**9), (None, 20_000), ("fp8", 20_000), ("fp8", 10**9)])
    model = small_model(config, seed, dtype)
    folder = checkpoint.save(model, tmp_path, precision=precision, shard_bytes=shard)
    if shard == 10**9:
        mixed(folder, draw)
    whole, there = v4.load(folder), on_disk(folder)
    budget = draw.choice([math.inf, largest(there), draw.randint(largest(there), 4 * largest(there))])
    there.source.store.rooms.limit = budget
    ids_BT, caches = token_ids(n_batch, n_tokens, seed, config), [model.new_cache(n_batch) for model in (whole, there)]
    with torch.no_grad():
        for chunk in ids_BT.split([n_tokens - 2, 1, 1], dim=1):
            assert torch.equal(there(chunk, cache=caches[1]), whole(chunk, cache=caches[0]))
        losses = [model.loss(ids_BT) for model in (whole, there)]
    assert losses[0] == losses[1]
    assert there.source.store.rooms.peak <= budget


@torch.no_grad()
def test_the_indexers_loss_is_measured_from_disk(folder):
    ids_BT = token_ids(2, 38)
    whole, there = (model.loss(ids_BT) for model in (v4.load(folder), on_disk(folder)))
    assert there == whole and there.indexer > 0


def test_rounding_all_experts_of_a_layer_at_once_is_refused(folder):
    with pytest.raises(ValueError, match=r"experts: 'ndim' is asked of all .* disk .*; load\(folder\) brings them"):
        on_disk(folder).use(qat.fp4_ops(v4.FAST))(token_ids(1, 5))


@pytest.mark.parametrize("table", [v4.PLAIN, v4.FAST])
def test_either_table_of_operations_runs_from_disk(table, folder):
    whole, there = v4.load(folder).use(table), on_disk(folder, "40 kB").use(table)
    ids_BT = token_ids(2, 17)
    with torch.no_grad():
        assert torch.equal(there(ids_BT), whole(ids_BT))


@pytest.mark.slow
@pytest.mark.parametrize("speculate", [False, 2])
def test_it_writes_what_the_model_writes(speculate, folder):
    options = dict(temperature=0.8, seed=3, speculate=speculate)
    whole, there = v4.load(folder), on_disk(folder, "100 kB")
    assert v4.generate(there, [1, 2, 3], 12, **options) == v4.generate(whole, [1, 2, 3], 12, **options)


def test_without_numba_it_gives_the_same_bits(folder, monkeypatch):
    ids_BT, with_numba = token_ids(1, 20), on_disk(folder)(token_ids(1, 20))
    monkeypatch.setattr("minidsv4.lowbit.widen.numba_is_here", lambda: False)
    assert torch.equal(on_disk(folder)(ids_BT), with_numba)


def test_a_head_in_tiles_is_the_head(folder, monkeypatch):
    expected = on_disk(folder)(token_ids(1, 6))
    monkeypatch.setattr("minidsv4.serve.source.TILE", 1000)
    there = on_disk(folder)
    assert len(there.source.head_tiles()) == 8
    torch.testing.assert_close(there(token_ids(1, 6)), expected, rtol=0, atol=1e-6)  # sums may take another order


# ---- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("n_layers", [2, 3])
def test_a_token_touches_and_reads_the_bytes_of_the_formula(n_layers, tmp_path):
    """Its windows close with it: norms and biases of compressors are touched then, and only then."""
    config = v4.Config.mini().replace(num_hidden_layers=n_layers, compress_ratios=(0, 4, 32)[:n_layers] + (0,))
    folder = v4.save(v4.Model(config), tmp_path / "mini", precision="released")
    whole, there, ids_BT = v4.load(folder), on_disk(folder), token_ids(1, 32, config=config)
    cache = whole.new_cache(1)
    whole(ids_BT[:, :31], cache=cache)
    there(ids_BT[:, 31:], cache=cache)
    traffic, touched = there.source.store.traffic, cost.touched(config)
    assert traffic.touched == traffic.read == touched.total
    assert traffic.hit_rate == 0


@pytest.fixture(scope="module")
def heavy_folder(tmp_path_factory):
    """38 MB, of which 34 are 144 experts."""
    sizes = dict(n_routed_experts=48, moe_intermediate_size=768, num_experts_per_tok=4)
    config = v4.Config.mini().replace(num_hidden_layers=3, compress_ratios=(0, 4, 32, 0), **sizes)
    return v4.save(v4.Model(config), tmp_path_factory.mktemp("heavy") / "model", precision="released")


@pytest.fixture(scope="module")
def visited(heavy_folder):
    """A prompt that visits every expert, the logits of a model that was loaded whole, and the bytes of all pieces."""
    whole, there = v4.load(heavy_folder), on_disk(heavy_folder)
    ids_BT = token_ids(1, 300, config=whole.config)
    with torch.no_grad():
        return ids_BT, whole(ids_BT), sum(piece.n_bytes for piece in there.source.store.pieces.values())


@pytest.mark.slow
@pytest.mark.parametrize("share", [2, 4, 10])
def test_a_budget_is_kept_while_a_prompt_visits_every_expert(share, heavy_folder, visited):
    ids_BT, expected, n_bytes = visited
    budget = n_bytes // share
    there = on_disk(heavy_folder, budget)
    with torch.no_grad():
        assert torch.equal(there(ids_BT), expected)
    assert 0.9 * budget < there.source.store.rooms.peak <= budget


# Bytes by which a process grows in which a model runs from disk, its libraries there and its loops compiled.
PROCESS_PEAK = """
import gc
import sys
import minidsv4 as v4
from minidsv4.bench.peak_memory import peak_bytes, reset_peak
from small import token_ids
folder, memory = sys.argv[1], int(sys.argv[2])
small = v4.load(folder, weights="disk", memory=memory)
small(token_ids(1, 40, config=small.config))
del small
gc.collect()
before = reset_peak()
there = v4.load(folder, weights="disk", memory=memory)
for seed in range(4):
    there(token_ids(1, 100, seed, config=there.config))
print(peak_bytes() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("share", [2, 10])
def test_a_process_grows_by_the_budget_and_a_constant_at_most(share, heavy_folder):
    n_bytes = sum(path.stat().st_size for path in heavy_folder.glob("*.safetensors"))
    done = forks.python(PROCESS_PEAK, str(heavy_folder), str(n_bytes // share))
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout)
    assert grown < n_bytes // share + (12 << 20)  # a table of 1,300 pieces, activations, one matrix: 6 to 9 MB


# ---- what it refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("8 GB", 8e9), ("8GB", 8e9), ("1.5 MiB", 1.5 * 2**20), ("500 mb", 5e8), ("2T", 2e12), ("7", 7), (12, 12)],
)
def test_amounts_of_memory(text, n_bytes):
    assert check_memory(text) == n_bytes


@pytest.mark.parametrize(
    "memory", ["8 GX", "GB", "", "-1 GB", "0 GB", "1e9", "8 GB of it", 0, -5, True, [8], float("nan")]
)
def test_what_is_no_amount_is_refused(memory, folder):
    with pytest.raises(ValueError, match=r"memory = .* is no amount; give bytes, or such as '8 GB'"):
        on_disk(folder, memory)


def test_a_budget_below_the_largest_piece_is_refused_with_the_bytes_that_it_needs(folder):
    needed = largest(on_disk(folder))
    with pytest.raises(
        ValueError, match=rf"= {needed - 1:,} bytes does not hold layers.0.hc_attn_fn; give at least {needed:,} bytes$"
    ):
        on_disk(folder, needed - 1)
    on_disk(folder, needed)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(weights="ram"), "weights = 'ram' is not known; it is 'disk', or None"),
        (dict(weights="disk", keep=str.upper), "keep = .* is for a model read whole; leave it or weights='disk' out"),
        (dict(weights="disk", adapt=lambda model: model), "adapt = .* is for a model read whole"),
        (dict(memory="8 GB"), "memory = '8 GB' limits weights on disk; give weights='disk' with it"),
    ],
)
def test_other_arguments_are_refused(options, sentence, folder):
    with pytest.raises(ValueError, match=sentence):
        v4.load(folder, **options)


def test_a_folder_that_is_no_path_is_refused_in_the_name_of_the_call():
    with pytest.raises(ValueError, match="^load: None names no file or folder"):
        on_disk(None)


def test_a_folder_of_transformers_is_refused(tmp_path):
    tensors = {"model.layers.0.mlp.experts.gate_up_proj": torch.zeros(2, 2, 2)}
    save_file(tensors, tmp_path / FILE)
    TINY.to_json(tmp_path / "config.json")
    with pytest.raises(ValueError, match="checkpoint: tensors do not fit the config; missing"):
        on_disk(tmp_path)


@pytest.mark.parametrize("damage", ["gone", "cut off"])
def test_a_file_that_vanishes_or_is_cut_off_while_it_runs_is_named(damage, folder, tmp_path):
    there = on_disk(shutil.copytree(folder, tmp_path / "copy"), "40 kB")
    there(token_ids(1, 5))
    path = tmp_path / "copy" / FILE
    path.unlink() if damage == "gone" else path.write_bytes(path.read_bytes()[:2000])
    cache = there.new_cache(1)
    sentence = {"gone": "cannot be read .*No such file", "cut off": "has changed since it was opened"}[damage]
    with pytest.raises(ValueError, match=rf"checkpoint: {FILE} {sentence}"):
        there(token_ids(1, 5), cache=cache)
    assert cache.n_tokens == 0
    shutil.copy(folder / FILE, path)
    with torch.no_grad():
        again = on_disk(tmp_path / "copy", "40 kB")
        assert torch.equal(again(token_ids(1, 5), cache=cache), v4.load(folder)(token_ids(1, 5)))


def test_a_folder_that_is_saved_over_while_it_runs_is_refused_and_weights_never_mix(folder, tmp_path):
    there = on_disk(shutil.copytree(folder, tmp_path / "copy"), "40 kB")
    there(token_ids(1, 5))
    v4.save(small_model(NARROW, seed=1), tmp_path / "copy", precision="released")
    with pytest.raises(ValueError, match=rf"^checkpoint: {FILE} has changed since it was opened; open the folder"):
        there(token_ids(1, 5))


ASKED = {
    "a loss to train on": lambda model: model.loss(token_ids(1, 5)),
    "parameters": lambda model: list(model.parameters()),
    "gradients": lambda model: model.requires_grad_(True),
    "an optimiser": lambda model: torch.optim.AdamW(model.parameters()),
    "another type": lambda model: model.bfloat16(),
    "another device": lambda model: model.to("meta"),
    "a part of another type": lambda model: model.layers[0].attn.double(),
    "its state": lambda model: model.state_dict(),
    "another state": lambda model: model.load_state_dict({}),
    "to be saved": lambda model: v4.save(model, "nowhere"),
    "to be exported": lambda model: v4.export_hf(model, "nowhere"),
    "compiled decoding": lambda model: v4.generate(model, [1], 2, fused=True),
    "a copy": copy.deepcopy,
}


@pytest.mark.slow
@pytest.mark.parametrize("asked", ASKED)
def test_what_needs_weights_in_memory_is_refused_with_the_way_out(asked, folder):
    with pytest.raises(
        ValueError, match=r"^model: its weights lie on disk, .+; load\(folder\) brings them all into memory"
    ):
        ASKED[asked](on_disk(folder))


def test_autocast_is_refused(folder):
    with pytest.raises(ValueError, match="torch.autocast"), torch.autocast("cpu", torch.bfloat16):
        on_disk(folder)(token_ids(1, 5))


def test_a_table_that_names_no_expert_is_refused_when_its_row_is_read(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    tensors = load_file(folder / FILE)
    name = next(name for name in tensors if name.endswith("tid2eid"))
    tensors[name][7, 0] = 99
    save_file(tensors, tmp_path / "copy" / FILE)
    there = on_disk(tmp_path / "copy")
    there(torch.tensor([[6]]))
    with pytest.raises(ValueError, match=rf"checkpoint: {name} names expert 99; n_routed_experts allows 0 .. 8"):
        there(torch.tensor([[7]]))


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """The shipped model in the released formats, with its tokenizer."""
    folder = v4.save(v4.load_pretrained(), tmp_path_factory.mktemp("shipped") / "model", precision="released")
    v4.pretrained_tokenizer().save(folder / "tokenizer.json")
    return folder


def written(capsys, *words):
    """Exit code, text and what was told, of a greedy run."""
    code = main(["generate", "def fib(n):", "--tokens", "6", "--temperature", "0", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.slow
def test_the_command_writes_the_same_text_and_tells_how_it_goes(shipped, capsys):
    expected = written(capsys, "--model", shipped)
    code, text, told = written(capsys, "--model", shipped, "--weights", "disk", "--memory", "2MB")
    assert (code, text) == expected[:2] and expected[2] == ""
    lines = told.splitlines()
    assert len(lines) == 6
    assert lines[0].startswith("pass 1, ") and "of the bytes touched were in memory" in lines[5]


@pytest.mark.slow
def test_on_a_terminal_every_layer_is_told_in_one_line_that_is_gone_at_the_end(shipped, capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    _, _, told = written(capsys, "--model", shipped, "--weights", "disk")
    assert all(f"layer {n} of 6: pass 6" in told for n in range(1, 7))
    assert told.count(progress.BELOW) == 6 * 7 + 1
    last = told.split(progress.BELOW)[-1]
    assert last.startswith(progress.BACK + "pass 6, ") and last.endswith("tokens a minute\n")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--weights", "disk", "--memory", "1kB"], "does not hold head.weight[0]; give at least 786,560 bytes"),
        (["--weights", "disk", "--memory", "lots"], "argument --memory: 'lots' is no amount"),
        (["--memory", "1MB"], "load: memory = 1000000.0 limits weights on disk; give weights='disk' with it."),
        (["--weights", "disk", "--fused"], "leave out --fused and --precision."),
        (["--weights", "disk", "--precision", "bf16"], "leave out --fused and --precision."),
    ],
)
def test_the_command_refuses_with_a_sentence(words, sentence, shipped, capsys):
    try:
        code = main(["generate", "x", "--model", str(shipped), *words])
    except SystemExit as error:
        code = error.code
    told = capsys.readouterr().err
    assert code == 2 and sentence in told and len(told.splitlines()) == 1


def test_weights_on_disk_need_a_folder(capsys):
    assert main(["generate", "x", "--weights", "disk"]) == 2
    assert "name it by --model." in capsys.readouterr().err


# ---- what it would take for the real models --------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "dense", "experts"), [("flash", 7.77, 3.45), ("pro", 26.82, 12.84)])
def test_a_token_of_the_real_models_touches_so_many_gigabytes(name, dense, experts):
    touched = cost.touched(getattr(v4.Config, name)())
    assert (round(touched.dense / 1e9, 2), round(touched.experts / 1e9, 2)) == (dense, experts)
    seconds = cost.seconds(touched.total)
    assert seconds["NVMe, PCIe 3"] == touched.total / 3.5e9 and list(seconds) == [disk.name for disk in cost.DISKS]
    assert dataclasses.asdict(v4.cost.bill(getattr(v4.Config, name)(), 1000).touched)["rows"] == touched.rows


@pytest.mark.parametrize("name", ["flash", "pro"])
def test_what_is_touched_is_what_a_roofline_moves_for_one_token_and_the_rows(name):
    config = getattr(v4.Config, name)()
    rows = [row for row in weights(config) if row.part != "MTP block"]
    touched = cost.touched(config)
    assert touched.dense + touched.experts == pytest.approx(roofline.weight_bytes(rows, None, 1), rel=1e-12)
    assert touched.rows == 2 * config.hidden_size + 3 * 8 * config.num_experts_per_tok


def test_the_bench_prints_the_bytes_beside_the_formula_and_refuses_with_a_sentence(folder, capsys):
    assert bench.main([str(folder), "--memory", "60 kB", "--passes", "2"]) == 0
    printed = capsys.readouterr().out
    assert f"by the formula {cost.touched(NARROW).total:,} bytes" in " ".join(printed.split())
    assert bench.main([str(folder), "--memory", "none"]) == 2
    assert "is no amount" in capsys.readouterr().err


def test_it_is_a_model(folder):
    there = on_disk(folder)
    assert isinstance(there, v4.model.model.Model) and isinstance(there, ModelOnDisk)
    assert there.layers[0].attn.wq_a.weight.shape == disturb(v4.Model(NARROW)).layers[0].attn.wq_a.weight.shape
