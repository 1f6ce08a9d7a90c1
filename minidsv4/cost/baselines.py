"""What V4 is compared with: DeepSeek-V3.2 whole, and three plain attentions (GQA8, MHA, MLA) of any depth.

D width, H heads. Sources: V3.2 is the released `config.json` of DeepSeek-V3.2 and the DeepSeek-V3 report (arXiv
2412.19437, section 4.2), attention multiplied in the absorbed form of MLA. GQA8 with head width 128 in BF16 is the
baseline that the V4 report names in section 2.3.4; MHA and MLA are the textbook forms at the same depth.
"""

from dataclasses import dataclass

from minidsv4.config import Config
from minidsv4.cost.parameters import SMALL, Weight, named, weights


@dataclass(frozen=True)
class V32:
    """DeepSeek-V3.2: MLA, a lightning indexer over single tokens, three dense layers, then experts. Released names."""

    vocab_size: int = 129280
    hidden_size: int = 7168
    num_hidden_layers: int = 61
    first_k_dense_replace: int = 3
    intermediate_size: int = 18432
    moe_intermediate_size: int = 2048
    n_routed_experts: int = 256
    num_experts_per_tok: int = 8
    num_attention_heads: int = 128
    q_lora_rank: int = 1536
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    index_n_heads: int = 64
    index_head_dim: int = 128
    index_topk: int = 2048  # tokens


@weights.register
def _(model: V32) -> list[Weight]:
    d, vocabulary = model.hidden_size, model.vocab_size
    rows = [Weight("embed.weight", "embedding", (vocabulary, d), active=0)]
    for i in range(model.num_hidden_layers):
        rows += named(f"layers.{i}", _v32_attention(model) + _v32_feed_forward(model, i))
    return [*rows, Weight("norm.weight", SMALL, (d,)), Weight("head.weight", "head", (vocabulary, d))]


def _v32_attention(model: V32) -> list[Weight]:
    """MLA: queries and keys through latents, `wkv_b` absorbed into queries and output; an indexer with one key head."""
    d, heads, rank = model.hidden_size, model.num_attention_heads, model.q_lora_rank
    latent, nope, rotary, value = model.kv_lora_rank, model.qk_nope_head_dim, model.qk_rope_head_dim, model.v_head_dim
    shapes = {"wq_a": (rank, d), "wq_b": (heads * (nope + rotary), rank), "wkv_a": (latent + rotary, d)}
    shapes |= {"wkv_b": (heads * (nope + value), latent), "wo": (d, heads * value)}
    part = {"wq_a": "wq_a", "wq_b": "wq_b", "wkv_a": "wkv", "wkv_b": "wkv", "wo": "wo_b"}
    index = (model.index_n_heads * model.index_head_dim, rank)
    return [
        *(Weight(f"attn.{name}.weight", part[name], shape, "fp8") for name, shape in shapes.items()),
        Weight("attn.indexer.wq_b.weight", "indexer", index, "fp8"),
        Weight("attn.indexer.wk.weight", "indexer", (model.index_head_dim, d)),
        Weight("attn.indexer.weights_proj.weight", "indexer", (model.index_n_heads, d)),
        *(Weight(f"{name}.weight", SMALL, (size,)) for name, size in (("attn.q_norm", rank), ("attn.kv_norm", latent))),
        *(Weight(f"attn.indexer.k_norm.{name}", SMALL, (model.index_head_dim,)) for name in ("weight", "bias")),
        *(Weight(f"{name}.weight", SMALL, (d,)) for name in ("attn_norm", "ffn_norm")),
    ]


def _v32_feed_forward(model: V32, layer: int) -> list[Weight]:
    """Three dense layers, then 1 shared and 8 of 256 routed experts, all in FP8."""
    d, inner, n_experts = model.hidden_size, model.moe_intermediate_size, model.n_routed_experts

    def swiglu(name: str, part: str, width: int, **counts) -> list[Weight]:
        shapes = {"w1": (width, d), "w3": (width, d), "w2": (d, width)}
        return [Weight(f"ffn.{name}{w}.weight", part, shape, "fp8", **counts) for w, shape in shapes.items()]

    if layer < model.first_k_dense_replace:
        return swiglu("", "dense layers", model.intermediate_size)
    return [
        Weight("ffn.gate.weight", "router", (n_experts, d)),
        Weight("ffn.gate.bias", "router", (n_experts,), "fp32"),
        *swiglu("experts.", "routed experts", inner, copies=n_experts, active=model.num_experts_per_tok),
        *swiglu("shared_experts.", "shared expert", inner),
    ]


@dataclass(frozen=True)
class PlainAttention:
    """Attention in which every query reads every earlier token, in BF16.

    key_width    numbers that a query head multiplies per token
    value_width  numbers that it sums per token
    kept         numbers that the cache keeps per token and layer
    """

    name: str
    n_layers: int
    n_heads: int
    key_width: int
    value_width: int
    kept: int

    def cache_bytes(self, n_tokens, number_bytes: int = 2):
        """Bytes of the cache after so many tokens; a number has 2 bytes in BF16, 4 in FP32."""
        return number_bytes * self.n_layers * self.kept * n_tokens

    def flops(self, n_tokens):
        """FLOPs of one query's scores and weighted sum, all layers."""
        return 2 * self.n_layers * self.n_heads * (self.key_width + self.value_width) * n_tokens


HEAD_DIM = 128  # of MHA and GQA8, as the report states it for GQA8


def gqa8(config: Config | V32, head_dim: int = HEAD_DIM) -> PlainAttention:
    """Grouped-query attention: at most 8 key-value heads."""
    heads = config.num_attention_heads
    kept = 2 * min(8, heads) * head_dim
    return PlainAttention("GQA8", config.num_hidden_layers, heads, head_dim, head_dim, kept)


def mha(config: Config | V32, head_dim: int = HEAD_DIM) -> PlainAttention:
    """Multi-head attention: a key and a value head for every query head."""
    heads = config.num_attention_heads
    return PlainAttention("MHA", config.num_hidden_layers, heads, head_dim, head_dim, 2 * heads * head_dim)


def mla(config: Config | V32, latent: int = V32.kv_lora_rank, rotary: int = V32.qk_rope_head_dim) -> PlainAttention:
    """Multi-head latent attention of V3, without an indexer: one latent and one rotary key for all heads."""
    key = latent + rotary
    return PlainAttention("MLA", config.num_hidden_layers, config.num_attention_heads, key, latent, key)


def at_own_widths(config: Config) -> list[PlainAttention]:
    """MHA, GQA8 and MLA with the model's own head width, for comparison with a model that was built small."""
    width = config.head_dim
    return [mha(config, width), gqa8(config, width), mla(config, width, config.qk_rope_head_dim)]
