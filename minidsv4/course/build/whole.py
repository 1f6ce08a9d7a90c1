"""Steps of notebook 4: the block, the model, and writing token by token.

Letters: B batch, T tokens, N streams, D width, V vocabulary.
"""

from unittest.mock import patch

import torch
from torch import nn

import minidsv4.model.model as model_module
from minidsv4 import ops
from minidsv4.course.build.parts import filled, memory_of, positions_of, random_config, random_weights, swapped
from minidsv4.course.build.steps import step
from minidsv4.model.block import Block
from minidsv4.serve.generation import generate

ATTENTIONS = "window_attention hca csa"

block = step(
    "block",
    "BTND",
    target="Block.forward",
    needs=f"mix collapse write moe {ATTENTIONS}",
)


@block.cases
def block_cases(draw):
    for layer in range(3):
        config = random_config(draw)
        part = random_weights(Block(config, config.layer_types[layer], config.mlp_layer_types[layer]), draw)
        streams_BTND = draw.normal(2, 11 + layer, config.hc_mult, config.hidden_size)
        yield config, part, layer, streams_BTND, draw.ids(2, 11 + layer, config.vocab_size)


@block.answer
def block_output(config, part, layer, streams_BTND, ids_BT):
    kind = part.attn.kind
    n_batch, n_tokens = ids_BT.shape
    return part(streams_BTND, ids_BT, positions_of(config, kind, n_tokens), memory_of(config, kind, n_batch))


@block.by
def run_block(reader, config, part, layer, streams_BTND, ids_BT):
    return filled(reader.Block(config, layer), part)(streams_BTND, ids_BT)


block.museum("carry_transposed", "streams_normed_with_a_weight")


@block.mistake
def norms_left_out(config, part, layer, streams_BTND, ids_BT):
    """The norms before the sub-layers are missing: `attn_norm` before attention, `ffn_norm` before experts."""
    with patch.object(part, "attn_norm", nn.Identity()), patch.object(part, "ffn_norm", nn.Identity()):
        return block_output(config, part, layer, streams_BTND, ids_BT)


@block.mistake
def second_norm_left_out(config, part, layer, streams_BTND, ids_BT):
    """`ffn_norm` is missing: experts read the normed collapse."""
    with patch.object(part, "ffn_norm", nn.Identity()):
        return block_output(config, part, layer, streams_BTND, ids_BT)


@block.mistake
def norms_swapped(config, part, layer, streams_BTND, ids_BT):
    """`attn_norm` and `ffn_norm` have changed places."""
    with swapped(part, "attn_norm", "ffn_norm"):
        return block_output(config, part, layer, streams_BTND, ids_BT)


@block.mistake
def sites_swapped(config, part, layer, streams_BTND, ids_BT):
    """The two mHC sites have changed places: `hc_attn_*` is for attention, `hc_ffn_*` for experts."""
    with swapped(part, "hc_attn", "hc_ffn"):
        return block_output(config, part, layer, streams_BTND, ids_BT)


@block.mistake
def one_site_for_both(config, part, layer, streams_BTND, ids_BT):
    """Both sub-layers use the site `hc_attn_*`. Experts have one of their own, `hc_ffn_*`."""
    with patch.object(part, "hc_ffn", part.hc_attn):
        return block_output(config, part, layer, streams_BTND, ids_BT)


def after_the_collapse(norm, streams_BTND, pre_BTN):
    return norm(ops.collapse(streams_BTND, pre_BTN))


def two_sub_layers(config, part, streams_BTND, ids_BT, site_of, read_by=after_the_collapse):
    """The block where `site_of(before, after)` gives the streams that the second site reads its coefficients from.

    read_by  what a norm, the streams and `pre` become before a sub-layer
    """
    first = part.hc_attn(streams_BTND)
    n_batch, n_tokens = ids_BT.shape
    kind = part.attn.kind
    x_BTD = read_by(part.attn_norm, streams_BTND, first.pre_BTN)
    y_BTD = part.attn(x_BTD, positions_of(config, kind, n_tokens), memory_of(config, kind, n_batch))
    after = ops.write(streams_BTND, y_BTD, first.post_BTN, first.carry_BTij)
    second = part.hc_ffn(site_of(streams_BTND, after))
    y_BTD = part.ffn(read_by(part.ffn_norm, after, second.pre_BTN), ids_BT)
    return ops.write(after, y_BTD, second.post_BTN, second.carry_BTij)


@block.mistake
def stale_coefficients(config, part, layer, streams_BTND, ids_BT):
    """The second site's coefficients come from the streams before attention. They come from the streams after it."""
    return two_sub_layers(config, part, streams_BTND, ids_BT, lambda before, after: before)


@block.mistake
def norm_before_the_collapse(config, part, layer, streams_BTND, ids_BT):
    """Streams are normed one by one, and collapsed then. The collapse comes first, and its one vector is normed."""

    def before_the_collapse(norm, streams_BTND, pre_BTN):
        return ops.collapse(norm(streams_BTND), pre_BTN)

    return two_sub_layers(config, part, streams_BTND, ids_BT, lambda before, after: after, before_the_collapse)


