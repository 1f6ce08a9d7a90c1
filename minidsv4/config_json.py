"""`config.json`: its two spellings, DeepSeek's own and that of Hugging Face transformers, read and written.

Only texts and plain values here: `Config` takes and gives the released spelling, and refuses what cannot be built.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minidsv4.config_check import FILE_RULES, RULES, TABLE, YARN_RULES, check_names, check_values, require, shown
from minidsv4.files import given_path

FIXED: dict[str, object] = {  # fields that V4 never varies: another value is another model
    "num_key_value_heads": 1,
    "n_shared_experts": 1,
    "scoring_func": "sqrtsoftplus",
    "norm_topk_prob": True,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
}
NAMES = {*FILE_RULES, *FIXED, "model_type", "bos_token_id", "eos_token_id"}  # all that is read of a file
ROPE_NAMES = {*YARN_RULES, *("type rope_type attention_factor rope_theta partial_rotary_factor main compress").split()}
WINDOW, CSA, HCA = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
RATES = {CSA: 4, HCA: 128}  # tokens per entry where transformers' file names none
DRAFTS_LEFT_OUT = "drafts_left_out"  # no field of a file: `read` says with it that the weights' `mtp.*` are not V4's
ROTARY_PART = 64 / 512  # of a head, where transformers' file names none
MODEL_TYPES = {  # the families that `model_type` tells for certain
    **{"deepseek_v41": "DeepSeek-V4.1", "deepseek_v32": "DeepSeek-V3.2", "deepseek_v3": "DeepSeek-V3"},
    **{"deepseek_v2": "DeepSeek-V2", "llama": "Llama", "mistral": "Mistral", "gpt2": "GPT-2"},
}
FAMILIES = (  # what a file seems to be that has all of these fields, the first that fits
    ("DeepSeek-V4.1", ("text_config", "vision_config")),
    ("a model of text and images, as DeepSeek-V4.1", ("text_config",)),
    ("DeepSeek-V4.1", ("engram_layer_ids",)),
    ("DeepSeek-V3.2", ("kv_lora_rank", "index_topk")),
    ("DeepSeek-V2 or V3", ("kv_lora_rank",)),
    ("GPT-2", ("n_embd",)),
    ("another mixture of experts", ("num_local_experts",)),
    ("another mixture of experts", ("num_experts",)),
    ("a dense model, as Llama", ("num_key_value_heads", "intermediate_size")),
    ("DeepSeek-V4", ("compress_ratios",)),
    ("DeepSeek-V4 as transformers writes it", ("compress_rates",)),
)


def read(path: str | Path) -> dict:
    """The fields of a `config.json`, or of the one in a folder, in the released spelling.

    raises  ValueError: no such file, no JSON, no object of fields, another model than V4
    """
    path = given_path("config", path)
    try:
        file = path / "config.json" if path.is_dir() else path
        found = file.is_file()
    except OSError as error:  # a name that is too long
        raise ValueError(f"config: {shown(str(path))} is no path ({error.args[-1]}); give a file or folder") from error
    if not found:
        raise ValueError(f"config: no config.json at {shown(str(path))}; give the file or the folder that holds it")
    try:
        fields = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"config: {file.name} cannot be read ({error.strerror}); look at its permissions") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, a number of thousands of digits, deep nesting
        raise ValueError(f"config: {file.name} is not JSON in UTF-8 ({error}); it may be cut off") from error
    if not isinstance(fields, dict):
        raise ValueError(f"config: {file.name} holds {shown(fields)}; it should hold fields and values in braces")
    with naming(file):
        return released(fields)


@contextmanager
def naming(file: str | Path) -> Iterator[None]:
    """Within, a refusal of fields also tells which file holds them."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error} (in {shown(str(file))})") from error


def released(fields: dict) -> dict:
    """The released spelling of the fields of a `config.json`, from either spelling.

    raises  ValueError for another model than V4
    """
    check_fields(fields)
    check_values(fields, FILE_RULES)
    return fields | released_schedule(fields) | released_rope(fields)


