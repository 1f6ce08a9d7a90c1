"""Probes of notebook 19: what one sees of a trap. Each asks the model as it is at this moment.

B batch, T tokens, P picked entries. Every function takes a model and computes; none knows which trap is at work.
"""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from minidsv4 import ops
from minidsv4.config import LayerKind
from minidsv4.course.record import record
from minidsv4.model.model import Model
from minidsv4.posttrain import distill
from minidsv4.serve import ragged
from minidsv4.train.data import check_from


@torch.no_grad()
def in_chunks(model: Model, ids_BT: Tensor, sizes: int | Sequence[int]) -> Tensor:
    """Logits [B, T, V] of texts that are read so many tokens at a time, with a cache between the calls.

    sizes   tokens of every chunk, or of each chunk, T together
    raises  ValueError for other sizes
    """
    cache = model.new_cache(len(ids_BT))
    return torch.cat([model(part, cache=cache) for part in chunks(ids_BT, sizes)], dim=1)


def chunks(ids_BT: Tensor, sizes: int | Sequence[int]) -> tuple[Tensor, ...]:
    """The texts in pieces of so many tokens; the last may be shorter where one size is given for all."""
    given = sizes if isinstance(sizes, Sequence) else [sizes]
    for size in given:
        check_from("chunks", "size", size, 1)
    if not isinstance(sizes, Sequence):
        return ids_BT.split(sizes, dim=1)
    if sum(sizes) != ids_BT.shape[1]:
        raise ValueError(f"chunks: sizes = {list(sizes)} sum to {sum(sizes)}; the texts have {ids_BT.shape[1]} tokens")
    return ids_BT.split(list(sizes), dim=1)


def nats(model: Model, ids_BT: Tensor, chunk: int) -> float:
    """The mean loss of a token, in nats, of texts that are read so many tokens at a time."""
    logits_BTV = in_chunks(model, ids_BT, chunk)
    return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten()).item()


def errors(model: Model, ids_BT: Tensor, right_BTV: Tensor, sizes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The largest error of a logit at each token of the first text, numpy [T]: read at once, and in chunks."""
    at_once = in_chunks(model, ids_BT, ids_BT.shape[1])
    in_parts = in_chunks(model, ids_BT, sizes)
    once, apart = ((logits - right_BTV)[0].abs().amax(-1).numpy() for logits in (at_once, in_parts))
    return once, apart


@torch.no_grad()
def felt(model: Model, ids_BT: Tensor) -> np.ndarray:
    """Whether the logits at token t of the first text move where token s is changed: booleans [t, s]."""
    ids = ids_BT[:1]
    whole = model(ids)
    columns = []
    for s in range(ids.shape[1]):
        changed = ids.clone()
        changed[:, s] = (changed[:, s] + 1) % model.config.vocab_size
        columns.append((model(changed) - whole)[0].abs().amax(-1) > 1e-9)
    return torch.stack(columns, dim=1).numpy()


def furthest_ahead(felt_TT: np.ndarray) -> int:
    """How many tokens ahead of itself a token's logits feel a change, at most."""
    t, s = np.nonzero(np.triu(felt_TT, 1))
    return int((s - t).max(initial=0))


def picks(model: Model, ids_BT: Tensor, chunk: int, last: int) -> list[Tensor]:
    """What the last queries of each CSA layer pick [last, P], where the first text is read so many tokens at a time.

    raises  ValueError for more queries than the last chunk has
    """
    check_from("picks", "last", last, 1)
    cache = model.new_cache()
    parts = chunks(ids_BT[:1], chunk)
    if last > parts[-1].shape[1]:
        raise ValueError(f"picks: last = {last} queries cannot be; the last chunk has {parts[-1].shape[1]}")
    for part in parts:
        with record(model) as rec:
            model(part, cache=cache)
    return [rec[layer].picks_BTP[0, -last:] for layer, kind in enumerate(rec.kinds) if kind is LayerKind.CSA]


def shared(right: Sequence[Tensor], ours: Sequence[Tensor]) -> float:
    """What part of the right picks is among ours.

    raises  ValueError where there are not as many layers on both sides
    """
    if not right or len(right) != len(ours):
        raise ValueError(f"shared: picks of {len(right)} layers and of {len(ours)}; give those of the same layers")
    same = [(ours_TP[:, None] == right_TP[:, :, None]).any(-1) for right_TP, ours_TP in zip(right, ours)]
    return torch.stack(same).double().mean().item()


@torch.no_grad()
def padded_errors(model: Model, ids_BT: Tensor, most: int) -> list[float]:
    """The largest error of the first text's logits with 1, 2, ... `most` tokens of padding before it."""
    check_from("padded_errors", "most", most, 1)
    ids = ids_BT[:1]
    alone = model(ids)[0]
    found = []
    for n in range(1, most + 1):
        row = F.pad(ids, (n, 0))
        mask = torch.arange(row.shape[1])[None] >= n
        logits = ragged.padded_logits(model, row, mask)[0, n:]
        found.append((logits - alone).abs().max().item())
    return found


def window_bytes(model: Model, ids_BT: Tensor, times: int) -> int:
    """Bytes of window entries in the cache of the first text, read so many times over."""
    check_from("window_bytes", "times", times, 1)
    cache = model.new_cache()
    for _ in range(times):
        model(ids_BT[:1], cache=cache)
    return cache.report()["window"]


@torch.no_grad()
def rounding(model: Model, ids_BT: Tensor) -> float:
    """By how much the logits of a model of 64 bits move where it is held and computed in 32."""
    narrow = copy.deepcopy(model).float()
    return (narrow(ids_BT).double() - model(ids_BT)).abs().max().item()


def router_gradient(logit: float) -> tuple[Tensor, Tensor]:
    """Scores [7] of experts of which number 3 has this logit and the others 0, and the gradient of their sum [7, 4]."""
    weight_ED = torch.zeros(7, 4, dtype=torch.float64)
    weight_ED[3] = logit / 4
    weight_ED.requires_grad_()
    score_BTE = ops.affinities(torch.ones(1, 1, 4, dtype=torch.float64), weight_ED)
    score_BTE.sum().backward()
    assert weight_ED.grad is not None
    return score_BTE[0, 0].detach(), weight_ED.grad


def visits(model: Model, ids_BT: Tensor) -> np.ndarray:
    """How many tokens visit each expert of the first layer, numpy [E]."""
    with record(model) as rec:
        model(ids_BT)
    return np.bincount(rec[0].routed.picked_BTA.flatten().numpy(), minlength=model.config.n_routed_experts)


def pull() -> Tensor:
    """The gradient [3] of the sampled divergence in a student's logits, in the mean over what the student draws."""
    logits_TV = torch.tensor([[2.0, 0.0, -1.0]], dtype=torch.float64, requires_grad=True)
    student_TV = logits_TV.log_softmax(-1)
    teacher_TV = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64).log()
    each = distill.sampled_kl(student_TV.expand(3, -1), teacher_TV.expand(3, -1), torch.arange(3))
    (student_TV.detach().exp() * each).sum().backward()
    assert logits_TV.grad is not None
    return logits_TV.grad[0]
