"""The names of a checkpoint's tensors: the released ones, transformers' and this package's, in one
table.

A folder of transformers' `save_pretrained` mixes the first two. Experts are stacked in this package
and in transformers, and apart in the released files: `experts.w13[n]` is `experts.n.w1` over
`experts.n.w3`. Released names: all of them.
"""

import re
from itertools import islice
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Role(NamedTuple):
    """One kind of tensor: its released name, transformers' name, and what it holds.

    Names are without what comes before: `layers.0.` or `mtp.0.` in released files, and `model.` in
    transformers.
    """

    released: str
    transformers: str
    holds: str

    @property
    def here(self) -> str:
        """Its name in this package's modules."""
        stacked = re.sub(r"experts\.N\.w[13]\.weight", "experts.w13[N]", self.released)
        return here(re.sub(r"experts\.N\.w2\.weight", "experts.w2[N]", stacked))


def _site(released: str, theirs: str, holds: str) -> list[Role]:
    """The three tensors of a site that reads or writes the residual streams."""
    return [Role(f"{released}_{part}", f"{theirs}{part}", holds) for part in ("fn", "base", "scale")]


WHOLE = [  # once a model
    Role("embed.weight", "embed_tokens.weight", "a vector for each token id"),
    *_site("hc_head", "hc_head.hc_", "how the head reads the streams"),
    Role("norm.weight", "norm.weight", "norm before the head"),
    Role("head.weight", "lm_head.weight", "a row of the vocabulary head for each token id"),
]
LAYER = [  # once a layer, as far as its kind has it
    *_site("hc_attn", "attn_hc.", "how attention reads and writes the streams"),
    Role("attn_norm.weight", "input_layernorm.weight", "norm before attention"),
    Role("attn.wq_a.weight", "self_attn.q_a_proj.weight", "query latent"),
    Role("attn.q_norm.weight", "self_attn.q_a_norm.weight", "norm of the query latent"),
    Role("attn.wq_b.weight", "self_attn.q_b_proj.weight", "queries of all heads"),
    Role("attn.wkv.weight", "self_attn.kv_proj.weight", "window entries, keys and values in one"),
    Role("attn.kv_norm.weight", "self_attn.kv_norm.weight", "norm of window entries"),
    Role("attn.attn_sink", "self_attn.sinks", "a sink's logit for each head"),
    Role("attn.wo_a.weight", "self_attn.o_a_proj.weight", "output, from a group of heads to its latent"),
    Role("attn.wo_b.weight", "self_attn.o_b_proj.weight", "output, from the latents of all groups"),
    Role("attn.compressor.wkv.weight", "self_attn.compressor.kv_proj.weight", "values to be pooled"),
    Role("attn.compressor.wgate.weight", "self_attn.compressor.gate_proj.weight", "gates of the pooling"),
    Role("attn.compressor.ape", "self_attn.compressor.position_bias", "bias of the gates, by slot"),
    Role("attn.compressor.norm.weight", "self_attn.compressor.kv_norm.weight", "norm of compressed entries"),
    Role("attn.indexer.wq_b.weight", "self_attn.compressor.indexer.q_b_proj.weight", "index queries"),
    Role(
        "attn.indexer.weights_proj.weight",
        "self_attn.compressor.indexer.scorer.weights_proj.weight",
        "weights of the index heads",
    ),
    Role("attn.indexer.compressor.wkv.weight", "self_attn.compressor.indexer.kv_proj.weight", "values of index keys"),
    Role("attn.indexer.compressor.wgate.weight", "self_attn.compressor.indexer.gate_proj.weight", "their gates"),
    Role("attn.indexer.compressor.ape", "self_attn.compressor.indexer.position_bias", "bias of these gates"),
    Role("attn.indexer.compressor.norm.weight", "self_attn.compressor.indexer.kv_norm.weight", "norm of index keys"),
    *_site("hc_ffn", "ffn_hc.", "how experts read and write the streams"),
    Role("ffn_norm.weight", "post_attention_layernorm.weight", "norm before the experts"),
    Role("ffn.gate.weight", "mlp.gate.weight", "affinities of the router"),
    Role("ffn.gate.bias", "mlp.gate.e_score_correction_bias", "what balances the choice of learned routers"),
    Role("ffn.gate.tid2eid", "mlp.gate.tid2eid", "experts of each token id, in hash layers"),
    Role("ffn.shared_experts.w1.weight", "mlp.shared_experts.gate_proj.weight", "gate of the shared expert"),
    Role("ffn.shared_experts.w3.weight", "mlp.shared_experts.up_proj.weight", "its way up"),
    Role("ffn.shared_experts.w2.weight", "mlp.shared_experts.down_proj.weight", "its way down"),
    Role("ffn.experts.N.w1.weight", "mlp.experts.gate_up_proj", "gate of routed expert N"),
    Role("ffn.experts.N.w3.weight", "mlp.experts.gate_up_proj", "its way up"),
    Role("ffn.experts.N.w2.weight", "mlp.experts.down_proj", "its way down"),
]
MTP = [  # of the MTP block, which is a layer besides; transformers has none
    Role("enorm.weight", "", "norm of the next token's embedding"),
    Role("hnorm.weight", "", "norm of the streams"),
    Role("e_proj.weight", "", "embedding to a stream"),
    Role("h_proj.weight", "", "stream to a stream"),
    *(role._replace(transformers="") for role in _site("hc_head", "", "how its head reads the streams")),
    Role("norm.weight", "", "norm before the head"),
]
ROLES = WHOLE + LAYER + MTP

