"""Steps of notebook 3, first half: one mHC site, from the logits of a token's streams to what is written back.

Letters: B batch, T tokens, N streams, D width; i old stream, j new stream.
"""

import torch
from einops import einsum, rearrange
from torch.nn import functional as F

from minidsv4 import ops
from minidsv4.config import Config
from minidsv4.course.build.parts import random_config, random_weights
from minidsv4.course.build.steps import step
from minidsv4.model.hyper_connection import HyperConnection

doubly = step("sinkhorn", "BTij")


@doubly.cases
def doubly_cases(draw):
    n_batch, n_tokens, n_streams = draw.sizes(3, 2, 6)
    yield draw.normal(n_batch, n_tokens, n_streams, n_streams), 3, 0.003
    yield 2 * draw.normal(n_batch, n_tokens, n_streams, n_streams), draw.whole(4, 6), 0.001


@doubly.answer
def doubly_stochastic(logits_BTij, iterations, eps):
    return ops.sinkhorn(logits_BTij, iterations, eps)


doubly.museum("one_sinkhorn_round_missing", "sinkhorn_without_eps", "sinkhorn_rows_last")


@doubly.mistake
def one_round_too_many(logits, iterations, eps):
    """There is one round too many. The softmax and the first division of columns are the first round."""
    return doubly_stochastic(logits, iterations + 1, eps)


@doubly.mistake
def softmax_over_old_streams(logits, iterations, eps):
    """The softmax runs over old streams. It runs over new ones, the last axis; old ones are divided after it."""
    mix = logits.softmax(2) + eps
    mix = mix / (mix.sum(2, keepdim=True) + eps)
    for _ in range(iterations - 1):
        mix = mix / (mix.sum(3, keepdim=True) + eps)
        mix = mix / (mix.sum(2, keepdim=True) + eps)
    return mix


def rows_last(mix, rounds, eps):
    """So many rounds of columns, then rows."""
    for _ in range(rounds):
        mix = mix / (mix.sum(2, keepdim=True) + eps)
        mix = mix / (mix.sum(3, keepdim=True) + eps)
    return mix


@doubly.mistake
def rows_last_after_the_softmax(logits, iterations, eps):
    """Rows are divided last in each round. Columns come last, so that they sum to 1 most closely."""
    return rows_last(logits.softmax(3) + eps, iterations, eps)


@doubly.mistake
def rows_last_and_a_round_less(logits, iterations, eps):
    """Rows are divided last in each round. Columns come last, so that they sum to 1 most closely."""
    return rows_last(logits.softmax(3) + eps, iterations - 1, eps)


@doubly.mistake
def rows_last_after_the_first_columns(logits, iterations, eps):
    """Rows are divided last in each round. After the softmax and the columns come rows, and columns last."""
    mix = logits.softmax(3) + eps
    return rows_last(mix / (mix.sum(2, keepdim=True) + eps), iterations - 1, eps)


@doubly.mistake
def eps_not_after_the_softmax(logits, iterations, eps):
    """eps is not added to the softmax. It is added there once, and to every sum that divides."""
    mix = logits.softmax(3)
    mix = mix / (mix.sum(2, keepdim=True) + eps)
    for _ in range(iterations - 1):
        mix = mix / (mix.sum(3, keepdim=True) + eps)
        mix = mix / (mix.sum(2, keepdim=True) + eps)
    return mix


@doubly.mistake
def eps_only_after_the_softmax(logits, iterations, eps):
    """eps is not added to the sums that divide. It is added to the softmax, and to every such sum."""
    mix = logits.softmax(3) + eps
    mix = mix / mix.sum(2, keepdim=True)
    for _ in range(iterations - 1):
        mix = mix / mix.sum(3, keepdim=True)
        mix = mix / mix.sum(2, keepdim=True)
    return mix


@doubly.mistake
def only_a_softmax(logits, iterations, eps):
    """This is a softmax. Then columns and rows are divided by their sums in turn."""
    return logits.softmax(3)


