"""What the package's own model says of a case: every stored value, under the name that it is stored by.

B batch, n watched tokens, D width, N streams (i old, j new), H heads, K head width, P picked entries, A active experts,
V vocabulary, L layers.
"""

import torch
from torch import Tensor

from minidsv4 import serve
from minidsv4.checkpoint.names import from_released
from minidsv4.config import Config, LayerKind
from minidsv4.course.record import LayerRecord, Record, record
from minidsv4.course.vectors.cases import Case
from minidsv4.model.cache import Cache
from minidsv4.model.model import Model
from minidsv4.ops import PLAIN

NONE = -1  # the index of an entry that is not there


def model_of(case: Case, right: Model) -> Model:
    """The right model itself where the case changes nothing, else one with what it changes.

    right  on the operations of `ops.py`, of any dtype
    """
    if not case.config and not case.zeros:
        return right
    state = right.state_dict()
    for name in from_released(dict.fromkeys(case.zeros)):
        state[name] = torch.zeros_like(state[name])
    model = Model(Config.from_dict(right.config.to_dict() | case.config), PLAIN).to(right.embed.weight.dtype)
    model.load_state_dict(state)
    return model


@torch.no_grad()
def answers(model: Model, case: Case, ids_BT: Tensor, drafts_BT: Tensor) -> dict[str, Tensor]:
    """Name = value in the order in which a model computes them, for the watched tokens."""
    if case.padding:
        text_BT = torch.arange(case.n_tokens) >= torch.tensor(case.padding)[:, None]
        return {"logits": serve.ragged.padded_logits(model, ids_BT, text_BT)[:, -case.watched :]}
    cache = model.new_cache(len(ids_BT))
    *earlier, last = ids_BT.split(case.calls, dim=1)
    for ids in earlier:
        model(ids, cache)
    if case.drafts:
        before = cache.snapshot()
        model(drafts_BT, cache)
        cache.restore(before)
    with record(model) as rec:
        streams_BTND = model.streams(last, cache)
    said = {"embed": model.embed(last)}
    for number, layer in enumerate(layers(rec)):
        said |= {f"layers.{number}.{name}": value for name, value in of_layer(layer).items()}
    said["logits"] = model.logits(streams_BTND)
    if case.mtp:
        said["mtp.logits"] = model.mtp_logits(streams_BTND[:, :-1], last[:, 1:])
    watched = {name: value[:, -case.watched :].contiguous() for name, value in said.items()}
    return watched | {"cache.rows": rows(cache)}


def layers(rec: Record) -> list[LayerRecord]:
    """The record of each layer."""
    return [rec[number] for number in range(len(rec))]


def of_layer(layer: LayerRecord) -> dict[str, Tensor]:
    """What one layer did, for all tokens of the call."""
    attention_mix, expert_mix = layer.mixes
    said = {f"hc_attn.{name}": value for name, value in zip(("pre", "post", "carry"), attention_mix)}
    if layer.kind is LayerKind.CSA:
        said["attn.picks"] = sorted_picks(layer)
    said["attn.attended"] = layer.attended_BTHK
    said |= {f"hc_ffn.{name}": value for name, value in zip(("pre", "post", "carry"), expert_mix)}
    experts_BTA, order_BTA = layer.routed.picked_BTA.sort(dim=-1)
    said["ffn.experts"] = experts_BTA
    said["ffn.weights"] = layer.routed.weight_BTA.gather(-1, order_BTA)
    return said | {"streams": layer.streams_BTND}


def sorted_picks(layer: LayerRecord) -> Tensor:
    """The entries that a query reads [B, T, P], in ascending order; NONE stands first where there are fewer."""
    hidden_BTP = layer.picks_BTP >= layer.visible_T[:, None]
    return layer.picks_BTP.masked_fill(hidden_BTP, NONE).sort(dim=-1).values


def rows(cache: Cache) -> Tensor:
    """How many rows each layer remembers [L, 3]: of the window, of finished entries, of index keys."""
    counts = []
    for layer in cache.layers:
        entries = [len(part.entries) for part in layer.compressors()]
        counts.append([len(layer.window), *entries, *[0] * (2 - len(entries))])
    return torch.tensor(counts)