_QUIRKS = {  # what `save_pretrained` makes of a name; and a stack's name, which no released file has
    "attn.norm.weight": "attn.kv_norm.weight",
    "mlp.experts.gate_up_proj": "ffn.experts.gate_up_proj",
    "mlp.experts.down_proj": "ffn.experts.down_proj",
}
_WHOLE = {role.transformers: role.released for role in WHOLE}
_LAYER = {role.transformers: role.released for role in LAYER} | _QUIRKS
_THEIRS = {role.released: role.transformers for role in LAYER}
_PLACE = re.compile(r"(?:model\.)?((?:layers|mtp)\.\d+\.)?(.*)", re.DOTALL)
_EXPERT = re.compile(r"(.*\bexperts\.)(0|[1-9][0-9]{0,8})\.(w[123])\.weight")
_COPY = re.compile(r"mtp\.\d+\.(emb\.tok_emb|embed|head)\.weight")


def released_name(name: str) -> str:
    """The released spelling of a tensor name, from any of the spellings; a name that none has stays as it is."""
    place = _PLACE.fullmatch(name)
    assert place is not None
    before, rest = place.groups()
    rest = re.sub(r"^mlp(\.experts\.\d)", r"ffn\1", rest)
    return (before or "") + (_LAYER if before else _WHOLE).get(rest, rest)


def transformers_name(released: str) -> str:
    """transformers' name of a tensor of the main model; for a matrix of an expert, that of its stack."""
    place = _PLACE.fullmatch(released)
    assert place is not None
    before, rest = place.groups()
    if before is None:
        theirs = next(role.transformers for role in WHOLE if role.released == rest)
        return theirs if rest == "head.weight" else f"model.{theirs}"
    return f"model.{before}" + _THEIRS[in_roles(released)]


def in_roles(released: str) -> str:
    """A tensor's name as `ROLES` has it: without its layer, and with N for the number of an expert."""
    place = _PLACE.fullmatch(released)
    assert place is not None
    return re.sub(r"experts\.\d+\.", "experts.N.", place[2])


def here(released: str) -> str:
    """This package's name of a tensor that is no part of a stack."""
    return re.sub(r"\bhc_(attn|ffn|head)_(fn|base|scale)$", r"hc_\1.\2", released)


def elsewhere(name: str) -> str:
    """The released name of a tensor that is no part of a stack, from this package's."""
    return re.sub(r"\bhc_(attn|ffn|head)\.(fn|base|scale)$", r"hc_\1_\2", name)


def is_copy(released: str) -> bool:
    """Whether it is the embedding or head that some releases repeat for the MTP block, which shares the model's."""
    return _COPY.fullmatch(released) is not None


