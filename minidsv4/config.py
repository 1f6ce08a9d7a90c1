"""`Config`: every number of a V4 model, under the field names of the released `config.json`.

Sources: the report's section 4.2.1 and the released configurations of V4-Flash and V4-Pro. `from_json` also reads
the `config.json` that Hugging Face transformers writes for `deepseek_v4`. What cannot be built is refused.
"""

import dataclasses
import enum
import json
from dataclasses import dataclass
from pathlib import Path


class LayerKind(enum.Enum):
    """What a layer attends to besides its window; the value is the name that transformers uses."""

    WINDOW = "sliding_attention"
    CSA = "compressed_sparse_attention"
    HCA = "heavily_compressed_attention"


class Routing(enum.Enum):
    """How a layer chooses experts: a frozen table of token ids, or the learned router."""

    HASH = "hash_moe"
    LEARNED = "moe"


RELEASED_CSA_RATIO = 4  # released code calls a layer overlapped (CSA) exactly when its ratio is 4
_YARN_FIELDS = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow")
_FIXED = {  # fields of a config.json that V4 never varies: another value is another model
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


def _require(fact: bool, field: str, value: object, right: str) -> None:
    if not fact:
        raise ValueError(f"config: {field} = {value!r} cannot be built; {right}")


@dataclass(frozen=True)
class Config:
    """The sizes and constants of one model; field names as released, units in the comments.

    `compress_ratios` has one entry a layer and a last one for the MTP block: 0 window only, otherwise the tokens per
    compressed entry. `layer_types` is derived from it (released rule: ratio 4 is CSA, any other is HCA) unless given.
    `mlp_layer_types` is derived from `num_hash_layers` unless given.
    Raises `ValueError` naming the field, its value and what would be right.
    """

    vocab_size: int
    hidden_size: int
    moe_intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    qk_rope_head_dim: int
    q_lora_rank: int
    o_groups: int
    o_lora_rank: int
    sliding_window: int  # tokens, the query's own included
    compress_ratios: tuple[int, ...]  # tokens per entry, layer by layer, the MTP block last
    index_n_heads: int
    index_head_dim: int
    index_topk: int  # entries
    n_routed_experts: int
    num_experts_per_tok: int
    num_hash_layers: int = 3
    routed_scaling_factor: float = 1.5
    swiglu_limit: float = 10.0
    hc_mult: int = 4
    hc_sinkhorn_iters: int = 20
    hc_eps: float = 1e-6
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0  # layers with a window only
    compress_rope_theta: float = 160000.0  # CSA and HCA layers
    rope_scaling: dict | None = None  # YaRN of CSA and HCA layers: factor, original_max_position_embeddings, betas
    num_nextn_predict_layers: int = 1
    max_position_embeddings: int = 1048576  # tokens
    initializer_range: float = 0.02
    bos_token_id: int = 0
    eos_token_id: int = 1
    layer_types: tuple[LayerKind, ...] | None = None
    mlp_layer_types: tuple[Routing, ...] | None = None

    def __post_init__(self):
        n_hash, n_layers = self.num_hash_layers, self.num_hidden_layers
        for name, value in (("num_hash_layers", n_hash), ("num_hidden_layers", n_layers)):
            _require(isinstance(value, int) and value >= 0, name, value, "it counts layers: a whole number from 0")
        ratios, n_hash = tuple(self.compress_ratios), min(n_hash, n_layers)
        kinds = self.layer_types or [_released_kind(ratio) for ratio in ratios]
        routing = self.mlp_layer_types or [Routing.HASH] * n_hash + [Routing.LEARNED] * (n_layers - n_hash)
        object.__setattr__(self, "compress_ratios", ratios)
        object.__setattr__(self, "layer_types", _named("layer_types", kinds, LayerKind))
        object.__setattr__(self, "mlp_layer_types", _named("mlp_layer_types", routing, Routing))
        object.__setattr__(self, "num_hash_layers", self.mlp_layer_types.count(Routing.HASH))
        _check_sizes(self)
        _check_schedule(self)
        _check_rope(self)

    def ratio_of(self, kind: LayerKind) -> int:
        """Tokens per compressed entry of every layer of this kind: 0 for WINDOW, and for a kind no layer has."""
        return next((r for r, k in zip(self.compress_ratios, self.layer_types) if k is kind), 0)

    def replace(self, **changes) -> "Config":
        """A copy with the named fields changed; derived schedules are derived anew when their source changes."""
        unknown = set(changes) - {field.name for field in dataclasses.fields(self)}
        _require(not unknown, "replace", sorted(unknown), "the fields are those of the released config.json")
        sources = {"layer_types": {"compress_ratios"}, "mlp_layer_types": {"num_hash_layers", "num_hidden_layers"}}
        for derived, names in sources.items():
            if names & set(changes):
                changes.setdefault(derived, None)
        return dataclasses.replace(self, **changes)

    def to_json(self, path: str | Path) -> None:
        """Write the released form of `config.json` to `path`."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n")

    def to_dict(self) -> dict:
        """The released form as plain JSON values, with V4's fixed fields spelled out."""
        fields = dataclasses.asdict(self)
        fields["compress_ratios"] = list(self.compress_ratios)
        fields["layer_types"] = [kind.value for kind in self.layer_types]
        fields["mlp_layer_types"] = [kind.value for kind in self.mlp_layer_types]
        return {"architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4", **_FIXED, **fields}

    @classmethod
    def from_json(cls, path: str | Path) -> "Config":
        """Read a `config.json`, or the one in a folder: the released form, this package's, or transformers'."""
        path = Path(path)
        file = path / "config.json" if path.is_dir() else path
        if not file.is_file():
            raise ValueError(f"config: no config.json at {str(path)!r}; give the file or the folder that holds it")
        try:
            fields = json.loads(file.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"config: {file.name} is not JSON ({error}); it may be cut off") from error
        if not isinstance(fields, dict):
            raise ValueError(f"config: {file.name} holds {fields!r}; it should hold fields and values in braces")
        return cls.from_dict(fields)

    @classmethod
    def from_dict(cls, fields: dict) -> "Config":
        """Build from the fields of a `config.json`; others (dtype, quantisation, ...) are ignored."""
        fields = dict(fields)
        for name, value in _FIXED.items():
            _require(fields.get(name, value) == value, name, fields.get(name), f"V4 has {value!r}")
        fields |= _schedule_fields(fields) | _rope_fields(fields)
        names = {field.name: field for field in dataclasses.fields(cls)}
        missing = [n for n, f in names.items() if f.default is dataclasses.MISSING and fields.get(n) is None]
        _require(not missing, "config.json", f"without {', '.join(missing)}", "these fields have no default")
        return cls(**{name: fields[name] for name in names if fields.get(name) is not None})

    @classmethod
    def tiny(cls) -> "Config":
        """Every axis another size, so that a transposed axis fails: for tests. About 60 thousand parameters."""
        return cls(
            **dict(vocab_size=61, hidden_size=24, moe_intermediate_size=18, num_hidden_layers=4, head_dim=20),
            **dict(num_attention_heads=10, qk_rope_head_dim=8, q_lora_rank=22, o_groups=5, o_lora_rank=13),
            **dict(sliding_window=7, compress_ratios=(0, 3, 12, 3, 0), index_n_heads=11, index_head_dim=16),
            **dict(index_topk=6, n_routed_experts=9, num_experts_per_tok=2, num_hash_layers=1, swiglu_limit=0.7),
            **dict(compress_rope_theta=400.0, rope_scaling=_yarn(4, 64), max_position_embeddings=4096),
            layer_types=(LayerKind.WINDOW, LayerKind.CSA, LayerKind.HCA, LayerKind.CSA, LayerKind.WINDOW),
        )

    @classmethod
    def mini(cls) -> "Config":
        """Every mechanism at a size that a laptop trains: about 9 million parameters, MTP included."""
        return cls(
            **dict(vocab_size=2048, hidden_size=192, moe_intermediate_size=96, num_hidden_layers=6, head_dim=64),
            **dict(num_attention_heads=8, qk_rope_head_dim=16, q_lora_rank=96, o_groups=2, o_lora_rank=64),
            **dict(sliding_window=32, compress_ratios=(0, 4, 32, 4, 32, 4, 0), index_n_heads=16, index_head_dim=32),
            **dict(index_topk=16, n_routed_experts=16, num_experts_per_tok=2, num_hash_layers=1),
            **dict(rope_scaling=_yarn(16, 256), max_position_embeddings=65536),
        )

    @classmethod
    def flash(cls) -> "Config":
        """V4-Flash: 284B parameters, 13B active. Layers 0 and 1 window only, then CSA and HCA in turn."""
        return cls(
            **_RELEASED,
            **dict(hidden_size=4096, moe_intermediate_size=2048, num_hidden_layers=43, num_attention_heads=64),
            **dict(q_lora_rank=1024, o_groups=8, index_topk=512, n_routed_experts=256, routed_scaling_factor=1.5),
            compress_ratios=(0, 0, *(4 if layer % 2 == 0 else 128 for layer in range(2, 43)), 0),
        )

    @classmethod
    def pro(cls) -> "Config":
        """V4-Pro: 1.6T parameters, 49B active. Layers 0 and 1 HCA, then CSA and HCA in turn."""
        return cls(
            **_RELEASED,
            **dict(hidden_size=7168, moe_intermediate_size=3072, num_hidden_layers=61, num_attention_heads=128),
            **dict(q_lora_rank=1536, o_groups=16, index_topk=1024, n_routed_experts=384, routed_scaling_factor=2.5),
            compress_ratios=(128, 128, *(4 if layer % 2 == 0 else 128 for layer in range(2, 61)), 0),
        )


def _released_kind(ratio: int) -> LayerKind:
    if ratio == 0:
        return LayerKind.WINDOW
    return LayerKind.CSA if ratio == RELEASED_CSA_RATIO else LayerKind.HCA


def _yarn(factor: float, original: int) -> dict:
    return dict(factor=factor, original_max_position_embeddings=original, beta_fast=32, beta_slow=1)


_RELEASED = dict(  # what Flash and Pro share
    **dict(vocab_size=129280, head_dim=512, qk_rope_head_dim=64, o_lora_rank=1024, sliding_window=128),
    **dict(index_n_heads=64, index_head_dim=128, num_experts_per_tok=6, rope_scaling=_yarn(16, 65536)),
)


def _schedule_fields(fields: dict) -> dict:
    """`compress_ratios` and the two kinds of a layer, from the released fields or from transformers' ones."""
    n_layers, out = fields.get("num_hidden_layers") or 0, {}
    if fields.get("compress_ratios") is None and fields.get("layer_types") is not None:
        rates = {
            "compressed_sparse_attention": 4,
            "heavily_compressed_attention": 128,
            **(fields.get("compress_rates") or {}),
        }
        kinds = [*fields["layer_types"][:n_layers], LayerKind.WINDOW.value]  # transformers has no MTP block
        _named("layer_types", kinds, LayerKind)
        out = {"layer_types": kinds, "compress_ratios": [rates.get(kind, 0) for kind in kinds]}
        out["num_nextn_predict_layers"] = fields.get("num_nextn_predict_layers", 1)
    elif len(fields.get("compress_ratios") or ()) == n_layers:
        out = {"compress_ratios": [*fields["compress_ratios"], 0]}
    return out


def _named(field: str, names: list, kinds: type[enum.Enum]) -> tuple:
    """The members of an enum that a schedule names, by value or as they are."""
    known = [kind.value for kind in kinds]
    wrong = [name for name in names if getattr(name, "value", name) not in known]
    _require(not wrong, field, wrong[:1], f"each layer is one of {', '.join(known)}")
    return tuple(kinds(name) for name in names)


def _rope_fields(fields: dict) -> dict:
    """`qk_rope_head_dim` and the YaRN settings, wherever this kind of `config.json` keeps them."""
    nested = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    yarn, main, out = nested.get("compress", nested), nested.get("main", {}), {}
    kind = yarn.get("rope_type", yarn.get("type", "yarn" if "factor" in yarn else "default"))
    _require(kind in ("yarn", "default"), "rope_scaling.type", kind, "V4 uses 'yarn' or plain 'default' angles")
    _require(
        yarn.get("attention_factor", 1.0) in (None, 1.0), "attention_factor", yarn.get("attention_factor"), "V4 has 1.0"
    )
    missing = [name for name in _YARN_FIELDS[:2] if kind == "yarn" and name not in yarn]
    _require(not missing, "rope_scaling", yarn, f"YaRN needs {', '.join(missing)}")
    out["rope_scaling"] = _yarn(yarn["factor"], yarn[_YARN_FIELDS[1]]) if kind == "yarn" else None
    if kind == "yarn":
        out["rope_scaling"] |= {name: yarn[name] for name in _YARN_FIELDS[2:] if yarn.get(name) is not None}
    if fields.get("qk_rope_head_dim") is None and fields.get("head_dim"):
        part = fields.get("partial_rotary_factor") or main.get("partial_rotary_factor") or 64 / 512
        out["qk_rope_head_dim"] = int(fields["head_dim"] * part)
    out["rope_theta"] = main.get("rope_theta", fields.get("rope_theta", 10000.0))
    out["compress_rope_theta"] = (yarn if main else fields).get(
        "rope_theta" if main else "compress_rope_theta", 160000.0
    )
    return out


_SIZES = (  # fields that count something: whole numbers from 1
    *("vocab_size hidden_size moe_intermediate_size num_hidden_layers num_attention_heads head_dim").split(),
    *("qk_rope_head_dim q_lora_rank o_groups o_lora_rank sliding_window index_n_heads index_head_dim").split(),
    *("index_topk n_routed_experts num_experts_per_tok hc_mult hc_sinkhorn_iters max_position_embeddings").split(),
)


def _check_sizes(config: Config) -> None:
    for name in _SIZES:
        value = getattr(config, name)
        _require(
            isinstance(value, int) and not isinstance(value, bool) and value >= 1,
            name,
            value,
            "it is a whole number from 1",
        )
    heads, groups = config.num_attention_heads, config.o_groups
    _require(heads % groups == 0, "o_groups", groups, f"it must divide num_attention_heads = {heads}")
    active, experts = config.num_experts_per_tok, config.n_routed_experts
    _require(active <= experts, "num_experts_per_tok", active, f"there are n_routed_experts = {experts}")
    _require(config.swiglu_limit > 0, "swiglu_limit", config.swiglu_limit, "a bound is above 0")
    for name in ("hc_eps", "rms_norm_eps"):
        _require(getattr(config, name) > 0, name, getattr(config, name), "it is a small number above 0")
    mtp = config.num_nextn_predict_layers
    _require(mtp in (0, 1), "num_nextn_predict_layers", mtp, "V4 has 1 MTP block, or none with 0")


def _check_schedule(config: Config) -> None:
    n_layers, ratios = config.num_hidden_layers, config.compress_ratios
    right = f"num_hidden_layers = {n_layers} needs {n_layers + 1}, one a layer and the last for the MTP block"
    _require(len(ratios) == n_layers + 1, "compress_ratios", f"{len(ratios)} entries", right)
    _require(len(config.layer_types) == n_layers + 1, "layer_types", f"{len(config.layer_types)} entries", right)
    n_routing = len(config.mlp_layer_types)
    _require(n_routing == n_layers, "mlp_layer_types", f"{n_routing} entries", f"there are {n_layers} layers")
    _require(
        all(isinstance(r, int) and r >= 0 for r in ratios), "compress_ratios", ratios, "ratios count tokens, from 0"
    )
    for kind in LayerKind:
        found = sorted({ratio for ratio, k in zip(ratios, config.layer_types) if k is kind})
        right = (
            "window layers have ratio 0" if kind is LayerKind.WINDOW else f"{kind.name} layers share one ratio from 1"
        )
        good = found in ([], [0]) if kind is LayerKind.WINDOW else len(found) < 2 and 0 not in found
        _require(good, "compress_ratios", found, right + "; name the kinds with layer_types if the ratios do not tell")
    _require(
        config.layer_types[-1] is LayerKind.WINDOW,
        "compress_ratios[-1]",
        ratios[-1],
        "the MTP block has a window only: 0",
    )


def _check_rope(config: Config) -> None:
    rotary, head, index = config.qk_rope_head_dim, config.head_dim, config.index_head_dim
    _require(rotary % 2 == 0, "qk_rope_head_dim", rotary, "channels rotate in pairs: it must be even")
    _require(rotary <= head, "qk_rope_head_dim", rotary, f"it is part of head_dim = {head}")
    _require(
        LayerKind.CSA not in config.layer_types or rotary <= index,
        "qk_rope_head_dim",
        rotary,
        f"it is part of index_head_dim = {index}",
    )
    for name in ("rope_theta", "compress_rope_theta"):
        _require(getattr(config, name) > 1, name, getattr(config, name), "a base is above 1")
    scaling = config.rope_scaling
    if scaling is not None:
        missing = [name for name in _YARN_FIELDS if name not in scaling]
        _require(not missing, "rope_scaling", scaling, f"YaRN needs {', '.join(missing)}")
        _require(scaling["factor"] >= 1, "rope_scaling.factor", scaling["factor"], "it stretches: 1 or more")
        _require(
            scaling["beta_fast"] > scaling["beta_slow"] > 0,
            "rope_scaling",
            scaling,
            "beta_fast is above beta_slow above 0",
        )
