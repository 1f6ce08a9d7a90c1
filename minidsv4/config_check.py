"""What a `Config` refuses: values that no model can be built from, each with a sentence."""

import difflib
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from minidsv4.config import Config, LayerKind


class Rule(NamedTuple):
    """Whether a value fits a field, and what would be right."""

    fits: Callable[[Any], bool]  # of a value of any JSON type
    right: str


def require(fact: bool, field: str, value: object, right: str) -> None:
    """Raise ValueError with the field, its value and what would be right, unless the fact holds."""
    if not fact:
        raise ValueError(f"config: {field} = {shown(value)} cannot be built; {right}")


def shown(value: object) -> str:
    """The value as Python writes it, at most 400 letters of it."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= 400 else f"{text[:400]}..."


def counts(low: int, high: int) -> Rule:
    """Whole numbers from `low` to `high`."""
    right = f"it is a whole number from {low} to {high:,}"
    return Rule(lambda value: type(value) is int and low <= value <= high, right)


def number(low: float = 0.0, high: float = 1e30) -> Rule:
    """Numbers between two bounds, both left out."""
    right = f"it is a number above {low:g} and below {high:g}".replace("e+", "e")
    return Rule(lambda value: type(value) in (int, float) and low < value < high, right)


def list_of(fits: Callable[[Any], bool], entries: str) -> Rule:
    """Lists and tuples whose every entry fits."""
    return Rule(lambda value: isinstance(value, list | tuple) and all(map(fits, value)), f"it is a list of {entries}")


LARGEST = 2**20  # of a size: products of three sizes stay within 64 bits
TOKENS = 2**31  # of a length
FROM_0 = Rule(lambda value: type(value) in (int, float) and 0 <= value < 1e30, "it is a number from 0")
LAYERS = 2**12
KINDS = list_of(lambda entry: isinstance(getattr(entry, "value", entry), str), "names, one a layer")
TABLE = Rule(lambda value: isinstance(value, dict), "it is a table of names and values, in braces")

SIZES = (  # fields that count something
    *("vocab_size hidden_size moe_intermediate_size num_attention_heads head_dim qk_rope_head_dim").split(),
    *("q_lora_rank o_groups o_lora_rank index_n_heads index_head_dim n_routed_experts num_experts_per_tok").split(),
)
LENGTHS = ("sliding_window", "index_topk", "max_position_embeddings")
BOUNDS = {  # of what is multiplied or added: no sensible model comes near, and numbers overflow far beyond
    "routed_scaling_factor": 1e3,
    "swiglu_limit": 1e30,  # a clamp, so a large one is none
    "hc_eps": 1.0,
    "rms_norm_eps": 1.0,
    "initializer_range": 1e2,
}
BASES = ("rope_theta", "compress_rope_theta")

RULES: dict[str, Rule] = {  # of each field by itself, in a file as in a Config
    **dict.fromkeys(SIZES, counts(1, LARGEST)),
    **dict.fromkeys(LENGTHS, counts(1, TOKENS)),
    **{name: number(high=high) for name, high in BOUNDS.items()},
    **dict.fromkeys(BASES, number(low=1)),
    "num_hidden_layers": counts(1, LAYERS),
    "num_hash_layers": counts(0, LAYERS),
    "num_nextn_predict_layers": counts(0, LAYERS),
    "hc_mult": counts(1, 2**8),
    "hc_sinkhorn_iters": counts(1, 2**10),
    "compress_ratios": list_of(counts(0, LARGEST).fits, f"tokens per entry, whole numbers from 0 to {LARGEST:,}"),
    "layer_types": KINDS,
    "mlp_layer_types": KINDS,
}
FILE_RULES = RULES | {  # of what stands in a file only
    "rope_parameters": TABLE,
    "rope_scaling": TABLE,
    "compress_rates": TABLE,
    "partial_rotary_factor": Rule(lambda value: type(value) in (int, float) and 0 < value <= 1, "it is part of a head"),
}
LOOKALIKES = {  # fields of other families, which a file of V4 may hold as well
    *("v_head_dim", "qk_nope_head_dim", "num_shared_experts"),
    *("boi_token_id", "eoi_token_id", "boa_token_id", "eoa_token_id", "eod_token_id"),
}
YARN_RULES = {
    "factor": Rule(
        lambda value: type(value) in (int, float) and 1 <= value < 1e30, "it stretches: a number, 1 or more"
    ),
    "original_max_position_embeddings": counts(1, TOKENS),
    "beta_fast": number(),
    "beta_slow": number(),
}


def check_values(values: Mapping[str, object], rules: Mapping[str, Rule], prefix: str = "") -> None:
    """Refuse the first value that does not fit the rule of its field; None is a field not given."""
    for name, rule in rules.items():
        value = values.get(name)
        require(value is None or rule.fits(value), prefix + name, value, rule.right)


def check_names(fields: Mapping[Any, object], known: Collection[str], prefix: str = "") -> None:
    """Refuse a name that is nearly one that is read: one letter off, or nine letters in ten the same.

    Other names are those of fields that V4 does not have, or does not need: they are left alone.
    """
    for name in fields:
        if isinstance(name, str) and name not in known and name not in LOOKALIKES:
            near = nearest(name, known)
            require(near is None, prefix + name, fields[name], f"no such field is read; did you mean {near}?")


def nearest(name: str, known: Collection[str]) -> str | None:
    """The known name of which this one is a misspelling, if there is any."""
    close = difflib.get_close_matches(name.lower(), known, cutoff=0.8)
    return next((right for right in close if alike(name, right)), None)


def alike(name: str, right: str) -> bool:
    """Whether a name is a misspelling: at most one letter in ten is other, or a single one of a short name."""
    share = difflib.SequenceMatcher(None, name.lower(), right).ratio()
    letters = (1 - share) * len(right)
    return round(letters, 6) <= max(1, len(right) / 10)


def check(config: "Config") -> None:
    """Raise ValueError, naming a field, its value and what would be right, for a config that cannot be built."""
    for name, rule in RULES.items():
        require(rule.fits(getattr(config, name)), name, getattr(config, name), rule.right)
    for name in ("compress_ratios", "layer_types", "mlp_layer_types"):
        value = getattr(config, name)
        require(isinstance(value, tuple), name, value, "a Config holds a tuple, to be a key; from_dict takes a list")
    check_sizes(config)
    check_schedule(config)
    check_rope(config)


def check_sizes(config: "Config") -> None:
    """Refuse sizes that do not fit each other, and tokens outside the vocabulary."""
    heads = config.num_attention_heads
    require(heads % config.o_groups == 0, "o_groups", config.o_groups, f"it must divide num_attention_heads = {heads}")
    active = config.num_experts_per_tok
    experts = config.n_routed_experts
    require(active <= experts, "num_experts_per_tok", active, f"there are n_routed_experts = {experts}")
    mtp = config.num_nextn_predict_layers
    require(mtp in (0, 1), "num_nextn_predict_layers", mtp, "V4 has 1 MTP block, or none with 0")
    for name in ("bos_token_id", "eos_token_id"):
        value = getattr(config, name)
        right = f"vocab_size allows 0 .. {config.vocab_size - 1}"
        require(type(value) is int and 0 <= value < config.vocab_size, name, value, right)


def check_schedule(config: "Config") -> None:
    """Refuse schedules of another length, and ratios that do not fit the kinds of their layers."""
    n_layers = config.num_hidden_layers
    ratios = config.compress_ratios
    n_entries = {"compress_ratios": len(ratios), "layer_types": len(config.layer_types)}
    right = f"num_hidden_layers = {n_layers} needs {n_layers + 1}, one a layer and the last for the MTP block"
    for name, n in n_entries.items():
        require(n == n_layers + 1, name, f"{n} entries", right)
    unnamed = [kind for kind in (*config.layer_types, *config.mlp_layer_types) if isinstance(kind, str)]
    require(
        not unnamed, "layer_types", unnamed[:1], "a Config holds LayerKind and Routing; from_dict takes their names"
    )
    n_routing = len(config.mlp_layer_types)
    require(n_routing == n_layers, "mlp_layer_types", f"{n_routing} entries", f"there are {n_layers} layers")
    for kind in dict.fromkeys(config.layer_types):
        found = sorted({ratio for ratio, k in zip(ratios, config.layer_types) if k is kind})
        check_ratios(kind, found)
    last = config.layer_types[-1].name
    require(last == "WINDOW", "compress_ratios[-1]", ratios[-1], "the MTP block has a window only: 0")


def check_hash_layers(fields: Mapping[str, object], n_named: int) -> None:
    """Refuse a number of hash layers that is not that of the routings which are named beside it."""
    n_hash = fields.get("num_hash_layers")
    both = n_hash is not None and fields.get("mlp_layer_types") is not None
    right = f"mlp_layer_types names hash_moe {n_named} times; give one of the two, or both alike"
    require(not both or n_hash == n_named, "num_hash_layers", n_hash, right)


def check_ratios(kind: "LayerKind", found: list[int]) -> None:
    """Refuse the ratios, each once, that layers of this kind have, unless they are one."""
    good = len(found) < 2 and 0 not in found
    right = f"{kind.name} layers share one ratio from 1"
    if kind.name == "WINDOW":
        good = found == [0]
        right = "window layers have ratio 0"
    require(good, "compress_ratios", found, f"{right}; name the kinds with layer_types if the ratios do not tell")


def check_rope(config: "Config") -> None:
    """Refuse rotary widths, bases and YaRN settings that give no angles."""
    rotary = config.qk_rope_head_dim
    index = config.index_head_dim
    has_indexer = any(kind.name == "CSA" for kind in config.layer_types)
    require(rotary % 2 == 0, "qk_rope_head_dim", rotary, "channels rotate in pairs: it must be even")
    require(rotary <= config.head_dim, "qk_rope_head_dim", rotary, f"it is part of head_dim = {config.head_dim}")
    require(not has_indexer or rotary <= index, "qk_rope_head_dim", rotary, f"it is part of index_head_dim = {index}")
    scaling = config.rope_scaling
    if scaling is not None:
        require(
            getattr(scaling, "_fields", None) == tuple(YARN_RULES),
            "rope_scaling",
            scaling,
            "a Config holds YaRN; from_dict takes a table",
        )
        check_values(scaling._asdict(), YARN_RULES, "rope_scaling.")
        ramp = scaling.beta_fast > scaling.beta_slow > 0
        require(ramp, "rope_scaling", scaling, "beta_fast is above beta_slow above 0")
