"""Checkups of one pass through the model."""

import torch

from minidsv4.course.checkups.subject import CONFIG, WINDOW, by_hand, same, subject
from minidsv4.model.attention import WindowAttention
from minidsv4.model.hyper_connection import HyperConnection
from minidsv4.model.moe import Router


@torch.no_grad()
def agrees_with_paper():
    """The logits of the main model and of its MTP block are those of the loops of `paper.py`."""
    model, ids_BT = subject()
    main, drafted = by_hand()
    streams = model.streams(ids_BT[:1], model.new_cache(1))
    same(model.logits(streams)[0], main)
    same(model.mtp_logits(streams[:, :-1], ids_BT[:1, 1:])[0], drafted)


@torch.no_grad()
def later_tokens_change_nothing_before():
    """Other tokens from a place on leave the logits before it as they were."""
    model, ids_BT = subject()
    places = (4, 28)  # each inside a window of 3; at 4 fewer entries are visible than top-k takes
    texts = [ids_BT]
    for place in places:
        changed = ids_BT.clone()
        changed[:, place:] = (changed[:, place:] + 1) % CONFIG.vocab_size
        texts.append(changed)
    before, *after = model(torch.cat(texts)).split(len(ids_BT))  # one pass takes as long as any
    for place, logits_BTV in zip(places, after):
        same(logits_BTV[:, :place], before[:, :place])


@torch.no_grad()
def moving_the_text_changes_nothing():
    """A layer that has a window only gives the same for a text that begins at another position."""
    model, _ = subject()
    layer = next(module for module in model.modules() if type(module) is WindowAttention)
    x_BTD = model.embed.weight[:22].view(2, 11, -1)

    def at(start):
        memory = model.new_cache(2).layers[0]
        return layer(x_BTD, model.positions(start, 11)[WINDOW], memory)

    same(at(17), at(0))


@torch.no_grad()
def new_streams_are_means_of_old_ones():
    """At every site the weights of the old streams in a new one sum to 1."""
    model, _ = subject()
    streams_BTND = model.embed.weight[:40].view(2, 5, 4, -1)
    for site in (module for module in model.modules() if isinstance(module, HyperConnection)):
        carry = site(streams_BTND).carry_BTij
        assert (carry.sum(dim=2) - 1).abs().max() < 3 * CONFIG.hc_eps  # eps in every divisor


@torch.no_grad()
def routing_weights_sum_to_the_scale():
    """The weights of a token's experts sum to the route scale."""
    model, ids_BT = subject()
    x_BTD = model.embed(ids_BT)
    for router in (module for module in model.modules() if isinstance(module, Router)):
        total = router(x_BTD, ids_BT).weight_BTA.sum(dim=-1)
        same(total, torch.full_like(total, CONFIG.routed_scaling_factor))
