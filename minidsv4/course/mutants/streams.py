"""Mistakes around the residual streams (mHC)."""

from unittest.mock import patch

import torch
from einops import rearrange

from minidsv4 import ops
from minidsv4.course.mutants.museum import BOTH, coarse, trap
from minidsv4.model.block import Block
from minidsv4.model.hyper_connection import HyperConnection
from minidsv4.model.mtp import MTP


@trap(
    1,
    at=[(ops, "write")],
    symptom="Plausible text that drifts: 5% error a call, a third of the stream after seven layers.",
    found="Automodel#2154, Primus#1040, Megatron#6699",
)
def carry_transposed(right, streams_BTND, y_BTD, post_BTN, carry_BTij):
    """New stream j takes carry[j, i] of old stream i; the released code has carry[i, j], so B = carry transposed."""
    return right(streams_BTND, y_BTD, post_BTN, rearrange(carry_BTij, "b t i j -> b t j i"))


@trap(
    2,
    at=[(ops, "stream_logits")],
    symptom="Sinkhorn normalises the wrong numbers; trained streams explode.",
)
def packing_order_confused(right, streams_BTND, fn, eps):
    """The rows of `fn` are taken as pre, carry, post; they lie as pre, post, carry."""
    logits, n = right(streams_BTND, fn, eps), streams_BTND.shape[2]
    if len(fn) == n:
        return logits  # the head collapse has rows for pre only
    return torch.cat([logits[..., :n], logits[..., -n:], logits[..., n:-n]], dim=-1)


@trap(
    3,
    at=[(ops, "sinkhorn")],
    symptom="Rows of the mix miss 1 by more; hardly seen with 20 rounds and small logits.",
)
def one_sinkhorn_round_missing(right, logits, iterations, eps):
    """The first round (softmax and columns) is not counted among the iterations, or the loop ends one early."""
    return right(logits, iterations - 1, eps)


@trap(
    3,
    at=[(ops, "sinkhorn")],
    symptom="Little at small logits; large ones make zeros, which eps lifts: 0.14 on logits of size 8.6 in one test.",
)
def sinkhorn_without_eps(right, logits, iterations, eps):
    """Sinkhorn starts from the plain exponential and divides without eps, as the report prints it."""
    return right(logits, iterations, 0.0)


@trap(
    3,
    at=[(ops, "sinkhorn")],
    symptom="A new stream is no longer a weighted mean of the old ones: its weights do not sum to 1.",
    killed_by=(*BOTH, "new_streams_are_means_of_old_ones"),
)
def sinkhorn_rows_last(right, logits, iterations, eps):
    """Columns are divided first and rows last, so columns do not sum to 1: each holds the weights of a new stream."""
    mix = right(rearrange(logits, "b t i j -> b t j i"), iterations, eps)
    return rearrange(mix, "b t j i -> b t i j")


@trap(
    3,
    at=[(HyperConnection, "forward")],
    symptom="Each sub-layer reads eps too little: float32 rounding hides it, float64 does not.",
)
def read_without_eps(right, site, streams_BTND):
    """The read weights lack the eps that the released code adds after the sigmoid."""
    mix = right(site, streams_BTND)
    return mix._replace(pre_BTN=mix.pre_BTN - site.eps)


@trap(
    3,
    at=[(HyperConnection, "forward")],
    symptom="Each sub-layer writes eps too much: float32 rounding hides it, float64 does not.",
)
def write_with_eps(right, site, streams_BTND):
    """The write weights get the eps that belongs to the read weights alone."""
    mix = right(site, streams_BTND)
    return mix._replace(post_BTN=mix.post_BTN + site.eps)


@trap(
    4,
    at=[(ops, "stream_logits")],
    symptom="Loss curves that part slowly; more so the larger the mix logits.",
)
def coefficients_in_bfloat16(right, streams_BTND, fn, eps):
    """The coefficients are computed in bfloat16 like everything around them."""
    return coarse(right(streams_BTND, fn, eps))


@trap(
    4,
    at=[(Block, "forward")],
    symptom="Right where weights are 1 and streams are equal, as at the very start; large streams then lose their say.",
)
def streams_normed_with_a_weight(right, layer, streams_BTND, *rest):
    """Each stream passes the sub-layer's norm before the coefficients; they want one norm of all, without a weight."""
    site, norm = layer.hc_attn.forward, layer.attn_norm
    with patch.object(layer.hc_attn, "forward", lambda streams: site(norm(streams))):
        return right(layer, streams_BTND, *rest)


@trap(
    5,
    at=[(ops, "stream_logits")],
    symptom="Reads, writes and mixes are the same for every token: plain weighted residual streams.",
)
def coefficients_without_the_token(right, streams_BTND, fn, eps):
    """Only the learned biases are used, as if the coefficients were static."""
    return torch.zeros_like(right(streams_BTND, fn, eps))


@trap(
    6,
    at=[(MTP, "draft")],
    symptom="The main model is right; drafts are accepted less often, and nobody looks.",
    found="early ports",
    killed_by=("agrees_with_paper",),
)
def mtp_reads_one_stream(right, layer, streams_BTND, *rest):
    """The streams are collapsed to one before the MTP block, which wants all of them."""
    return right(layer, streams_BTND.mean(dim=2, keepdim=True).expand_as(streams_BTND), *rest)
