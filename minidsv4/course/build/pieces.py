"""Steps of notebook 1: norm, rotary positions.

Letters: B batch, T tokens, D width, H heads, K head width, R rotary part. The answers are those of `minidsv4.ops` and
`minidsv4.model.rope`.
"""

import math

import torch
from einops import rearrange
from torch.nn import functional as F

from minidsv4 import ops
from minidsv4.config import YaRN
from minidsv4.course.build.steps import random_angles, step
from minidsv4.model import rope

PAIRS = "pair ... r -> ... (r pair)"  # even and odd channels back to their places
EPS = 0.01  # so large that its place shows

norm = step("rms_norm", "BTD")


@norm.cases
def norm_cases(draw):
    n_batch, n_tokens, width = draw.sizes(3)
    x_BTD = draw.normal(n_batch, n_tokens, width)
    yield x_BTD, None, EPS
    yield 0.1 * x_BTD, draw.normal(width), EPS


@norm.answer
def normed(x_BTD, weight_D, eps):
    return ops.rms_norm(x_BTD, weight_D, eps)


def scaled(x, weight):
    return x if weight is None else x * weight


@norm.mistake
def sum_not_mean(x, weight, eps):
    """You divide by the root of the sum of squares. It is the root of their mean."""
    return scaled(x / (x.square().sum(-1, keepdim=True) + eps).sqrt(), weight)


@norm.mistake
def eps_left_out(x, weight, eps):
    """eps is missing. It is added to the mean of squares."""
    return normed(x, weight, 0.0)


@norm.mistake
def eps_after_the_root(x, weight, eps):
    """eps is added to the root. It belongs under the root, to the mean of squares."""
    return scaled(x / (x.square().mean(-1, keepdim=True).sqrt() + eps), weight)


@norm.mistake
def root_left_out(x, weight, eps):
    """You divide by the mean of squares. It is the root of it."""
    return scaled(x / (x.square().mean(-1, keepdim=True) + eps), weight)


@norm.mistake
def mean_taken_off(x, weight, eps):
    """The mean is taken off first, as in LayerNorm. RMSNorm leaves it in."""
    return scaled(F.layer_norm(x, x.shape[-1:], eps=eps), weight)


@norm.mistake
def normed_over_tokens(x, weight, eps):
    """The mean of squares is taken over another axis. It is taken over the last axis only."""
    return scaled(x / (x.square().mean(1, keepdim=True) + eps).sqrt(), weight)


@norm.mistake
def normed_over_everything(x, weight, eps):
    """The mean of squares is taken over all axes. It is taken over the last axis only."""
    return scaled(x / (x.square().mean() + eps).sqrt(), weight)


@norm.mistake
def weight_left_out(x, weight, eps):
    """The weight is not used. It multiplies the normed channels."""
    return normed(x, None, eps)


@norm.mistake
def weight_plus_one(x, weight, eps):
    """The weight is taken as 1 + weight. It multiplies as it stands."""
    return normed(x, None if weight is None else 1 + weight, eps)


speed = step("frequencies", "R")


@speed.cases
def speed_cases(draw):
    n_rotary = 2 * draw.whole(5, 12)
    yield n_rotary, float(draw.whole(50, 20000)), None
    yield n_rotary, float(draw.whole(300, 500)), YaRN(draw.whole(2, 16), draw.whole(60, 300), draw.whole(8, 32))
    many = 2 * draw.whole(9, 12)
    yield many, float(draw.whole(300, 500)), YaRN(draw.whole(2, 16), draw.whole(4000, 6000), draw.whole(24, 32), 3)
    yield many, 50.0, YaRN(draw.whole(2, 16), 20000, draw.whole(400, 600))  # the ramp would end beyond the last pair


@speed.answer
def speeds(n_rotary, base, yarn):
    return rope._frequencies(n_rotary, base, yarn, torch.float64, torch.device("cpu"))


@speed.mistake
def yarn_left_out(n_rotary, base, yarn):
    """YaRN is not used. Where it is given, slow pairs are slowed by its factor."""
    return speeds(n_rotary, base, None)


@speed.mistake
def all_pairs_slowed(n_rotary, base, yarn):
    """YaRN slows every pair. It leaves the fast ones, and fades between the two."""
    return speeds(n_rotary, base, None) / (1 if yarn is None else yarn.factor)


@speed.mistake
def ramp_the_other_way(n_rotary, base, yarn):
    """The ramp runs the wrong way: fast pairs are slowed. It is 0 up to pair `low`, and 1 from `high` on."""
    if yarn is None:
        return speeds(n_rotary, base, None)
    plain = speeds(n_rotary, base, None)
    slowed = (plain - speeds(n_rotary, base, yarn)) / (plain - plain / yarn.factor)
    return slowed * plain + (1 - slowed) * plain / yarn.factor


@speed.mistake
def multiplied_by_the_factor(n_rotary, base, yarn):
    """Slow pairs are made faster by YaRN's factor. They are divided by it."""
    return speeds(n_rotary, base, None if yarn is None else yarn._replace(factor=1 / yarn.factor))


@speed.mistake
def ends_not_whole(n_rotary, base, yarn):
    """The ends of YaRN's ramp are not whole pairs: `low` is rounded down and `high` is rounded up."""
    if yarn is None:
        return speeds(n_rotary, base, None)
    low = max(pair_that_turns(yarn.beta_fast, n_rotary, base, yarn), 0.0)
    high = min(pair_that_turns(yarn.beta_slow, n_rotary, base, yarn), n_rotary - 1.0)
    return faded(n_rotary, base, yarn, low, max(high - low, 0.001))