def to_released(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """This package's state dict under the released names, experts apart."""
    out = {}
    for name, tensor in state.items():
        name = elsewhere(name)
        if name.endswith("experts.w13"):
            for n, (gate, up) in enumerate(zip(*tensor.chunk(2, dim=1))):
                out[name.replace("w13", f"{n}.w1.weight")] = gate
                out[name.replace("w13", f"{n}.w3.weight")] = up
        elif name.endswith("experts.w2"):
            out |= {name.replace("w2", f"{n}.w2.weight"): matrix for n, matrix in enumerate(tensor)}
        else:
            out[name] = tensor
    return {name: tensor.detach().contiguous().clone() for name, tensor in out.items()}


def to_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """This package's state dict under transformers' names, experts stacked.

    The MTP block, which transformers does not have, is left out.
    """
    out = {}
    for name, tensor in state.items():
        if not name.startswith("mtp."):
            # the first matrix of a stack stands for the stack
            first = re.sub(r"\bexperts\.w([12])3?$", r"experts.0.w\1.weight", name)
            out[transformers_name(elsewhere(first))] = tensor
    return out


def from_released(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """This package's state dict from tensors in any of the spellings; experts are stacked.

    raises  ValueError for a tensor that stands there in two spellings, and for experts that are
            missing
    """
    state: dict[str, Tensor] = {}
    experts: dict[str, dict[tuple[int, str], Tensor]] = {}
    for name, tensor in tensors.items():
        released = released_name(name)
        stacked = re.fullmatch(r"(.*experts\.)(gate_up_proj|down_proj)", released)
        apart = _EXPERT.fullmatch(released)
        if stacked:
            _add(state, stacked[1] + ("w13" if stacked[2] == "gate_up_proj" else "w2"), tensor, name)
        elif apart:
            _add(experts.setdefault(apart[1], {}), (int(apart[2]), apart[3]), tensor, name)
        else:
            _add(state, here(released), tensor, name)
    for prefix, parts in experts.items():
        for name, tensor in _stack(prefix, parts).items():
            _add(state, name, tensor, f"{prefix}0.w{'1' if name.endswith('w13') else '2'}.weight")
    return state


def _add(table: dict[T, Tensor], key: T, tensor: Tensor, name: str) -> None:
    """Put a tensor into a table, unless another spelling of its name has been there."""
    if key in table:
        whole = key if isinstance(key, str) else "that expert"
        raise ValueError(f"checkpoint: {name} is another spelling of {whole}, which is there as well; keep one of them")
    table[key] = tensor


def _stack(prefix: str, parts: dict[tuple[int, str], Tensor]) -> dict[str, Tensor]:
    """A layer's experts as two stacks."""
    n_experts = 1 + max(n for n, _ in parts)
    n_missing = 3 * n_experts - len(parts)
    if n_missing:
        needed = ((n, w) for n in range(n_experts) for w in ("w1", "w2", "w3"))
        first = [f"{prefix}{n}.{w}.weight" for n, w in islice((part for part in needed if part not in parts), 4)]
        raise ValueError(f"checkpoint: {few(first, n_missing)} missing; a model of {n_experts} experts has them all")
    stacks = {w: [parts[n, w] for n in range(n_experts)] for w in ("w1", "w2", "w3")}
    for w, matrices in stacks.items():
        shapes = {tuple(matrix.shape) for matrix in matrices}
        if len(shapes) > 1:
            raise ValueError(
                f"checkpoint: {prefix}N.{w}.weight have shapes {sorted(shapes)}; all experts have the same"
            )
    w1, w2, w3 = (torch.stack(stacks[w]) for w in ("w1", "w2", "w3"))
    return {prefix + "w13": torch.cat([w1, w3], dim=1), prefix + "w2": w2}


def few(names: list[str], n_names: int) -> str:
    """The first four of so many names, long ones cut, and how many more there are."""
    first = [name if len(name) <= 200 else f"{name[:200]}..." for name in names[:4]]
    return ", ".join(first) + (f" and {n_names - 4} more" if n_names > 4 else "")