def check_fields(fields: dict) -> None:
    """Refuse other models, misspelt names, and other values of what V4 never varies; other fields are left alone."""
    kind = fields.get("model_type") or "deepseek_v4"
    seems = f", and this file seems to be {family(fields)}"
    require(kind == "deepseek_v4", "model_type", kind, f"V4 has 'deepseek_v4'{seems}")
    nested = fields.get("text_config") is not None
    require(not nested, "config.json", "text_config", f"this file seems to be {family(fields)}, not V4")
    check_names(fields, NAMES)
    known = "compress_ratios" in fields or "compress_rates" in fields or "model_type" in fields
    for name, value in FIXED.items():
        given = value if fields.get(name) is None else fields[name]
        same = given == value and isinstance(given, bool) == isinstance(value, bool)
        require(same, name, given, f"V4 has {value!r}{'' if known else seems}")


def family(fields: dict) -> str:
    """The model that a `config.json` seems to be, told by its `model_type` and its fields."""
    kind = fields.get("model_type")
    if isinstance(kind, str) and kind in MODEL_TYPES:
        return MODEL_TYPES[kind]
    for name, marks in FAMILIES:
        if all(mark in fields for mark in marks):
            return name
    return f"{kind!r}" if kind else "no config of a language model"


def released_schedule(fields: dict) -> dict:
    """`compress_ratios` with an entry for the MTP block; from transformers' `layer_types` and `compress_rates`."""
    n_layers = fields.get("num_hidden_layers") or 0
    ratios = fields.get("compress_ratios")
    given = fields.get("compress_rates") or {}
    check_names(given, RATES, "compress_rates.")
    check_values(given, dict.fromkeys(RATES, RULES["vocab_size"]), "compress_rates.")
    if ratios is None and fields.get("layer_types") is not None:
        kinds = [*fields["layer_types"][:n_layers], WINDOW]  # transformers has no MTP block
        rates = RATES | given
        return {"layer_types": kinds, "compress_ratios": [rates.get(kind, 0) for kind in kinds]}
    check_rates(given, ratios or [], fields.get("layer_types"))
    if ratios is not None and len(ratios) == n_layers:
        return {"compress_ratios": [*ratios, 0]}
    if ratios is not None and len(ratios) > n_layers + 1 and not any(ratios[n_layers:]):
        return without_drafts(ratios, fields.get("layer_types"), n_layers)
    return {}


def check_rates(rates: dict, ratios: list[int], kinds: list[str] | None) -> None:
    """Refuse `compress_rates` that name another number of tokens per entry than `compress_ratios` beside it."""
    told = {0: WINDOW, RATES[CSA]: CSA}
    for ratio, kind in zip(ratios, kinds or [told.get(ratio, HCA) for ratio in ratios]):
        right = f"compress_ratios has {ratio} for a layer of {kind}; give one of the two, or both alike"
        require(rates.get(kind, ratio) == ratio, f"compress_rates.{kind}", rates.get(kind), right)


def check_scaling(slowed: dict, scaling: dict) -> None:
    """Refuse a `rope_scaling` that has other settings than `rope_parameters` beside it."""
    ours, theirs = yarn_settings(slowed) or {}, yarn_settings(scaling) or {}
    both = {name for name in YARN_RULES if name in ours and name in theirs} | {"factor"}
    same = all(ours.get(name) == theirs.get(name) for name in both)
    right = f"rope_parameters has {shown(slowed)}; give one of the two, or both alike"
    require(same, "rope_scaling", scaling, right)