def pair_that_turns(times, n_rotary, base, yarn):
    """The pair, as a float, that turns so often in YaRN's original length."""
    period = yarn.original_max_position_embeddings / (2 * math.pi * times)
    return n_rotary * math.log(period) / (2 * math.log(base))


def faded(n_rotary, base, yarn, low, width):
    """YaRN's speeds with a ramp that begins at pair `low` and is so wide."""
    plain = speeds(n_rotary, base, None)
    slowed = ((torch.arange(n_rotary // 2, dtype=torch.float64) - low) / width).clamp(0, 1)
    return (1 - slowed) * plain + slowed * plain / yarn.factor


def ends_swapped(n_rotary, base, yarn):
    """The ends of a ramp whose betas are swapped: its `low` and `high`."""
    low = max(math.floor(pair_that_turns(yarn.beta_slow, n_rotary, base, yarn)), 0)
    high = min(math.ceil(pair_that_turns(yarn.beta_fast, n_rotary, base, yarn)), n_rotary - 1)
    return low, high


@speed.mistake
def low_and_high_swapped(n_rotary, base, yarn):
    """`low` and `high` are swapped. `low` belongs to `beta_fast`, whose pair comes first; `high` to `beta_slow`."""
    if yarn is None:
        return speeds(n_rotary, base, None)
    low, high = ends_swapped(n_rotary, base, yarn)
    return faded(n_rotary, base, yarn, low, max(high - low, 0.001))


@speed.mistake
def low_and_high_swapped_and_a_falling_ramp(n_rotary, base, yarn):
    """`low` and `high` are swapped. `low` belongs to `beta_fast`, whose pair comes first; `high` to `beta_slow`."""
    if yarn is None:
        return speeds(n_rotary, base, None)
    low, high = ends_swapped(n_rotary, base, yarn)
    return faded(n_rotary, base, yarn, low, high - low or 0.001)


@speed.mistake
def exponent_halved(n_rotary, base, yarn):
    """The exponent of pair i is -i/R. It is -2i/R: the last pair is nearly as slow as 1/base."""
    return speeds(n_rotary, base**0.5, yarn)


@speed.mistake
def exponent_positive(n_rotary, base, yarn):
    """The exponent has the wrong sign: speeds grow with the pair. Pair 0 is the fastest, at 1 radian a token."""
    return speeds(n_rotary, 1 / base, yarn)


turned = step("rotate", "BTHK")


@turned.cases
def turned_cases(draw):
    n_batch, n_tokens, n_heads = draw.sizes(3)
    n_pairs = draw.whole(2, 5)
    x_BTHK = draw.normal(n_batch, n_tokens, n_heads, 2 * n_pairs + draw.whole(1, 4))
    yield x_BTHK, random_angles(draw, n_tokens, 1, n_pairs)
    yield x_BTHK[..., -2 * n_pairs :], random_angles(draw, n_tokens, 1, n_pairs)


@turned.answer
def rotated(x, angle):
    return ops.rotate(x, torch.polar(torch.ones_like(angle), angle))


turned.museum("half_split_pairs", "first_channels_rotated")


@turned.mistake
def turned_the_other_way(x, angle):
    """Pairs are turned the other way. (even, odd) becomes (even cos - odd sin, even sin + odd cos)."""
    return rotated(x, -angle)


@turned.mistake
def one_sign_wrong(x, angle):
    """The even channel has a wrong sign. It becomes even cos - odd sin."""
    right = rotated(x, angle)
    first = x.shape[-1] - 2 * angle.shape[-1]
    mirrored = torch.cat([x[..., :first], rearrange([x[..., first::2], -x[..., first + 1 :: 2]], PAIRS)], dim=-1)
    right[..., first::2] = rotated(mirrored, angle)[..., first::2]
    return right


@turned.mistake
def other_sign_wrong(x, angle):
    """The odd channel has a wrong sign. It becomes even sin + odd cos."""
    right = rotated(x, angle)
    first = x.shape[-1] - 2 * angle.shape[-1]
    mirrored = torch.cat([x[..., :first], rearrange([x[..., first::2], -x[..., first + 1 :: 2]], PAIRS)], dim=-1)
    right[..., first + 1 :: 2] = rotated(mirrored, angle)[..., first + 1 :: 2]
    return right


@turned.mistake
def pairs_left_apart(x, angle):
    """The turned channels come back in another order: all even ones, then all odd ones. Each goes back to its place."""
    n_rotary = 2 * angle.shape[-1]
    out = rotated(x, angle)
    apart = rearrange(out[..., -n_rotary:], "... (r pair) -> ... (pair r)", pair=2)
    return torch.cat([out[..., :-n_rotary], apart], dim=-1)


@turned.mistake
def sine_and_cosine_swapped(x, angle):
    """Sine and cosine are swapped. At angle 0 nothing moves."""
    return rotated(x, math.pi / 2 - angle)


@turned.mistake
def one_angle_for_neighbouring_channels(x, angle):
    """The angle of pair i is spread as (0, 1, ..., 0, 1, ...) over channels that are paired as neighbours."""
    n_rotary = 2 * angle.shape[-1]
    spread = torch.cat([angle, angle], dim=-1)
    rotary = x[..., -n_rotary:]
    even, odd = rearrange(rotary, "... (r pair) -> pair ... r", pair=2)
    crossed = rearrange([-odd, even], "pair ... r -> ... (r pair)", pair=2)
    return torch.cat([x[..., :-n_rotary], rotary * spread.cos() + crossed * spread.sin()], dim=-1)


@turned.mistake
def still_channels_dropped(x, angle):
    """The channels before the last R are lost. They are passed on as they are."""
    return rotated(x, angle)[..., -2 * angle.shape[-1] :]
