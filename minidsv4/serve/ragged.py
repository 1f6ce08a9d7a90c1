"""Sequences of unequal length in one pass, without padding: all their tokens lie end to end on one axis.

B batch (here 1), T tokens, N streams, D width, V vocabulary. Embedding, streams, norms, experts and head know nothing
of a token's neighbours, so they take all tokens at once; attention with its memory runs sequence by sequence. A mask
that hides padding would not do: compressors pool whatever lies between two borders of their windows, and a text that
begins after padding has its borders elsewhere than the same text alone.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from minidsv4.model.autocast import autocasting
from minidsv4.model.block import Block
from minidsv4.model.cache import Cache, LayerMemory
from minidsv4.model.check import check_cache, check_count, check_device, check_integers
from minidsv4.model.model import Model
from minidsv4.model.rope import Positions
from minidsv4.serve.checks import check_model, refusing
from minidsv4.serve.disk import ModelOnDisk


@torch.no_grad()
def forward_each(model: Model, ids: Sequence[Tensor], caches: Sequence[Cache], last: int = 1) -> list[Tensor]:
    """Logits of the last tokens of each sequence, which are those that it has alone, but for rounding.

    ids      new token ids of each sequence [T], any number from 1
    caches   what came before in each, of one sequence; each takes its tokens in. If anything fails, all stay as they
             were
    last     how many logits of each sequence, from 1
    returns  [min(last, T), V] for each, float32 at least
    raises   ValueError: no sequence, as many ids as caches are not there, ids or a cache that `Model.forward` refuses
    """
    check_sequences(model, ids, caches)
    check_count("last", last, "asks for no logits")
    kept = [min(last, len(ids_T)) for ids_T in ids]
    with all_or_nothing(caches):
        streams_BTND = streams_each(model, ids, caches)
        ends = [part[:, -n:] for part, n in zip(streams_BTND.split([len(ids_T) for ids_T in ids], dim=1), kept)]
        return list(model.logits(torch.cat(ends, dim=1))[0].split(kept))


@refusing("padded_logits")
def padded_logits(model: Model, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Logits [B, T, V] of a padded batch: each row's are those that its text has alone, and 0 at padding.

    Padding takes part in nothing: it is not pooled, routed, attended to or counted, and its ids are not looked at.

    ids_BT   token ids; padding may hold any integer
    mask_BT  True or 1 where a token is text, which lies in one piece anywhere in its row: padded left, right or both
    raises   ValueError: shapes that differ, another type or device, a row of padding alone or with a gap in its text,
             an id out of range
    """
    mask_BT = check_padding(model, ids_BT, mask_BT)
    ids = ids_BT[mask_BT].split(mask_BT.sum(dim=1).tolist())
    caches = [model.new_cache() for _ in ids]
    check_sequences(model, ids, caches)
    logits_BTV = model.logits(streams_each(model, ids, caches))
    padded = logits_BTV.new_zeros(*mask_BT.shape, logits_BTV.shape[-1])
    return padded.index_put((mask_BT,), logits_BTV[0])


def streams_each(model: Model, ids: Sequence[Tensor], caches: Sequence[Cache]) -> Tensor:
    """The streams [1, T, N, D] of all sequences' tokens, end to end; each cache takes its tokens in."""
    ids_BT = rearrange(torch.cat([*ids]), "t -> 1 t")
    positions = [model.positions(cache.n_tokens, len(ids_T)) for ids_T, cache in zip(ids, caches)]
    streams_BTND = repeat(model.embed(ids_BT), "b t d -> b t n d", n=model.config.hc_mult)
    for number, block in enumerate(model.layers):
        memories = [cache.layers[number] for cache in caches]
        kind = memories[0].kind
        streams_BTND = apart(block)(streams_BTND, ids_BT, [each[kind] for each in positions], memories)
    for ids_T, cache in zip(ids, caches):
        cache.n_tokens += len(ids_T)
    return streams_BTND