def without_drafts(ratios: list[int], kinds: list[str] | None, n_layers: int) -> dict:
    """The schedule of the main model of V4-Flash-0731 and V4-Pro-0813, whose drafts are no MTP block."""
    warnings.warn(
        f"config: compress_ratios has {len(ratios) - n_layers} entries beyond the {n_layers} layers: draft stages, "
        "of which V4 has one at most, its MTP block. They are left out (mtp.*); the main model is whole",
        stacklevel=2,
    )
    main = {"compress_ratios": ratios[: n_layers + 1], "num_nextn_predict_layers": 0, DRAFTS_LEFT_OUT: True}
    return main | ({} if kinds is None else {"layer_types": kinds[: n_layers + 1]})


def released_rope(fields: dict) -> dict:
    """The rotary width, both bases and the YaRN settings, wherever a spelling keeps them."""
    nested = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    check_values(nested, {"main": TABLE, "compress": TABLE}, "rope_parameters.")
    main = nested.get("main") or {}
    slowed = nested.get("compress") or nested
    for name, table in {"rope_scaling.": nested, "main.": main, "compress.": slowed}.items():
        check_names(table, ROPE_NAMES, name)
    check_values(main, FILE_RULES, "rope_parameters.main.")
    check_values(slowed, FILE_RULES, "rope_parameters.compress.")
    if fields.get("rope_parameters") and fields.get("rope_scaling"):
        check_scaling(slowed, fields["rope_scaling"])
    out: dict[str, object] = {"rope_scaling": yarn_settings(slowed)}
    if main:
        out["rope_theta"] = main.get("rope_theta", fields.get("rope_theta"))
        out["compress_rope_theta"] = slowed.get("rope_theta")
    if fields.get("qk_rope_head_dim") is None and fields.get("head_dim"):
        part = fields.get("partial_rotary_factor") or main.get("partial_rotary_factor") or ROTARY_PART
        out["qk_rope_head_dim"] = round(fields["head_dim"] * part)
    return out


def yarn_settings(slowed: dict) -> dict | None:
    """A rope setting that has YaRN's numbers; None where it has plain angles."""
    kind = slowed.get("rope_type", slowed.get("type", "yarn" if "factor" in slowed else "default"))
    require(kind in ("yarn", "default"), "rope_scaling.type", kind, "V4 uses 'yarn' or plain 'default' angles")
    amplitude = slowed.get("attention_factor")
    require(amplitude in (None, 1.0), "attention_factor", amplitude, "V4 has 1.0")
    return slowed if kind == "yarn" else None


def for_transformers(fields: dict, dtype: str) -> dict:
    """The `config.json` of transformers' `deepseek_v4`, which has no MTP block.

    Its `max_position_embeddings` is what YaRN stretches to, factor times original length, as in the released files:
    transformers warns of any other. No angle depends on it.

    fields  as `Config.to_dict` gives them
    dtype   such as "float32", of the weights
    """
    ratios = fields["compress_ratios"]
    kinds = fields["layer_types"]
    rotary = {"partial_rotary_factor": fields["qk_rope_head_dim"] / fields["head_dim"]}
    slowed = {"rope_type": "default"}
    longest = fields["max_position_embeddings"]
    if fields["rope_scaling"] is not None:
        slowed = {"rope_type": "yarn", "attention_factor": 1.0} | fields["rope_scaling"]
        longest = round(slowed["factor"] * slowed["original_max_position_embeddings"])
    main = {"rope_type": "default", "rope_theta": fields["rope_theta"]} | rotary
    slowed |= {"rope_theta": fields["compress_rope_theta"]} | rotary
    theirs = {
        "dtype": dtype,
        "max_position_embeddings": longest,
        "layer_types": kinds[: fields["num_hidden_layers"]],
        "compress_rates": {kind: ratios[kinds.index(kind)] if kind in kinds else RATES[CSA] for kind in RATES},
        "rope_parameters": {"main": main, "compress": slowed},
        "num_nextn_predict_layers": 0,
    }
    ours = ("compress_ratios", "num_hash_layers", "rope_scaling")
    return {name: value for name, value in fields.items() if name not in ours} | rotary | theirs