@doubly.mistake
def mix_transposed(logits, iterations, eps):
    """The matrices are transposed. The third axis is the old stream i, the last the new stream j."""
    return doubly_stochastic(logits, iterations, eps).mT


raw = step("stream_logits", "BTN", needs="rms_norm")


@raw.cases
def raw_cases(draw):
    n_batch, n_tokens, n_streams, width = draw.sizes(4)
    streams_BTND = draw.normal(n_batch, n_tokens, n_streams, width)
    yield streams_BTND, draw.normal(draw.whole(10, 14), n_streams * width), 0.01


@raw.answer
def raw_logits(streams_BTND, fn, eps):
    return ops.stream_logits(streams_BTND, fn, eps)


@raw.mistake
def each_stream_normed(streams, fn, eps):
    """Each stream is normed by itself. A token's streams are normed together, as one vector."""
    return F.linear(rearrange(ops.rms_norm(streams, None, eps), "b t n d -> b t (n d)"), fn)


@raw.mistake
def channels_first(streams, fn, eps):
    """The streams are laid out channel by channel. They lie stream after stream: "b t n d -> b t (n d)"."""
    return F.linear(ops.rms_norm(rearrange(streams, "b t n d -> b t (d n)"), None, eps), fn)


@raw.mistake
def norm_left_out(streams, fn, eps):
    """The norm is missing. A token's streams are normed together before `fn`."""
    return F.linear(rearrange(streams, "b t n d -> b t (n d)"), fn)


@raw.mistake
def normed_after(streams, fn, eps):
    """The norm stands after `fn`. It stands before it."""
    return ops.rms_norm(norm_left_out(streams, fn, eps), None, eps)


site = step("mix", "BTN", "BTN", "BTij", needs="rms_norm stream_logits sinkhorn", parts="pre post carry")


@site.cases
def site_cases(draw):
    config = random_config(draw)
    module = random_weights(HyperConnection(config), draw)
    streams_BTND = draw.normal(*draw.sizes(2, 6, 9), config.hc_mult, config.hidden_size)
    yield streams_BTND, module.fn.detach(), module.base.detach(), module.scale.detach(), config


@site.answer
def site_mix(streams_BTND, fn, base, scale, config: Config):
    module = filled_site(fn, base, scale, config)
    return tuple(module(streams_BTND))


def filled_site(fn, base, scale, config: Config) -> HyperConnection:
    """The package's mHC site with these weights."""
    module = random_weights(HyperConnection(config), ZEROS)
    module.load_state_dict({"fn": fn, "base": base, "scale": scale})
    return module


class ZEROS:
    """Draws nothing but zeros."""

    normal = staticmethod(lambda *shape: torch.zeros(*shape, dtype=torch.float64))


site.museum("packing_order_confused", "read_without_eps", "write_with_eps")


@site.mistake
def post_not_doubled(streams, fn, base, scale, config):
    """`post` is a sigmoid. It is twice the sigmoid, which is 1 at a logit of 0."""
    pre, post, carry = site_mix(streams, fn, base, scale, config)
    return pre, post / 2, carry


@site.mistake
def pre_doubled(streams, fn, base, scale, config):
    """`pre` is twice the sigmoid. That is `post`; `pre` is a sigmoid, and eps."""
    pre, post, carry = site_mix(streams, fn, base, scale, config)
    return 2 * (pre - config.hc_eps) + config.hc_eps, post, carry


@site.mistake
def base_left_out(streams, fn, base, scale, config):
    """`base` is missing. It is added after `scale` has multiplied."""
    return site_mix(streams, fn, torch.zeros_like(base), scale, config)


@site.mistake
def scale_left_out(streams, fn, base, scale, config):
    """`scale` is missing. Each of pre, post and carry is multiplied by its own before `base` is added."""
    return site_mix(streams, fn, base, torch.ones_like(scale), config)


@site.mistake
def scale_on_the_base_too(streams, fn, base, scale, config):
    """`scale` multiplies `base` as well. It multiplies the logits, then `base` is added."""
    n = config.hc_mult
    return site_mix(streams, fn, base * torch.repeat_interleave(scale, torch.tensor([n, n, n * n])), scale, config)