class EachApart(nn.Module):
    """Attention of tokens that lie end to end: each sequence at its own positions, over its own memory."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.attention = attention

    def forward(self, x_BTD: Tensor, positions: list[Positions], memories: list[LayerMemory]) -> Tensor:
        """Attention output [1, T, D]; each memory takes its tokens in."""
        parts = x_BTD.split([each.n_tokens for each in positions], dim=1)
        return torch.cat([self.attention(*each) for each in zip(parts, positions, memories)], dim=1)


def apart(block: nn.Module) -> Block:
    """The block itself, all parts and hooks shared, but that its attention takes sequences end to end."""
    twin = copy.copy(block)
    assert isinstance(twin, Block)
    twin._modules = block._modules | {"attn": EachApart(twin.attn)}
    return twin


@contextmanager
def all_or_nothing(caches: Sequence[Cache]) -> Iterator[None]:
    """Whatever goes wrong inside, all caches are then as they were before."""
    with ExitStack() as stack:
        for cache in caches:
            stack.enter_context(cache.all_or_nothing())
        yield


# --- what is refused ---


def check_sequences(model: Model, ids: Sequence[Tensor], caches: Sequence[Cache]) -> None:
    """Raise ValueError, before anything is touched, unless each sequence has ids and a cache of its own."""
    if not len(ids) or len(ids) != len(caches):
        raise ValueError(f"ids: {len(ids)} sequences and {len(caches)} caches; give one cache a sequence, at least one")
    if len(set(map(id, caches))) < len(caches):
        raise ValueError("caches: one of them is given twice; each sequence has a cache of its own")
    if autocasting() and isinstance(model, ModelOnDisk):
        raise ValueError("model: its weights lie on disk, and torch.autocast cannot round them; call outside of it")
    for ids_T, cache in zip(ids, caches):
        check_integers("ids", ids_T, "cannot name tokens")
        if ids_T.ndim != 1:
            raise ValueError(f"ids: shape {tuple(ids_T.shape)} is no single sequence; give [tokens] of each")
        check_cache(model, rearrange(ids_T, "t -> 1 t"), cache)


def check_padding(model: Model, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The mask as booleans, or ValueError unless it marks one piece of text in every row of `ids_BT`."""
    check_model(model)
    check_integers("ids", ids_BT, "cannot name tokens")
    if not isinstance(mask_BT, Tensor) or mask_BT.dtype not in (torch.bool, torch.int64, torch.int32):
        found = mask_BT.dtype if isinstance(mask_BT, Tensor) else type(mask_BT).__name__
        raise ValueError(f"mask: {found} marks no tokens; give a tensor of bool, or of 1 and 0 as int64 or int32")
    if ids_BT.ndim != 2 or mask_BT.shape != ids_BT.shape or 0 in ids_BT.shape:
        shapes = f"ids of shape {tuple(ids_BT.shape)} and a mask of shape {tuple(mask_BT.shape)}"
        raise ValueError(f"ids: {shapes} are no padded batch; give both as [batch, tokens], at least one token")
    for name, x_BT in (("ids", ids_BT), ("mask", mask_BT)):
        check_device(name, x_BT, model.embed.weight.device)
    if not ((mask_BT == 0) | (mask_BT == 1)).all():
        raise ValueError("mask: it holds other numbers than 0 and 1; give 1 or True where a token is text")
    mask_BT = mask_BT.bool()
    begins_BT = mask_BT & ~F.pad(mask_BT[:, :-1], (1, 0))
    for row, n_pieces in enumerate(begins_BT.sum(dim=1).tolist()):
        if n_pieces != 1:
            piece = "is padding alone" if n_pieces == 0 else f"has its text in {n_pieces} pieces"
            raise ValueError(f"mask: row {row} {piece}; a row holds one text, padded on the left, the right or both")
    return mask_BT
