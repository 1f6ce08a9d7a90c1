"""What the microscope shows of one text: the shipped model's own tensors, recorded in one forward pass.

Letters: T tokens, H heads, W window, C compressed entries, P picked entries, S pooled slots, E experts, A active
experts, N streams (i old, j new), V vocabulary.
"""

import numpy as np
import torch
from torch.nn import functional as F

from minidsv4.config import LayerKind, Routing
from minidsv4.course.microscope.fixed_point import in_255ths, packed, spread, whole
from minidsv4.course.record import record

BEST = 5  # of the next tokens
NO_PICK = 255  # stands in the table of picks where a query picked fewer entries than others


def measured(model, tokenizer, text):
    """Everything that the page shows of a text.

    model    a Model in float64
    text     str; <bos> is put before it
    returns  dictionary for JSON: tokens (list of str), loss and best guesses, and a dictionary for each layer
    """
    ids = [tokenizer.bos_id, *tokenizer.encode(text)]
    with record(model) as rec:
        logits_TV = model(torch.tensor([ids]))[0]
    layers = [measured_layer(layer, model.config, number) for number, layer in enumerate(rec)]
    return {"tokens": spelled(tokenizer, ids), **guesses(logits_TV, ids, tokenizer), "layers": layers}


def spelled(tokenizer, ids):
    """Each token's own text; one that holds a part of a character only has the replacement character."""
    marks = {tokenizer.bos_id: "<bos>", tokenizer.eos_id: "<eos>"}
    return [marks.get(token) or tokenizer.decode([token]) for token in ids]


def guesses(logits_TV, ids, tokenizer):
    """Nats that each next token costs, and the likeliest next tokens with their probabilities."""
    log_TV = logits_TV.log_softmax(-1)
    loss_T = F.nll_loss(log_TV[:-1], torch.tensor(ids[1:]), reduction="none")
    best = log_TV.topk(BEST, dim=-1)
    words = [spelled(tokenizer, row) for row in best.indices.tolist()]
    return {"loss": spread(loss_T.numpy()), "best": words, "chance": spread(best.values.exp().numpy())}


def measured_layer(layer, config, number):
    """One layer: attention, entries and index where it has them, experts, streams."""
    hashed = config.mlp_layer_types[number] is Routing.HASH
    found = {"kind": layer.kind.name, **attention(layer, config), **experts(layer), "hashed": hashed}
    if layer.kind is not LayerKind.WINDOW:
        found["pooled"] = packed(in_255ths(shares_of_slots(layer)) / 255, 0, 1 / 255, bits=8)
    if layer.kind is LayerKind.CSA:
        score_TC = layer.index_scores()[0].numpy()
        found["scores"] = spread(np.where(np.isfinite(score_TC), score_TC, 0.0))
    return found | streams(layer)


def attention(layer, config):
    """Weights of the window by age, of the entries read, and of the sink; and which entries are read.

    returns  window [T, H, W], whose place w is the token w before the query; read [T, P], `NO_PICK` for none;
             entries [T, H, P] in that order; sink [T, H]; the three kinds of weights sum to 1
    """
    window_THS, entry_THC = (weight[0].numpy() for weight in layer.weights())
    window_THW = by_age(window_THS, config.sliding_window)
    read_TP = entries_read(layer.sees.entry_map()[0].numpy())
    place_TP = np.minimum(read_TP, max(entry_THC.shape[-1] - 1, 0))
    entry_THP = np.take_along_axis(entry_THC, place_TP[:, None], axis=-1) * (read_TP < NO_PICK)[:, None]
    seen = np.concatenate([window_THW, entry_THP], axis=-1)
    row = np.concatenate([seen, 1 - seen.sum(-1, keepdims=True)], axis=-1)
    window, entries, sink = np.split(in_255ths(row) / 255, [window_THW.shape[-1], seen.shape[-1]], axis=-1)
    parts = {"window": window, "entries": entries, "sink": sink[..., 0]}
    return {"read": whole(read_TP)} | {name: packed(part, 0, 1 / 255, bits=8) for name, part in parts.items()}


def by_age(weight_THS, n_window):
    """Weights [T, H, W] whose last axis counts tokens back from the query, from weights over all tokens."""
    n_tokens = len(weight_THS)
    age_TW = np.arange(n_tokens)[:, None] - np.arange(n_window)[None]
    found = np.take_along_axis(weight_THS, np.maximum(age_TW, 0)[:, None], axis=-1)
    return found * (age_TW >= 0)[:, None]


def entries_read(reads_TC):
    """Indices of the entries that each query reads [T, P], ascending, filled up with `NO_PICK`."""
    n_most = reads_TC.sum(-1).max(initial=0)
    read_TP = np.full((len(reads_TC), n_most), NO_PICK)
    for t, row in enumerate(reads_TC):
        read = np.flatnonzero(row)
        read_TP[t, : len(read)] = read
    return read_TP


def shares_of_slots(layer):
    """What part of each entry comes from each pooled slot [C, S], the mean over channels."""
    return layer.slot_weights()[0].mean(-1).numpy()


def experts(layer):
    """Experts chosen [T, A], their weights [T, A], and every expert's score [T, E]."""
    routed = layer.routed
    return {
        "experts": whole(routed.picked_BTA[0].numpy()),
        "expertWeights": spread(routed.weight_BTA[0].numpy()),
        "expertScores": spread(routed.score_BTE[0].numpy()),
    }


def streams(layer):
    """Each site's read, write and mix coefficients, and the root mean square of every stream after the layer."""
    found = {"norms": spread(layer.streams_BTND[0].square().mean(-1).sqrt().numpy())}
    for site, mix in zip(("attention", "experts"), layer.mixes):
        parts = (mix.pre_BTN, mix.post_BTN, mix.carry_BTij)
        pre_TN, post_TN, carry_Tij = (part[0].numpy() for part in parts)
        found[f"{site}Mix"] = {"pre": spread(pre_TN), "post": spread(post_TN), "carry": spread(carry_Tij)}
    return found


def cache_growth(model, n_tokens):
    """Bytes by kind after 1, 2, ... n_tokens tokens, read off a cache that takes them in one by one.

    returns  {kind: list of n_tokens numbers}; bytes depend on how many tokens there are, not on which
    """
    cache = model.new_cache()
    reports = []
    with torch.inference_mode():
        for _ in range(n_tokens):
            model(torch.zeros(1, 1, dtype=torch.int64), cache)
            reports.append(cache.report())
    return {kind: [report[kind] for report in reports] for kind in reports[0]}
