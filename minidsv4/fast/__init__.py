"""Exact replacements of `ops.PLAIN` with the same signatures: linear memory, blocks, hand-written gradients.

`FAST` is what a model runs by default. Each function names the operation that it replaces and what it saves; tests hold
the two equal to 1e-10 in float64, outputs and gradients. These forms give first derivatives in reverse mode only.
"""

from minidsv4.fast.attention import index_loss
from minidsv4.fast.cross_entropy import cross_entropy
from minidsv4.fast.one_token import (
    attend,
    collapse,
    experts,
    rms_norm,
    sinkhorn,
    stable_topk,
    stream_logits,
    top_entries,
    write,
)
from minidsv4.fast.rotary import rotate
from minidsv4.fast.router import affinities, routing_weights
from minidsv4.fast.swiglu import swiglu
from minidsv4.ops import PLAIN

FAST = PLAIN._replace(
    rms_norm=rms_norm,
    rotate=rotate,
    stable_topk=stable_topk,
    top_entries=top_entries,
    attend=attend,
    index_loss=index_loss,
    stream_logits=stream_logits,
    sinkhorn=sinkhorn,
    collapse=collapse,
    write=write,
    affinities=affinities,
    routing_weights=routing_weights,
    swiglu=swiglu,
    experts=experts,
    cross_entropy=cross_entropy,
)
