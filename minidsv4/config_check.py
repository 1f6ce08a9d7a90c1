"""What a `Config` refuses: values that no model can be built from, each with a sentence."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minidsv4.config import Config, LayerKind


def require(fact: bool, field: str, value: object, right: str) -> None:
    """Raise ValueError with the field, its value and what would be right, unless the fact holds."""
    if not fact:
        raise ValueError(f"config: {field} = {value!r} cannot be built; {right}")


def check(config: "Config") -> None:
    """Raise ValueError, naming a field, its value and what would be right, for a config that cannot be built."""
    check_sizes(config)
    check_factors(config)
    check_schedule(config)
    check_rope(config)


SIZES = (  # fields that count something: whole numbers from 1
    *("vocab_size hidden_size moe_intermediate_size num_hidden_layers num_attention_heads head_dim").split(),
    *("qk_rope_head_dim q_lora_rank o_groups o_lora_rank sliding_window index_n_heads index_head_dim").split(),
    *("index_topk n_routed_experts num_experts_per_tok hc_mult hc_sinkhorn_iters max_position_embeddings").split(),
)


FACTORS = (  # fields that are multiplied or added: numbers above 0
    *("routed_scaling_factor swiglu_limit hc_eps rms_norm_eps initializer_range rope_theta").split(),
    *("compress_rope_theta",),
)


def check_factors(config: "Config") -> None:
    """Refuse factors that are no numbers of float32 above 0, and tokens outside the vocabulary."""
    for name in FACTORS:
        value = getattr(config, name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        require(number and 0 < value < 1e30, name, value, "it is a number above 0 and below 1e30")
    for name in ("bos_token_id", "eos_token_id"):
        value = getattr(config, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        right = f"vocab_size allows 0 .. {config.vocab_size - 1}"
        require(whole and 0 <= value < config.vocab_size, name, value, right)


def check_sizes(config: "Config") -> None:
    """Refuse sizes that are no counts, and those that do not fit each other."""
    for name in SIZES:
        value = getattr(config, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        require(whole and value >= 1, name, value, "it is a whole number from 1")
    heads = config.num_attention_heads
    require(heads % config.o_groups == 0, "o_groups", config.o_groups, f"it must divide num_attention_heads = {heads}")
    active = config.num_experts_per_tok
    experts = config.n_routed_experts
    require(active <= experts, "num_experts_per_tok", active, f"there are n_routed_experts = {experts}")
    mtp = config.num_nextn_predict_layers
    require(mtp in (0, 1), "num_nextn_predict_layers", mtp, "V4 has 1 MTP block, or none with 0")


def check_schedule(config: "Config") -> None:
    """Refuse schedules of another length, and ratios that do not fit the kinds of their layers."""
    n_layers = config.num_hidden_layers
    ratios = config.compress_ratios
    n_entries = {"compress_ratios": len(ratios), "layer_types": len(config.layer_types)}
    right = f"num_hidden_layers = {n_layers} needs {n_layers + 1}, one a layer and the last for the MTP block"
    for name, n in n_entries.items():
        require(n == n_layers + 1, name, f"{n} entries", right)
    n_routing = len(config.mlp_layer_types)
    require(n_routing == n_layers, "mlp_layer_types", f"{n_routing} entries", f"there are {n_layers} layers")
    whole = all(isinstance(ratio, int) and ratio >= 0 for ratio in ratios)
    require(whole, "compress_ratios", ratios, "ratios count tokens, from 0")
    for kind in dict.fromkeys(config.layer_types):
        found = sorted({ratio for ratio, k in zip(ratios, config.layer_types) if k is kind})
        check_ratios(kind, found)
    last = config.layer_types[-1].name
    require(last == "WINDOW", "compress_ratios[-1]", ratios[-1], "the MTP block has a window only: 0")


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
    for name in ("rope_theta", "compress_rope_theta"):
        require(getattr(config, name) > 1, name, getattr(config, name), "a base is above 1")
    scaling = config.rope_scaling
    if scaling is not None:
        require(scaling.factor >= 1, "rope_scaling.factor", scaling.factor, "it stretches: 1 or more")
        ramp = scaling.beta_fast > scaling.beta_slow > 0
        require(ramp, "rope_scaling", scaling, "beta_fast is above beta_slow above 0")
