"""Config: the released numbers, every form of `config.json`, and a sentence for what cannot be built."""

import dataclasses
import json
import re

import pytest

import minidsv4 as v4
from minidsv4.config import YaRN
from minidsv4.config_json import for_transformers, released
from minidsv4.cost.parameters import parameters, total, weights
from minidsv4.dims import GLOSSARY

TINY, FLASH, PRO = v4.Config.tiny(), v4.Config.flash(), v4.Config.pro()
WINDOW, CSA, HCA = v4.LayerKind.WINDOW, v4.LayerKind.CSA, v4.LayerKind.HCA
YARN = dict(factor=16, original_max_position_embeddings=65536, beta_fast=32, beta_slow=1)


def from_fields(fields: dict) -> v4.Config:
    """The config of a `config.json` with these fields, in either spelling."""
    return v4.Config.from_dict(released(fields))


def released_json(config: v4.Config) -> dict:
    """The fields of a released `config.json` for these sizes, its extra fields with it, spelled out by hand here."""
    sizes = """vocab_size hidden_size moe_intermediate_size num_hidden_layers num_attention_heads head_dim
        qk_rope_head_dim q_lora_rank o_groups o_lora_rank sliding_window index_n_heads index_head_dim index_topk
        n_routed_experts num_experts_per_tok routed_scaling_factor""".split()
    fields = {name: getattr(config, name) for name in sizes}
    fields |= {"compress_ratios": list(config.compress_ratios), "num_hash_layers": 3, "swiglu_limit": 10.0}
    fields |= {"hc_mult": 4, "hc_sinkhorn_iters": 20, "hc_eps": 1e-6, "rms_norm_eps": 1e-6, "n_shared_experts": 1}
    fields |= {"rope_theta": 10000, "compress_rope_theta": 160000, "rope_scaling": {"type": "yarn", **YARN}}
    fields |= {"num_nextn_predict_layers": 1, "max_position_embeddings": 1048576, "num_key_value_heads": 1}
    fields |= {"scoring_func": "sqrtsoftplus", "norm_topk_prob": True, "hidden_act": "silu", "attention_bias": False}
    fields |= {"bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.02, "tie_word_embeddings": False}
    extra = {"torch_dtype": "bfloat16", "topk_method": "noaux_tc", "transformers_version": "4.57.1", "use_cache": True}
    quantised = {"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]}
    return fields | extra | {"quantization_config": quantised, "expert_dtype": "fp4", "model_type": "deepseek_v4"}


@pytest.mark.parametrize(("config", "n_ratios"), [(FLASH, 44), (PRO, 62)], ids=["flash", "pro"])
def test_a_released_config_json_with_its_extra_fields_loads_as_it_is(config, n_ratios, tmp_path):
    fields = released_json(config)
    assert len(fields["compress_ratios"]) == n_ratios
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert v4.Config.from_json(tmp_path / "config.json") == config
    assert v4.Config.from_json(tmp_path) == config


@pytest.mark.parametrize(
    ("config", "first", "counts"),
    [(FLASH, (WINDOW, WINDOW), (3, 21, 20)), (PRO, (HCA, HCA), (1, 30, 31))],
    ids=["flash", "pro"],
)
def test_the_released_schedules_alternate_csa_and_hca_after_two_layers(config, first, counts):
    kinds = config.layer_types
    assert kinds[:2] == first
    assert all(kinds[layer] is (CSA if layer % 2 == 0 else HCA) for layer in range(2, config.num_hidden_layers))
    assert tuple(kinds.count(kind) for kind in (WINDOW, CSA, HCA)) == counts  # the MTP block is one WINDOW of them
    assert config.ratio_of(CSA) == 4 and config.ratio_of(HCA) == 128 and config.ratio_of(WINDOW) == 0
    assert [kind.value for kind in config.mlp_layer_types[:4]] == ["hash_moe"] * 3 + ["moe"]


def test_every_axis_of_tiny_has_another_size():
    sizes = {letter: getattr(TINY, axis.field) for letter, axis in GLOSSARY.items() if axis.field and letter != "M"}
    del sizes["L"]  # layers are a list, never an axis of a tensor
    sizes |= {"M of CSA": TINY.ratio_of(CSA), "M of HCA": TINY.ratio_of(HCA)}
    assert len(set(sizes.values())) == len(sizes), sizes


def test_mini_keeps_every_mechanism_at_5_to_10_million_parameters():
    config = v4.Config.mini()
    assert set(config.layer_types) == {WINDOW, CSA, HCA} and set(config.mlp_layer_types) == set(v4.Routing)
    assert config.index_n_heads >= 16 and config.num_nextn_predict_layers == 1 and config.rope_scaling
    assert config.index_topk < config.max_position_embeddings // config.ratio_of(CSA)
    n_parameters = sum(parameter.numel() for parameter in v4.Model(config).parameters())
    assert 5e6 < n_parameters < 10e6


# ---- other forms of the file ----


def bench_like(**changes) -> dict:
    """transformers' form with one flat `rope_parameters` and a rotary part given as a fraction."""
    kinds = ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"]
    fields = dict(vocab_size=97, hidden_size=40, moe_intermediate_size=24, num_hidden_layers=3, num_attention_heads=6)
    fields |= dict(head_dim=32, partial_rotary_factor=0.25, q_lora_rank=18, o_groups=2, o_lora_rank=11)
    fields |= dict(num_experts_per_tok=2, n_routed_experts=10, sliding_window=16, layer_types=kinds, index_n_heads=7)
    fields |= dict(mlp_layer_types=["hash_moe", "moe", "moe"], index_head_dim=20, index_topk=5)
    fields |= dict(compress_rates={kinds[1]: 4, kinds[2]: 14}, rope_theta=9000.0, compress_rope_theta=150000.0)
    return fields | dict(rope_parameters={"rope_type": "yarn", **YARN}, use_cache=True) | changes


def test_a_flat_rope_setting_and_a_rotary_fraction_are_read():
    config = from_fields(bench_like())
    assert (config.qk_rope_head_dim, config.rope_theta, config.compress_rope_theta) == (8, 9000.0, 150000.0)
    assert config.rope_scaling == YaRN(**YARN)
    assert config.layer_types == (WINDOW, CSA, HCA, WINDOW) and config.compress_ratios == (0, 4, 14, 0)
    assert config.mlp_layer_types == (v4.Routing.HASH, v4.Routing.LEARNED, v4.Routing.LEARNED)


def test_a_nested_rope_setting_gives_each_kind_of_layer_its_base():
    main = {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5}
    slowed = {"rope_type": "yarn", "rope_theta": 70000.0, "partial_rotary_factor": 0.5, "attention_factor": 1.0, **YARN}
    fields = bench_like(rope_parameters={"main": main, "compress": slowed})
    del fields["partial_rotary_factor"]
    config = from_fields(fields)
    assert (config.qk_rope_head_dim, config.rope_theta, config.compress_rope_theta) == (16, 5000.0, 70000.0)
    assert config.rope_scaling == YaRN(**YARN)


def test_plain_angles_need_no_yarn():
    assert from_fields(bench_like(rope_parameters={"rope_type": "default"})).rope_scaling is None


def test_what_is_written_for_transformers_reads_back_as_the_same_model_without_mtp():
    back = from_fields(json.loads(json.dumps(for_transformers(TINY.to_dict(), "float32"))))
    assert back == TINY.replace(num_nextn_predict_layers=0, max_position_embeddings=4 * 64)


def test_what_transformers_writes_itself_reads_back_as_the_same_model(tmp_path):
    from transformers import DeepseekV4Config

    DeepseekV4Config(**for_transformers(TINY.to_dict(), "float32")).save_pretrained(tmp_path)
    stretched = TINY.replace(num_nextn_predict_layers=0, max_position_embeddings=4 * 64)
    assert v4.Config.from_json(tmp_path) == stretched


def test_the_ratio_of_an_absent_mtp_block_may_be_left_out():
    fields = TINY.to_dict()
    del fields["compress_ratios"][-1], fields["layer_types"], fields["mlp_layer_types"]
    fields["compress_ratios"] = [0, 4, 12, 4]
    assert from_fields(fields).compress_ratios == (0, 4, 12, 4, 0)


@pytest.mark.parametrize("name", ["tiny", "mini", "flash", "pro"])
def test_writing_and_reading_gives_the_same_config(name, tmp_path):
    config = getattr(v4.Config, name)()
    config.to_json(tmp_path / "config.json")
    assert v4.Config.from_json(tmp_path) == config


def test_derived_schedules_are_derived_anew_when_their_source_changes():
    config = v4.Config.mini().replace(compress_ratios=(32, 4, 0, 4, 0, 4, 0), num_hash_layers=2)
    assert config.layer_types == (HCA, CSA, WINDOW, CSA, WINDOW, CSA, WINDOW)
    assert config.mlp_layer_types.count(v4.Routing.HASH) == 2
    assert v4.Config.mini().layer_types[0] is WINDOW  # the original is as it was


def test_another_number_of_layers_needs_no_more_than_its_ratios():
    config = FLASH.replace(num_hidden_layers=2, compress_ratios=(0, 4, 0))
    assert config.mlp_layer_types == (v4.Routing.HASH,) * 2


def test_a_config_is_immutable_to_its_last_entry_and_can_be_a_key():
    """Kind: a rotary table that two configs share and one can change, and a config that is no key."""
    assert len({FLASH, v4.Config.flash(), FLASH.replace(), PRO}) == 2
    assert {FLASH.replace(rope_scaling=YARN | {"factor": 4}): "other"}.get(FLASH) is None
    with pytest.raises(AttributeError):
        FLASH.rope_scaling.factor = 4


def test_hash_layers_are_counted_and_not_stored():
    config = TINY.replace(mlp_layer_types=["moe", "hash_moe", "moe", "hash_moe"])
    assert config.num_hash_layers == 2 and config.to_dict()["num_hash_layers"] == 2
    with pytest.raises(AttributeError):
        config.num_hash_layers = 3


@pytest.mark.parametrize(("config", "n_ratios", "billions"), [(FLASH, 46, 284.33), (PRO, 64, 1573.0)])
def test_a_release_with_draft_stages_loads_as_its_main_model_and_says_what_is_left_out(config, n_ratios, billions):
    """Kind: the configs of V4-Flash-0731 and V4-Pro-0813, whose last zeros are not the MTP block's."""
    fields = released_json(config) | {"num_nextn_predict_layers": 3}
    fields["compress_ratios"] = [*config.compress_ratios, 0, 0]
    assert len(fields["compress_ratios"]) == n_ratios
    with pytest.warns(UserWarning, match=r"3 entries beyond the \d\d layers: draft stages.* left out \(mtp"):
        main = from_fields(fields)
    assert main == config.replace(num_nextn_predict_layers=0)
    assert round(total(parameters(weights(main))).total / 1e9, 2) == billions


# ---- refusals ----

REFUSED = [  # what is changed in tiny(), the field that the sentence names, the value, what would be right
    (dict(o_groups=3), "o_groups", "3", "divide num_attention_heads = 10"),
    (dict(num_attention_heads=12), "o_groups", "5", "num_attention_heads = 12"),
    (dict(qk_rope_head_dim=7), "qk_rope_head_dim", "7", "even"),
    (dict(qk_rope_head_dim=22), "qk_rope_head_dim", "22", "head_dim = 20"),
    (dict(qk_rope_head_dim=18), "qk_rope_head_dim", "18", "index_head_dim = 16"),
    (dict(index_topk=0), "index_topk", "0", "from 1"),
    (dict(sliding_window=0), "sliding_window", "0", "from 1"),
    (dict(vocab_size=-1), "vocab_size", "-1", "from 1"),
    (dict(hidden_size=24.0), "hidden_size", "24.0", "whole number"),
    (dict(num_hidden_layers=0), "num_hidden_layers", "0", "from 1"),
    (dict(hc_mult=True), "hc_mult", "True", "whole number"),
    (dict(hc_sinkhorn_iters=0), "hc_sinkhorn_iters", "0", "from 1"),
    (dict(index_n_heads="11"), "index_n_heads", "'11'", "whole number"),
    (dict(num_experts_per_tok=10), "num_experts_per_tok", "10", "n_routed_experts = 9"),
    (dict(swiglu_limit=0.0), "swiglu_limit", "0.0", "above 0"),
    *(
        (dict(swiglu_limit=wrong), "swiglu_limit", repr(wrong), "below 1e30")
        for wrong in (float("nan"), 1e400, True, "7")
    ),
    (dict(routed_scaling_factor=-1.5), "routed_scaling_factor", "-1.5", "above 0"),
    (dict(initializer_range=float("nan")), "initializer_range", "nan", "above 0"),
    (dict(initializer_range=1e6), "initializer_range", "1000000.0", "below 100"),  # a loss of NaN later
    (dict(routed_scaling_factor=1e29), "routed_scaling_factor", "1e+29", "below 1000"),  # gradients that overflow
    (dict(hc_eps=1e29), "hc_eps", "1e+29", "below 1"),
    (dict(rms_norm_eps=1e29), "rms_norm_eps", "1e+29", "below 1"),
    (dict(compress_rope_theta="160000"), "compress_rope_theta", "'160000'", "above 1"),
    (dict(bos_token_id=-1), "bos_token_id", "-1", "0 .. 60"),
    (dict(eos_token_id=61), "eos_token_id", "61", "0 .. 60"),
    (dict(eos_token_id=True), "eos_token_id", "True", "0 .. 60"),
    (dict(rms_norm_eps=0.0), "rms_norm_eps", "0.0", "above 0"),
    (dict(hc_eps=-1e-6), "hc_eps", "-1e-06", "above 0"),
    (dict(num_nextn_predict_layers=2), "num_nextn_predict_layers", "2", "1 MTP block"),
    (dict(compress_ratios=(0, 3, 12, 0)), "compress_ratios", "4 entries", "needs 5"),
    (dict(num_hidden_layers=5), "compress_ratios", "5 entries", "needs 6"),
    (dict(compress_ratios=(0, 4, -2, 4, 0)), "compress_ratios", "-2", "from 0"),
    (dict(compress_ratios=(0, 4, 12, 6, 0)), "compress_ratios", "[6, 12]", "HCA layers share one ratio"),
    (dict(compress_ratios=(0, 4, 12, 4, 4)), "compress_ratios[-1]", "4", "window only: 0"),
    (dict(layer_types=(CSA, CSA, HCA, CSA, WINDOW)), "compress_ratios", "[0, 3]", "CSA layers share one ratio from 1"),
    (dict(layer_types=(WINDOW, WINDOW, HCA, CSA, WINDOW)), "compress_ratios", "[0, 3]", "window layers have ratio 0"),
    (dict(layer_types=(WINDOW,)), "layer_types", "1 entries", "needs 5"),
    (dict(layer_types=("full_attention",) * 5), "layer_types", "full_attention", "sliding_attention"),
    (dict(mlp_layer_types=("hash_moe",)), "mlp_layer_types", "1 entries", "4 layers"),
    (dict(mlp_layer_types=("dense",) * 4), "mlp_layer_types", "dense", "hash_moe"),
    (dict(num_hash_layers=-1), "num_hash_layers", "-1", "from 0"),
    (dict(rope_theta=1.0), "rope_theta", "1.0", "above 1"),
    (dict(compress_rope_theta=0.5), "compress_rope_theta", "0.5", "above 1"),
    (dict(rope_scaling={"factor": 4}), "rope_scaling", "{'factor': 4}", "original_max_position_embeddings"),
    (dict(rope_scaling=YARN | {"factor": 0.5}), "rope_scaling.factor", "0.5", "1 or more"),
    (dict(rope_scaling=YARN | {"beta_slow": 64}), "rope_scaling", "64", "beta_fast is above beta_slow"),
    *(  # a number where it makes no sense: what torch, or a page of memory, would say later
        (dict(rope_scaling=YARN | {name: wrong}), f"rope_scaling.{name}", repr(wrong)[:40], "number")
        for name in YARN
        for wrong in (float("nan"), float("inf"), True, "16", [16], -1)
    ),
    *(
        (dict.fromkeys([name], wrong), name, repr(wrong), "whole number")
        for name in ("vocab_size", "hidden_size", "sliding_window", "hc_mult", "hc_sinkhorn_iters", "num_hidden_layers")
        for wrong in (10**30, [3], {"3": 3}, True)
    ),
    (dict(compress_ratios=5), "compress_ratios", "5", "list of tokens"),
    (dict(compress_ratios="03230"), "compress_ratios", "'03230'", "list of tokens"),
    (dict(compress_ratios=(0, 4, True, 4, 0)), "compress_ratios", "True", "whole numbers"),
    (dict(compress_ratios=(0, 4, 10**20, 4, 0)), "compress_ratios", str(10**20), "whole numbers"),
    (dict(layer_types={"a": 1}), "layer_types", "{'a': 1}", "list of names"),
    (dict(layer_types=[["a"]] * 5), "layer_types", "['a']", "list of names"),
    (dict(mlp_layer_types=3), "mlp_layer_types", "3", "list of names"),
    (dict(num_hash_layers=True), "num_hash_layers", "True", "whole number"),
    (dict(num_hidden_layers=10**12), "num_hidden_layers", str(10**12), "whole number"),
    (dict(rope_scaling=[1]), "rope_scaling", "[1]", "table"),
    (dict(hidden_dim=3), "replace", "hidden_dim", "released config.json"),
]


@pytest.mark.parametrize(("changes", "field", "value", "right"), REFUSED, ids=[str(case[0])[1:50] for case in REFUSED])
def test_what_cannot_be_built_is_refused_with_field_value_and_what_would_be_right(changes, field, value, right):
    """Kind: NaN, infinite, negative, huge, boolean or text values of a field, once a traceback of torch's."""
    with pytest.raises(ValueError) as refusal:
        TINY.replace(**changes)
    sentence = str(refusal.value)
    assert f"{field} = " in sentence and value in sentence.split(";")[0] and right in sentence.split(";")[1]


REFUSED_FILES = [  # what is changed in a released file, the field, the value, what would be right
    (dict(num_key_value_heads=8), "num_key_value_heads", "8", "V4 has 1"),
    (dict(n_shared_experts=2), "n_shared_experts", "2", "V4 has 1"),
    (dict(scoring_func="softmax"), "scoring_func", "'softmax'", "'sqrtsoftplus'"),
    (dict(tie_word_embeddings=True), "tie_word_embeddings", "True", "False"),
    (dict(rope_scaling={"type": "linear", "factor": 4}), "rope_scaling.type", "'linear'", "'yarn'"),
    (dict(rope_scaling={"type": "yarn"}), "rope_scaling", "yarn", "YaRN needs factor"),
    (dict(rope_scaling={"type": "yarn", "attention_factor": 1.277, **YARN}), "attention_factor", "1.277", "1.0"),
    (dict(compress_ratios=None, layer_types=["full_attention"] * 43), "layer_types", "full_attention", "sliding_"),
    (dict(mlp_layer_types=["dense"] * 43), "mlp_layer_types", "dense", "hash_moe"),
    (dict(layer_types=["full_attention"] * 44), "layer_types", "full_attention", "sliding_attention"),
    (dict(hidden_size=None, head_dim=None), "config.json", "hidden_size, head_dim", "seems to be DeepSeek-V4"),
    (dict(model_type="deepseek_v41", text_config={}), "model_type", "'deepseek_v41'", "seems to be DeepSeek-V4.1"),
    (dict(model_type="deepseek_v32"), "model_type", "'deepseek_v32'", "seems to be DeepSeek-V3.2"),
    (dict(model_type="llama"), "model_type", "'llama'", "seems to be Llama"),
    (dict(model_type="nova"), "model_type", "'nova'", "V4 has 'deepseek_v4'"),
    (dict(model_type=["deepseek_v4"]), "model_type", "['deepseek_v4']", "V4 has 'deepseek_v4'"),
    (dict(text_config={"hidden_size": 4096}), "config.json", "text_config", "not V4"),
    (dict(compress_ratios=[*FLASH.compress_ratios, 0, 4]), "compress_ratios", "46 entries", "needs 44"),
    (dict(num_key_value_heads=True), "num_key_value_heads", "True", "V4 has 1"),
    (dict(attention_bias=0), "attention_bias", "0", "V4 has False"),
    (dict(rope_scaling=[16]), "rope_scaling", "[16]", "table"),
    (dict(rope_parameters="yarn"), "rope_parameters", "'yarn'", "table"),
    (dict(rope_parameters={"main": 3}), "rope_parameters.main", "3", "table"),
    (dict(rope_parameters={"main": {"rope_theta": [1]}}), "rope_parameters.main.rope_theta", "[1]", "above 1"),
    (dict(compress_ratios=7), "compress_ratios", "7", "list of tokens"),
    (dict(compress_ratios=None, layer_types=["x"], compress_rates=[4]), "compress_rates", "[4]", "table"),
    (dict(partial_rotary_factor="half"), "partial_rotary_factor", "'half'", "part of a head"),
    (dict(partial_rotary_factor=float("nan")), "partial_rotary_factor", "nan", "part of a head"),
    (dict(rope_parameters={"rope_type": "yarn", **YARN, "factor": 8}), "rope_scaling", "16", "rope_parameters has"),
    (dict(rope_parameters={"rope_type": "default"}), "rope_scaling", "16", "'default'"),
    (dict(rope_parameters={"main": {}, "compress": YARN | {"beta_fast": 31}}), "rope_scaling", "32", "'beta_fast': 31"),
    (dict(compress_rates={CSA.value: 8, HCA.value: 128}), f"compress_rates.{CSA.value}", "8", "compress_ratios has 4"),
    (dict(compress_rates={HCA.value: 64}), f"compress_rates.{HCA.value}", "64", "compress_ratios has 128"),
    (dict(num_hidden_layers=[43]), "num_hidden_layers", "[43]", "whole number"),
    (dict(head_dim="512", qk_rope_head_dim=None), "head_dim", "'512'", "whole number"),
    (dict(vocab_size="many"), "vocab_size", "'many'", "whole number"),
]


@pytest.mark.parametrize(
    ("changes", "field", "value", "right"), REFUSED_FILES, ids=[str(c[0])[1:50] for c in REFUSED_FILES]
)
def test_a_file_of_another_model_is_refused_with_field_value_and_what_would_be_right(changes, field, value, right):
    """Kind: a file whose fields say another model, or nothing that a model can be built from."""
    with pytest.raises(ValueError) as refusal:
        from_fields(released_json(FLASH) | changes)
    sentence = str(refusal.value)
    assert f"{field} = " in sentence and value in sentence.split(";")[0] and right in sentence.split(";")[1]


def test_both_spellings_of_a_setting_may_stand_in_a_file_where_they_agree():
    """Kind: a file that transformers wrote of a released one; which of two that differ held was not told."""
    both = {"rope_type": "yarn", **YARN, "rope_theta": 160000, "attention_factor": 1.0}
    rates = {CSA.value: 4, HCA.value: 128}
    for fields in (
        dict(rope_parameters=both),
        dict(rope_parameters={"main": {"rope_type": "default", "rope_theta": 10000}, "compress": both}),
        dict(compress_rates=rates),
        dict(compress_rates={}),
    ):
        assert from_fields(released_json(FLASH) | fields) == FLASH
    assert from_fields(released_json(PRO) | dict(compress_rates=rates)) == PRO


def test_a_config_that_cannot_be_written_leaves_the_old_one_whole(tmp_path, monkeypatch):
    """Kind: a disk that is full halfway through a file."""
    TINY.to_json(tmp_path / "config.json")

    def fail(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        FLASH.to_json(tmp_path / "config.json")
    assert v4.Config.from_json(tmp_path) == TINY and len(list(tmp_path.iterdir())) == 1


EVERY_NAME = {field.name for field in dataclasses.fields(v4.Config)} | set(TINY.to_dict()) - {"architectures"}


@pytest.mark.parametrize("name", sorted(EVERY_NAME))
def test_a_misspelt_name_is_refused_with_the_right_one(name):
    """Kind: a field under a name that nobody reads, once its default in silence; a letter other, lost, twice."""
    middle = len(name) // 2
    for wrong in (name[:middle] + "x" + name[middle + 1 :], name[:-1], name + name[-1], name.upper()):
        for fields in (TINY.to_dict() | {wrong: 3}, {wrong: 3, **TINY.to_dict()} | {name: None}):
            with pytest.raises(ValueError, match=rf"^config: {wrong} = 3 .* did you mean \w+\?"):
                v4.Config.from_dict(fields)


@pytest.mark.parametrize(
    ("table", "wrong", "right"),
    [
        ("rope_scaling", "beta_fas", "beta_fast"),
        ("rope_scaling", "atention_factor", "attention_factor"),
        ("rope_parameters", "rope_tpye", "rope_type"),
        ("compress_rates", "compressed_sparse_atention", "compressed_sparse_attention"),
    ],
)
def test_a_misspelt_name_within_a_table_is_refused_as_well(table, wrong, right):
    fields = bench_like()
    fields[table] = fields.get(table, dict(YARN)) | {wrong: 8}
    if table == "rope_scaling":
        del fields["rope_parameters"]
    with pytest.raises(ValueError, match=rf"{wrong} = 8 .* did you mean {right}\?"):
        from_fields(fields)
    if table == "rope_scaling":
        with pytest.raises(ValueError, match=rf"{wrong} = 8 .* did you mean {right}\?"):
            TINY.replace(rope_scaling=fields[table])


def test_fields_of_others_are_taken_and_not_read(tmp_path):
    """The other side: what transformers writes for V4, and what its base class and DeepSeek's other models have."""
    from transformers import DeepseekV3Config, DeepseekV4Config, PretrainedConfig

    others = PretrainedConfig().to_dict() | DeepseekV3Config().to_dict()
    theirs = DeepseekV4Config(**for_transformers(TINY.to_dict(), "float32")).to_dict()
    fields = {name: theirs.get(name, value) for name, value in others.items() if name not in EVERY_NAME} | theirs
    assert {"qk_nope_head_dim", "v_head_dim", "kv_lora_rank", "intermediate_size", "pad_token_id"} <= set(fields)
    assert from_fields(fields) == from_fields(theirs)
    assert v4.Config.from_dict(TINY.to_dict() | {"eod_token_id": 3, 7: 8, "comment": "mine"}) == TINY


def test_another_value_of_what_v4_never_varies_is_refused_in_a_dictionary_too():
    with pytest.raises(ValueError, match="scoring_func = 'softmax' .* V4 has 'sqrtsoftplus'"):
        v4.Config.from_dict(TINY.to_dict() | {"scoring_func": "softmax"})


OTHERS = {  # fields of another family's file without its name, and what the file seems to be
    "DeepSeek-V3.2": dict(kv_lora_rank=512, index_topk=2048, hidden_size=7168),
    "DeepSeek-V2 or V3": dict(kv_lora_rank=512, hidden_size=7168),
    "a dense model, as Llama": dict(num_key_value_heads=1, intermediate_size=11008, hidden_size=4096),
    "GPT-2": dict(n_embd=768, vocab_size=50257),
    "no config of a language model": {},
}


@pytest.mark.parametrize("family", OTHERS)
def test_a_file_without_the_fields_of_v4_says_what_is_missing_and_what_it_seems_to_be(family, tmp_path):
    """Kind: a config of another family, once a KeyError of the first field that was looked up."""
    (tmp_path / "config.json").write_text(json.dumps(OTHERS[family]))
    with pytest.raises(ValueError, match=rf"without .*compress_ratios.*; .* seems to be {family}"):
        v4.Config.from_json(tmp_path)


def test_a_folder_without_config_and_a_file_cut_off_are_named(tmp_path):
    with pytest.raises(ValueError, match="no config.json at .*" + re.escape(tmp_path.name)):
        v4.Config.from_json(tmp_path)
    (tmp_path / "config.json").write_text('{"vocab_size": 61, "hid')
    with pytest.raises(ValueError, match="config.json is not JSON .*cut off"):
        v4.Config.from_json(tmp_path)


@pytest.mark.parametrize(
    "text", [b"\xff\xfe{}", b'{"a": ' + b"9" * 5000 + b"}", b"[" * 100000], ids=["utf-16", "digits", "deep"]
)
def test_bytes_that_are_no_json_in_utf_8_are_refused_with_a_sentence(text, tmp_path):
    """Kind: bytes of another encoding, numbers of thousands of digits, deep nesting."""
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match="config: config.json is not JSON in UTF-8"):
        v4.Config.from_json(tmp_path)


@pytest.mark.parametrize("wrong", [{"vocab_size": "many"}, {"eos_token_id": 129280}, {"o_groups": 3}])
def test_a_refusal_of_what_a_file_holds_names_the_file(wrong, tmp_path):
    """Kind: a sentence about a field that leaves open which of several files is meant."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps(released_json(FLASH) | wrong), encoding="utf-8")
    sentence = rf"^config: {next(iter(wrong))} = .*; .* \(in '.*{re.escape(tmp_path.name)}"
    for call, path in ((v4.Config.from_json, file), (v4.Config.from_json, tmp_path), (v4.load, tmp_path)):
        with pytest.raises(ValueError, match=sentence):
            call(path)


@pytest.mark.parametrize("path", [None, 3, "x" * 5000, "a\0b", ["config.json"]], ids=str)
def test_what_is_no_path_is_refused_with_a_sentence(path):
    """Kind: a path of another type, too long, or with a null, once a TypeError or an OSError."""
    with pytest.raises(ValueError, match="^config: .*give "):
        v4.Config.from_json(path)


@pytest.mark.parametrize("fields", [None, 3, [1], "{}"])
def test_fields_that_are_no_dictionary_are_refused_with_a_sentence(fields):
    with pytest.raises(ValueError, match="^config: fields = "):
        v4.Config.from_dict(fields)


def test_a_config_made_by_hand_holds_kinds_and_yarn_and_not_their_names():
    """Kind: the released spelling given to the constructor, once an AttributeError."""
    fields = {field.name: getattr(TINY, field.name) for field in dataclasses.fields(TINY)}
    wrong = [dict(layer_types=("sliding_attention",) * 5), dict(rope_scaling={"factor": 4})]
    wrong += [dict(rope_scaling=tuple(TINY.rope_scaling)), dict(compress_ratios=list(TINY.compress_ratios))]
    wrong += [{name: list(fields[name])} for name in ("layer_types", "mlp_layer_types")]
    for change in wrong:
        with pytest.raises(ValueError, match=rf"^config: {next(iter(change))} .*from_dict takes"):
            v4.Config(**fields | change)


@pytest.mark.parametrize("n_hash", [0, 2, 3])
def test_hash_layers_that_contradict_the_named_routings_are_refused(n_hash):
    """Kind: two fields for one thing, of which one won in silence."""
    with pytest.raises(ValueError, match=rf"num_hash_layers = {n_hash} .*mlp_layer_types names hash_moe 1 times"):
        v4.Config.from_dict(TINY.to_dict() | {"num_hash_layers": n_hash})
    with pytest.raises(ValueError, match=rf"num_hash_layers = {n_hash} .*mlp_layer_types names hash_moe 1 times"):
        TINY.replace(num_hash_layers=n_hash, mlp_layer_types=TINY.mlp_layer_types)
    assert TINY.replace(num_hash_layers=n_hash).num_hash_layers == n_hash
    assert TINY.replace(mlp_layer_types=["hash_moe"] * 4).num_hash_layers == 4


@pytest.mark.parametrize("name", ["mlp_layer_types", "layer_types", "compress_ratios"])
def test_an_empty_schedule_is_not_one_that_is_left_out(name):
    """Kind: an empty list that counted as not given, so that the released rule filled it in silence."""
    fields = released_json(FLASH) | {name: [], "num_hash_layers": None}
    with pytest.raises(ValueError, match=rf"{name} = '?0 entries"):
        v4.Config.from_dict(fields)


@pytest.mark.parametrize(("kind", "family"), [("llama", "Llama"), ("deepseek_v3", "DeepSeek-V3")])
def test_a_dictionary_of_another_family_is_refused_as_its_file_is(kind, family):
    """Kind: what a file may not say, once taken from a dictionary."""
    with pytest.raises(ValueError, match=rf"model_type = '{kind}' .*seems to be '?{family}"):
        v4.Config.from_dict(TINY.to_dict() | {"model_type": kind})


def test_a_fixed_field_of_another_family_tells_the_family():
    """Kind: a file without model_type, refused by the first value that is not V4's and by no family."""
    older = {"kv_lora_rank": 512, "index_topk": 2048, "scoring_func": "sigmoid"}
    dense = {"num_key_value_heads": 8, "intermediate_size": 11008}
    for fields, family in ((older, "DeepSeek-V3.2"), (dense, "a dense model, as Llama")):
        with pytest.raises(ValueError, match=f"V4 has .*seems to be {family}"):
            v4.Config.from_dict(fields)
    with pytest.raises(ValueError, match="num_key_value_heads = 8 .*V4 has 1$"):
        v4.Config.from_dict(TINY.to_dict() | {"num_key_value_heads": 8})


def test_a_byte_order_mark_is_let_through(tmp_path):
    """Kind: a file of UTF-8 that some editors begin with a mark."""
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(released_json(FLASH)).encode())
    assert v4.Config.from_json(tmp_path) == FLASH


@pytest.mark.parametrize("rotary", range(2, 45, 2))
def test_a_rotary_fraction_gives_the_width_that_it_was_made_from(rotary):
    """Kind: a width that a float product falls short of and `int` cuts: 44 * (30 / 44) is 29.99."""
    config = from_fields(bench_like(head_dim=44, index_head_dim=44, partial_rotary_factor=rotary / 44))
    assert config.qk_rope_head_dim == rotary


@pytest.mark.parametrize("text", ["3", "null", '"deepseek"', "[1, 2]"])
def test_json_that_is_no_table_of_fields_is_refused_with_a_sentence(text, tmp_path):
    """Kind: a list, a number or a text where a table of fields is meant."""
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config"):
        v4.Config.from_json(tmp_path)
