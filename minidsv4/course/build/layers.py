"""Steps of notebook 2: grouped output, and the three kinds of layer.

Letters: B batch, T tokens, D width, H heads, K head width, G output groups, O rank of a group.
"""

from types import SimpleNamespace
from unittest.mock import patch

import torch
from einops import rearrange
from torch import nn

from minidsv4.config import LayerKind
from minidsv4.course.build.parts import (
    KINDS,
    filled,
    memory_of,
    positions_of,
    random_config,
    random_weights,
    rotating,
)
from minidsv4.course.build.steps import Step, step
from minidsv4.model.attention import ATTENTION, WindowAttention
from minidsv4.model.layer import wrapped
from minidsv4.visibility import Visibility

heads_out = step("grouped_output", "BTD")


@heads_out.cases
def heads_out_cases(draw):
    config = random_config(draw)
    layer = random_weights(WindowAttention(config), draw)
    n_batch, n_tokens = draw.sizes(2)
    out_BTHK = draw.normal(n_batch, n_tokens, config.num_attention_heads, config.head_dim)
    yield out_BTHK, layer.wo_a.weight.detach(), layer.wo_b.weight.detach(), config.o_groups


@heads_out.answer
def projected(out_BTHK, wo_a, wo_b, n_groups):
    layer = SimpleNamespace(groups=n_groups, wo_a=SimpleNamespace(weight=wo_a), wo_b=lambda x: x @ wo_b.mT)
    return WindowAttention.project(layer, out_BTHK)


heads_out.museum("output_groups_interleaved")


@heads_out.mistake
def channels_before_heads(out_BTHK, wo_a, wo_b, n_groups):
    """A group's channels are laid out channel by channel. They lie head by head: (h k), h being the slower one."""
    mixed = rearrange(out_BTHK, "b t (g h) k -> b t g k h", g=n_groups)
    back = rearrange(mixed, "b t g k h -> b t g (k h)")
    again = rearrange(back, "b t g (h k) -> b t (g h) k", k=out_BTHK.shape[-1])
    return projected(again, wo_a, wo_b, n_groups)


@heads_out.mistake
def ranks_interleaved(out_BTHK, wo_a, wo_b, n_groups):
    """The rows of `wo_a` are dealt to groups in turn. Group g has O neighbouring rows: "(g o) k -> g o k"."""
    return projected(out_BTHK, rearrange(wo_a, "(o g) k -> (g o) k", g=n_groups), wo_b, n_groups)


@heads_out.mistake
def latent_interleaved(out_BTHK, wo_a, wo_b, n_groups):
    """What the groups give is laid out rank by rank before `wo_b`. It lies group by group: "b t g o -> b t (g o)"."""
    return projected(out_BTHK, wo_a, rearrange(wo_b, "d (o g) -> d (g o)", g=n_groups), n_groups)


COMMON = "rms_norm frequencies rotate window_map attend grouped_output"
NEEDS = {  # by kind: the step's name, and what it calls
    LayerKind.WINDOW: ("window_attention", COMMON),
    LayerKind.HCA: ("hca", f"{COMMON} entry_map compressor"),
    LayerKind.CSA: ("csa", f"{COMMON} entry_map overlap_compressor pick indexer"),
}


def layer_step(kind: LayerKind) -> Step:
    """The step of a whole layer of this kind."""
    name, needs = NEEDS[kind]
    made = step(name, "BTD", target="Attention.forward", needs=needs)

    @made.cases
    def layer_cases(draw):
        config = random_config(draw)
        layer = random_weights(ATTENTION[kind](config), draw)
        for n_tokens in (draw.whole(17, 25), 1):
            yield config, layer, draw.normal(2, n_tokens, config.hidden_size)

    made.answer(output)
    made.by(run_layer)
    made.museum("output_not_turned_back", "query_heads_not_normed")
    return made


def output(config, layer, x_BTD, positions=None):
    """What the package's layer gives."""
    kind = layer.kind
    positions = positions or positions_of(config, kind, x_BTD.shape[1])
    return layer(x_BTD, positions, memory_of(config, kind, len(x_BTD)))


