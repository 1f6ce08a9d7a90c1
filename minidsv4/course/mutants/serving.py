"""Mistakes in serving several texts at once."""

from unittest.mock import patch

import torch

from minidsv4.course.mutants.museum import trap
from minidsv4.model import model as model_module
from minidsv4.serve import ragged
from minidsv4.serve.pool import Pool


@trap(
    18,
    19,
    at=[(ragged, "padded_logits")],
    symptom="Right where padding stands behind; where it stands before, every entry pools other tokens than alone.",
    found="vllm-ascend-dsv4#76",
    killed_by=("a_padded_row_is_what_it_is_alone",),
)
def padding_hidden_by_a_mask(right, model, ids_BT, mask_BT):
    """Padding stays in its row, and a mask hides its keys; compressors count their windows from the row's start."""
    mask_BT = mask_BT.bool()
    place_BT = torch.arange(ids_BT.shape[1]).expand_as(ids_BT)
    first_B1 = mask_BT.int().argmax(dim=1, keepdim=True)
    document_BT = torch.where(mask_BT, first_B1, place_BT)
    with patch.object(model_module, "check_documents", lambda *_: None):
        streams_BTND = model.streams(ids_BT.masked_fill(~mask_BT, 0), model.new_cache(len(ids_BT)), document_BT)
    return model.logits(streams_BTND).masked_fill(~mask_BT[..., None], 0)


@trap(
    at=[(Pool, "find")],
    symptom="One text at a time is right; beside others it reads entries that they have just written.",
    killed_by=("a_lent_cache_holds_its_own_text",),
)
def blocks_lent_twice(right, pool, n):
    """The first blocks are lent to every text, whoever has them."""
    return range(n)


@trap(
    39,
    at=[(Pool, "lend"), (Pool, "take_back")],
    symptom="The first text of each place is right; the next begins with the window of the one before.",
    killed_by=("a_lent_cache_holds_its_own_text",),
)
def state_lent_as_it_came_back(right, pool, asked):
    """A text is given the window that the last text left in its place; it begins with none."""
    lent = right(pool, asked)
    if lent is None:  # a cache came back
        pool.left = asked
        return
    for layer, before in zip(lent.layers, getattr(pool, "left", lent).layers):
        layer.window = before.window
    return lent
