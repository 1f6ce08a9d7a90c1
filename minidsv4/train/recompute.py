"""Recomputation: of every block a training step keeps the streams that enter it, and computes the rest once more.

B batch, T tokens, N streams, D width. Less memory for about a third more products; the same gradients, bit for bit.
The report recomputes cheap tensors one by one and heavy products never; this is the plain form.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minidsv4.model.block import Block
from minidsv4.model.cache import LayerMemory
from minidsv4.model.layer import watch
from minidsv4.model.model import Model
from minidsv4.model.moe import LearnedRouter
from minidsv4.model.rope import Positions
from minidsv4.train.routing import fixed_routing


@contextmanager
def recomputing(model: Model) -> Iterator[None]:
    """Within, whatever `model` computes keeps only what enters its blocks: `with recomputing(model): model.loss(ids)`.

    Without a gradient nothing is kept and nothing changes, so that caches are filled as ever.

    raises  ValueError for a gradient through a past: a block that runs twice would remember its tokens twice
    """
    for block in model.layers:
        block.forward = Recomputed(block)
    try:
        yield
    finally:
        for block in model.layers:
            del block.forward


class Recomputed:
    """A block's forward that autograd may call again."""

    def __init__(self, block: Block):
        self.block = block

    def __call__(self, streams_BTND: Tensor, ids_BT: Tensor, positions: Positions, memory: LayerMemory) -> Tensor:
        if not torch.is_grad_enabled():
            return Block.forward(self.block, streams_BTND, ids_BT, positions, memory)
        if positions.start > 0:
            raise ValueError(
                f"recomputing: the cache holds {positions.start} tokens; training starts from an empty one"
            )

        picks: list[Tensor] = []

        def forward(streams_BTND: Tensor) -> Tensor:
            with same_picks(self.block, picks):
                return Block.forward(self.block, streams_BTND, ids_BT, positions, copy.deepcopy(memory))

        return checkpoint(forward, streams_BTND, use_reentrant=False)


@contextmanager
def same_picks(block: Block, picks: list[Tensor]) -> Iterator[None]:
    """Inside, the block's learned router picks as in its first run, whose picks [B, T, A] are put into `picks`.

    A routing that is fixed around the first run is then fixed for the second one too.
    """
    if picks:
        with fixed_routing(block, picks):
            yield
    else:
        with watch(block, LearnedRouter) as calls:
            yield
        picks.extend(routed.picked_BTA for _, _, routed in calls)
