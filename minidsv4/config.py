"""`Config`: every number of a V4 model, under the field names of the released `config.json`.

Sources: the report's section 4.2.1 and the released configurations of V4-Flash and V4-Pro. What cannot be built is
refused by `config_check.py`, how files spell the fields is told in `config_json.py`, and kinds of layers are in
`config_kinds.py`.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

from minidsv4 import config_json
from minidsv4.config_check import RULES, check, check_hash_layers, check_values, require
from minidsv4.config_kinds import (
    LayerKind,
    Routing,
    YaRN,
    alternating,
    hash_first,
    named,
    released_kinds,
    released_routing,
    yarn,
)
from minidsv4.files import atomic_file, given_path


@dataclass(frozen=True)
class Config:
    """The sizes and constants of one model; field names as released, units in the comments.

    Layers follow two schedules. `compress_ratios` and `layer_types` have one entry a layer and a last one for the MTP
    block, `mlp_layer_types` one entry a layer. `from_dict` and `replace` derive both kinds where only the released
    fields are given.
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
    compress_ratios: tuple[int, ...]  # tokens per entry, 0 for a window only
    layer_types: tuple[LayerKind, ...]
    mlp_layer_types: tuple[Routing, ...]
    index_n_heads: int
    index_head_dim: int
    index_topk: int  # entries
    n_routed_experts: int
    num_experts_per_tok: int
    routed_scaling_factor: float = 1.5
    swiglu_limit: float = 10.0
    hc_mult: int = 4
    hc_sinkhorn_iters: int = 20
    hc_eps: float = 1e-6
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0  # layers with a window only
    compress_rope_theta: float = 160000.0  # CSA and HCA layers
    rope_scaling: YaRN | None = None  # of CSA and HCA layers
    num_nextn_predict_layers: int = 1
    max_position_embeddings: int = 1048576  # tokens
    initializer_range: float = 0.02
    bos_token_id: int = 0
    eos_token_id: int = 1

    def __post_init__(self) -> None:
        check(self)

    @property
    def num_hash_layers(self) -> int:
        """How many layers route by a table of token ids."""
        return self.mlp_layer_types.count(Routing.HASH)

    def ratio_of(self, kind: LayerKind) -> int:
        """Tokens per compressed entry of every layer of this kind: 0 for WINDOW, and for a kind no layer has."""
        return next((r for r, k in zip(self.compress_ratios, self.layer_types) if k is kind), 0)

    @property
    def document_grid(self) -> int:
        """Documents of a packed row begin at multiples of this, so that no compressed entry pools two of them."""
        return math.lcm(*filter(None, self.compress_ratios))

    def replace(self, **changes: object) -> "Config":
        """A copy with the named fields changed; kinds are derived anew when the released field behind them changes."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["num_hash_layers"] = self.num_hash_layers
        unknown = sorted(set(changes) - set(fields))
        require(not unknown, "replace", unknown, "the fields are those of the released config.json")
        if "compress_ratios" in changes:
            del fields["layer_types"]
        if "mlp_layer_types" in changes:
            del fields["num_hash_layers"]
        if "num_hash_layers" in changes or "num_hidden_layers" in changes:
            del fields["mlp_layer_types"]
        return Config.from_dict(fields | changes)

    def to_json(self, path: str | Path) -> None:
        """Write the released form of `config.json` to `path`; what stood there stays until it is whole."""
        with atomic_file(given_path("to_json", path)) as scratch:
            scratch.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def to_dict(self) -> dict:
        """The released form as plain JSON values, with V4's fixed fields spelled out."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["compress_ratios"] = list(self.compress_ratios)
        fields["layer_types"] = [kind.value for kind in self.layer_types]
        fields["mlp_layer_types"] = [routing.value for routing in self.mlp_layer_types]
        fields["num_hash_layers"] = self.num_hash_layers
        fields["rope_scaling"] = None if self.rope_scaling is None else self.rope_scaling._asdict()
        return {"architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4"} | config_json.FIXED | fields

    @classmethod
    def from_json(cls, path: str | Path) -> "Config":
        """Read a `config.json`, or the one in a folder: the released form, this package's, or transformers'."""
        fields = config_json.read(path)
        with config_json.naming(path):
            return cls.from_dict(fields)

    @classmethod
    def from_dict(cls, fields: dict) -> "Config":
        """Build from released fields; others (dtype, ...) are ignored unless misspelt, and None is a field not given.

        Kinds that are not given follow the released rules: ratio 0 is a window, 4 is CSA, any other is HCA; and the
        first `num_hash_layers` layers, else the first 3, route by a table.
        """
        require(isinstance(fields, dict), "fields", fields, "they are a dictionary of names and values")
        given = {name: value for name, value in fields.items() if value is not None}
        config_json.check_fields(given)
        check_values(given, RULES)
        if "compress_ratios" in given:
            given["compress_ratios"] = tuple(given["compress_ratios"])
        if "rope_scaling" in given:
            given["rope_scaling"] = yarn(given["rope_scaling"])
        kinds = given.get("layer_types", released_kinds(given.get("compress_ratios", ())))
        routing = given.get("mlp_layer_types", released_routing(given))
        given["layer_types"] = named("layer_types", kinds, LayerKind)
        given["mlp_layer_types"] = named("mlp_layer_types", routing, Routing)
        check_hash_layers(fields, given["mlp_layer_types"].count(Routing.HASH))
        known = dataclasses.fields(cls)
        missing = [field.name for field in known if field.default is dataclasses.MISSING and field.name not in given]
        right = f"these fields have no default, and the file seems to be {config_json.family(fields)}"
        require(not missing, "config.json", f"without {', '.join(missing)}", right)
        return cls(**{field.name: given[field.name] for field in known if field.name in given})

    @classmethod
    def tiny(cls) -> "Config":
        """Every axis another size, so that a transposed axis fails: for tests. About 60 thousand parameters."""
        return cls(
            vocab_size=61,
            hidden_size=24,
            moe_intermediate_size=18,
            num_hidden_layers=4,
            num_attention_heads=10,
            head_dim=20,
            qk_rope_head_dim=8,
            q_lora_rank=22,
            o_groups=5,
            o_lora_rank=13,
            sliding_window=7,
            compress_ratios=(0, 3, 12, 3, 0),
            layer_types=(LayerKind.WINDOW, LayerKind.CSA, LayerKind.HCA, LayerKind.CSA, LayerKind.WINDOW),
            mlp_layer_types=(Routing.HASH, Routing.LEARNED, Routing.LEARNED, Routing.LEARNED),
            index_n_heads=11,
            index_head_dim=16,
            index_topk=6,
            n_routed_experts=9,
            num_experts_per_tok=2,
            swiglu_limit=0.7,
            compress_rope_theta=400.0,
            rope_scaling=YaRN(factor=4, original_max_position_embeddings=64),
            max_position_embeddings=4096,
        )

    @classmethod
    def mini(cls) -> "Config":
        """Every mechanism at a size that a laptop trains: about 9 million parameters, MTP included."""
        ratios = (0, 4, 32, 4, 32, 4, 0)
        return cls(
            vocab_size=2048,
            hidden_size=192,
            moe_intermediate_size=96,
            num_hidden_layers=6,
            num_attention_heads=8,
            head_dim=64,
            qk_rope_head_dim=16,
            q_lora_rank=96,
            o_groups=2,
            o_lora_rank=64,
            sliding_window=32,
            compress_ratios=ratios,
            layer_types=released_kinds(ratios),
            mlp_layer_types=hash_first(1, 6),
            index_n_heads=16,
            index_head_dim=32,
            index_topk=16,
            n_routed_experts=16,
            num_experts_per_tok=2,
            rope_scaling=YaRN(factor=16, original_max_position_embeddings=256),
            max_position_embeddings=65536,
        )

    @classmethod
    def flash(cls) -> "Config":
        """V4-Flash: 284B parameters, 13B active. Layers 0 and 1 window only, then CSA and HCA in turn."""
        ratios = (0, 0, *alternating(2, 43), 0)
        return cls(
            vocab_size=129280,
            hidden_size=4096,
            moe_intermediate_size=2048,
            num_hidden_layers=43,
            num_attention_heads=64,
            head_dim=512,
            qk_rope_head_dim=64,
            q_lora_rank=1024,
            o_groups=8,
            o_lora_rank=1024,
            sliding_window=128,
            compress_ratios=ratios,
            layer_types=released_kinds(ratios),
            mlp_layer_types=hash_first(3, 43),
            index_n_heads=64,
            index_head_dim=128,
            index_topk=512,
            n_routed_experts=256,
            num_experts_per_tok=6,
            rope_scaling=YaRN(factor=16, original_max_position_embeddings=65536),
        )

    @classmethod
    def pro(cls) -> "Config":
        """V4-Pro: 1.6T parameters, 49B active. Layers 0 and 1 HCA, then CSA and HCA in turn."""
        return cls.flash().replace(
            hidden_size=7168,
            moe_intermediate_size=3072,
            num_hidden_layers=61,
            num_attention_heads=128,
            q_lora_rank=1536,
            o_groups=16,
            compress_ratios=(128, 128, *alternating(2, 61), 0),
            index_topk=1024,
            n_routed_experts=384,
            routed_scaling_factor=2.5,
        )