def run_layer(reader, config, layer, x_BTD):
    return filled(reader.Attention(config, KINDS[layer.kind.name]), layer)(x_BTD)


LAYERS = {kind: layer_step(kind) for kind in NEEDS}
LAYERS[LayerKind.WINDOW].museum("window_without_the_query")
LAYERS[LayerKind.HCA].museum("no_window_in_compressed_layers", "visible_as_in_the_report", "window_in_progress_visible")
LAYERS[LayerKind.CSA].museum("no_window_in_compressed_layers", "visible_as_in_the_report", "window_in_progress_visible")


def of_layers(*kinds):
    """A decorator that enters a mistake into the steps of these kinds of layer; of all, where none is given."""

    def enter(mistake):
        for kind in kinds or LAYERS:
            LAYERS[kind].mistake(mistake)
        return mistake

    return enter


@of_layers()
def turned_on(config, layer, x_BTD):
    """The output is turned once more by its query's position. It is turned back: by minus the angle."""
    with rotating(layer, lambda rotate, x, turn: rotate(x, turn.conj() if turn.is_conj() else turn)):
        return output(config, layer, x_BTD)


@of_layers()
def queries_not_turned(config, layer, x_BTD):
    """The queries are not turned."""
    with rotating(layer, lambda rotate, x, turn: x if x.ndim == 4 and not turn.is_conj() else rotate(x, turn)):
        return output(config, layer, x_BTD)


@of_layers()
def window_entries_not_turned(config, layer, x_BTD):
    """The window's entries are not turned. They are keys: after `kv_norm` each is turned to its own position."""
    with rotating(layer, lambda rotate, x, turn: x if x.ndim == 3 else rotate(x, turn)):
        return output(config, layer, x_BTD)


@of_layers()
def window_entries_not_normed(config, layer, x_BTD):
    """The window's entries are not normed. `wkv` is followed by `kv_norm`, and then they are turned."""
    with patch.object(layer, "kv_norm", nn.Identity()):
        return output(config, layer, x_BTD)


@of_layers()
def latent_not_normed(config, layer, x_BTD):
    """The query latent is not normed. `wq_a` is followed by `q_norm`."""
    with patch.object(layer, "q_norm", nn.Identity()):
        return output(config, layer, x_BTD)


@of_layers()
def sinks_left_out(config, layer, x_BTD):
    """`attn_sink` is not handed to `attend`."""
    with patch.object(layer, "attn_sink", nn.Parameter(torch.zeros_like(layer.attn_sink))):
        return output(config, layer, x_BTD)


@of_layers()
def other_base(config, layer, x_BTD):
    """The angles are those of the other kind of layer: base `rope_theta` and no YaRN in WINDOW layers, base
    `compress_rope_theta` with YaRN in CSA and HCA layers, for everything in them."""
    other = LayerKind.HCA if layer.kind is LayerKind.WINDOW else LayerKind.WINDOW
    return output(config, layer, x_BTD, positions_of(config, other, x_BTD.shape[1]))


@of_layers(LayerKind.HCA, LayerKind.CSA)
def entries_left_out(config, layer, x_BTD):
    """The compressed entries are not read: the output is that of a window alone."""
    with patch.object(type(layer), "compressed", WindowAttention.compressed):
        return output(config, layer, x_BTD)


@of_layers(LayerKind.HCA, LayerKind.CSA)
def yarn_left_out(config, layer, x_BTD):
    """YaRN is missing from the angles: layers that compress have `rope_scaling`."""
    plain = config.replace(rope_theta=config.compress_rope_theta)
    return output(config, layer, x_BTD, positions_of(plain, LayerKind.WINDOW, x_BTD.shape[1]))


@of_layers(LayerKind.HCA, LayerKind.CSA)
def yarn_with_the_other_base(config, layer, x_BTD):
    """The angles have YaRN with the base `rope_theta`. Layers that compress have the base `compress_rope_theta`."""
    mixed = config.replace(compress_rope_theta=config.rope_theta)
    return output(config, layer, x_BTD, positions_of(mixed, layer.kind, x_BTD.shape[1]))