@block.mistake
def experts_left_out(config, part, layer, streams_BTND, ids_BT):
    """The experts are missing: after attention has been written, they read, and are written, in the same way."""
    mix = part.hc_attn(streams_BTND)
    n_batch, n_tokens = ids_BT.shape
    kind = part.attn.kind
    x_BTD = part.attn_norm(ops.collapse(streams_BTND, mix.pre_BTN))
    y_BTD = part.attn(x_BTD, positions_of(config, kind, n_tokens), memory_of(config, kind, n_batch))
    return ops.write(streams_BTND, y_BTD, mix.post_BTN, mix.carry_BTij)


whole = step("model", "BTV", target="Model.forward", needs="stream_logits collapse block rms_norm")


@whole.cases
def whole_cases(draw):
    config = random_config(draw)
    model = random_weights(model_module.Model(config), draw).use(ops.PLAIN)
    yield config, model, draw.ids(2, draw.whole(10, 14), config.vocab_size)


@whole.answer
def logits(config, model, ids_BT):
    return model(ids_BT)


@whole.by
def run_model(reader, config, model, ids_BT):
    return filled(reader.Model(config), model)(ids_BT)


@whole.mistake
def last_norm_left_out(config, model, ids_BT):
    """The last norm is missing, between the collapse and the head."""
    with patch.object(model, "norm", nn.Identity()):
        return model(ids_BT)


class Collapse(nn.Module):
    """The head's read by another rule."""

    def __init__(self, rule):
        super().__init__()
        self.rule = rule

    def forward(self, streams_BTND):
        return self.rule(streams_BTND)


@whole.mistake
def head_reads_the_mean(config, model, ids_BT):
    """The head reads the mean of the streams. It reads their sum, each times its gate."""
    with patch.object(model, "hc_head", Collapse(lambda streams: streams.mean(2))):
        return model(ids_BT)


@whole.mistake
def head_reads_the_sum(config, model, ids_BT):
    """The head reads the sum of the streams. Each is multiplied by its gate before."""
    with patch.object(model, "hc_head", Collapse(lambda streams: streams.sum(2))):
        return model(ids_BT)


@whole.mistake
def head_gates_without_eps(config, model, ids_BT):
    """The head's gates lack eps: sigmoid(scale * logits + base) + hc_eps."""
    with patch.object(model.hc_head, "eps", 0.0):
        return model(ids_BT)


@whole.mistake
def head_gates_doubled(config, model, ids_BT):
    """The head's gates are twice the sigmoid. They are read like `pre`: a sigmoid, and eps."""
    head = model.hc_head

    def rule(streams_BTND):
        gates = (head.scale * ops.stream_logits(streams_BTND, head.fn, head.rms_eps) + head.base).sigmoid()
        return ops.collapse(streams_BTND, 2 * gates + head.eps)

    with patch.object(model, "hc_head", Collapse(rule)):
        return model(ids_BT)


@whole.mistake
def embedding_on_one_stream(config, model, ids_BT):
    """The embedding goes to the first stream only. All N streams begin as copies of it."""
    first = torch.zeros(config.hc_mult, 1, dtype=torch.float64)
    first[0] = 1
    with patch.object(model_module, "repeat", lambda x_BTD, *_, **__: x_BTD[:, :, None] * first):
        return model(ids_BT)


@whole.mistake
def embedding_shared_out(config, model, ids_BT):
    """The embedding is divided by N. All N streams begin as copies of it."""
    with patch.object(model_module, "repeat", lambda x_BTD, *_, n: x_BTD[:, :, None].expand(-1, -1, n, -1) / n):
        return model(ids_BT)


writing = step("write_on", "T", needs="model", weighs=False)


@writing.cases
def writing_cases(draw):
    config = random_config(draw)
    model = random_weights(model_module.Model(config), draw).use(ops.PLAIN)
    yield model, draw.ids(1, draw.whole(3, 6), config.vocab_size)[0].tolist(), draw.whole(7, 9)


@writing.answer
def written(model, ids, n_tokens):
    return generate(model, ids, n_tokens, temperature=0)


@writing.mistake
def prompt_given_back(model, ids, n_tokens):
    """The prompt is part of what you give back. Only the new tokens are."""
    return [*ids, *written(model, ids, n_tokens)]


@writing.mistake
def same_token_again(model, ids, n_tokens):
    """Each token is written after the prompt alone. What was written is part of the next pass."""
    return written(model, ids, 1) * n_tokens


@writing.mistake
def only_last_token_read(model, ids, n_tokens):
    """Each pass reads the newest token alone. Without a cache it reads everything so far."""
    new = list(ids[-1:])
    for _ in range(n_tokens):
        new.append(int(model(torch.tensor([new[-1:]]))[0, -1].argmax()))
    return new[1:]