@site.mistake
def one_scale_for_all(streams, fn, base, scale, config):
    """The first of `scale` multiplies all. `scale[0]` is for pre, `scale[1]` for post, `scale[2]` for carry."""
    return site_mix(streams, fn, base, scale[:1].expand(3), config)


@site.mistake
def carry_new_by_old(streams, fn, base, scale, config):
    """The rows of carry are taken as new by old. They lie old by old: "b t (i j) -> b t i j"."""
    pre, post, _ = site_mix(streams, fn, base, scale, config)
    logits = scale[2] * raw_logits(streams, fn, config.rms_norm_eps) + base
    n = config.hc_mult
    carry = rearrange(logits[..., 2 * n :], "b t (j i) -> b t i j", i=n)
    return pre, post, doubly_stochastic(carry, config.hc_sinkhorn_iters, config.hc_eps)


@site.mistake
def carry_not_sinkhorned(streams, fn, base, scale, config):
    """`carry` has not been through `sinkhorn`."""
    pre, post, _ = site_mix(streams, fn, base, scale, config)
    n = config.hc_mult
    logits = scale[2] * raw_logits(streams, fn, config.rms_norm_eps) + base
    return pre, post, rearrange(logits[..., 2 * n :], "b t (i j) -> b t i j", i=n)


read = step("collapse", "BTD")


@read.cases
def read_cases(draw):
    n_batch, n_tokens, n_streams, width = draw.sizes(4)
    yield draw.normal(n_batch, n_tokens, n_streams, width), draw.normal(n_batch, n_tokens, n_streams)


@read.answer
def collapsed(streams_BTND, pre_BTN):
    return ops.collapse(streams_BTND, pre_BTN)


@read.mistake
def mean_of_streams(streams, pre):
    """The streams are averaged. They are summed, each times its `pre`."""
    return streams.mean(2)


@read.mistake
def sum_of_streams(streams, pre):
    """`pre` is not used. The streams are summed, each times its `pre`."""
    return streams.sum(2)


@read.mistake
def weighted_mean(streams, pre):
    """The weighted streams are averaged. They are summed."""
    return collapsed(streams, pre) / streams.shape[2]


@read.mistake
def pre_through_softmax(streams, pre):
    """`pre` passes a softmax. It is used as it stands."""
    return collapsed(streams, pre.softmax(-1))


back = step("write", "BTND")


@back.cases
def back_cases(draw):
    n_batch, n_tokens, n_streams, width = draw.sizes(4)
    streams_BTND = draw.normal(n_batch, n_tokens, n_streams, width)
    carry_BTij = draw.normal(n_batch, n_tokens, n_streams, n_streams)
    yield streams_BTND, draw.normal(n_batch, n_tokens, width), draw.normal(n_batch, n_tokens, n_streams), carry_BTij


@back.answer
def written(streams_BTND, y_BTD, post_BTN, carry_BTij):
    return ops.write(streams_BTND, y_BTD, post_BTN, carry_BTij)


back.museum("carry_transposed")


@back.mistake
def streams_not_carried(streams, y, post, carry):
    """The old streams are not mixed: each is passed on as it is. New stream j takes carry[i, j] of old stream i."""
    return streams + einsum(post, y, "b t n, b t d -> b t n d")


@back.mistake
def streams_lost(streams, y, post, carry):
    """The old streams are lost. New stream j also takes carry[i, j] of old stream i."""
    return einsum(post, y, "b t n, b t d -> b t n d")


@back.mistake
def post_left_out(streams, y, post, carry):
    """`post` is not used. What the sub-layer gave is multiplied by the stream's `post`."""
    return written(streams, y, torch.ones_like(post), carry)


@back.mistake
def y_left_out(streams, y, post, carry):
    """What the sub-layer gave is not written. Stream j gets `post[j] y`."""
    return written(streams, torch.zeros_like(y), post, carry)