@of_layers(LayerKind.WINDOW)
def yarn_in_a_window_layer(config, layer, x_BTD):
    """The angles have YaRN. A WINDOW layer has the base `rope_theta` alone."""
    mixed = config.replace(compress_rope_theta=config.rope_theta)
    return output(config, layer, x_BTD, positions_of(mixed, LayerKind.HCA, x_BTD.shape[1]))


@of_layers()
def query_heads_normed_together(config, layer, x_BTD):
    """All query heads of a token are normed together. Each is normed by itself, after the cut into heads."""

    def together(rms_norm):
        def norm(x, weight, eps):
            flat = rms_norm(rearrange(x, "b t h k -> b t (h k)"), weight, eps)
            return rearrange(flat, "b t (h k) -> b t h k", h=layer.heads)

        return norm

    with wrapped([layer], "rms_norm", lambda _, rms_norm: together(rms_norm)):
        return output(config, layer, x_BTD)


def attending(layer, entries_and_map):
    """Inside, this layer attends to `entries_and_map(window_BSK, entries_BCK, sees)`."""

    def other(attend):
        def attended(query_BTHK, window_BSK, entries_BCK, sees, sinks_H):
            joined, read = entries_and_map(window_BSK, entries_BCK, sees)
            return attend(query_BTHK, joined, joined[:, :0], SimpleNamespace(map=lambda: read), sinks_H)

        return attended

    return wrapped([layer], "attend", lambda _, attend: other(attend))


@of_layers(LayerKind.HCA, LayerKind.CSA)
def maps_the_other_way_round(config, layer, x_BTD):
    """Entries and maps are not in the same order: the map of the compressed entries stands first, the entries last."""

    def maps_first(window_BSK, entries_BCK, sees):
        return torch.cat([window_BSK, entries_BCK], dim=1), sees.map().roll(entries_BCK.shape[1], dims=-1)

    with attending(layer, maps_first):
        return output(config, layer, x_BTD)


@of_layers(LayerKind.HCA, LayerKind.CSA)
def entries_the_other_way_round(config, layer, x_BTD):
    """Entries and maps are not in the same order: the compressed entries stand first, their map last."""
    with attending(layer, lambda window, entries, sees: (torch.cat([entries, window], dim=1), sees.map())):
        return output(config, layer, x_BTD)


@of_layers(LayerKind.HCA, LayerKind.CSA)
def every_entry_visible(config, layer, x_BTD):
    """Queries see every compressed entry, those of their future too. `entry_map` says which ones they see."""
    with patch.object(Visibility, "visible", lambda sees, entry: entry < torch.full((1, sees.n_queries, 1), 10**6)):
        return output(config, layer, x_BTD)


@of_layers(LayerKind.CSA)
def picks_left_out(config, layer, x_BTD):
    """Every visible entry is read. In a CSA layer a query reads the `index_topk` entries picked for it."""
    with patch.object(layer.indexer, "n_picked", 10**6):
        return output(config, layer, x_BTD)


@of_layers()
def heads_cut_channel_by_channel(config, layer, x_BTD):
    """Heads are cut channel by channel. Each head's channels are neighbours: "b t (h k) -> b t h k"."""
    weight = rearrange(layer.wq_b.weight, "(k h) q -> (h k) q", h=layer.heads)
    with patch.object(layer.wq_b, "weight", nn.Parameter(weight)):
        return output(config, layer, x_BTD)


@of_layers(LayerKind.HCA, LayerKind.CSA)
def only_a_window(config, layer, x_BTD):
    """This is a layer with a window only: it does not read compressed entries, and has the angles of a window layer."""
    with patch.object(type(layer), "compressed", WindowAttention.compressed):
        return output(config, layer, x_BTD, positions_of(config, LayerKind.WINDOW, x_BTD.shape[1]))
