"""Checkups of what is remembered between calls, by one text and by several."""

import tempfile

import torch

from minidsv4.course.checkups.subject import CONFIG, N_TOKENS, same, subject
from minidsv4.lowbit import entries
from minidsv4.serve import ragged
from minidsv4.serve.pool import Pool
from minidsv4.serve.prefix_store import PrefixStore


@torch.no_grad()
def chunks_equal_one_pass():
    """A text read in chunks of any sizes has the logits of one pass."""
    model, ids_BT = subject()
    cache = model.new_cache(2)
    sizes = [10, 7, 1, 1, 1, 12]
    same(torch.cat([model(ids, cache) for ids in ids_BT.split(sizes, dim=1)], dim=1), model(ids_BT))


@torch.no_grad()
def restoring_forgets_what_was_rejected():
    """After a cache went back, a text goes on as if the rejected tokens had never been read."""
    model, ids_BT = subject()
    cache = model.new_cache(2)
    model(ids_BT[:, :13], cache)
    snap = cache.snapshot()
    expected = model(ids_BT[:, 13:], cache)
    cache.restore(snap)
    model(ids_BT[:, :7], cache)  # drafts, which close two windows of 3 and one of 9
    cache.restore(snap)
    same(model(ids_BT[:, 13:], cache), expected)


@torch.no_grad()
def cache_bytes_equal_the_formula():
    """The cache holds a window and the finished entries and keys, and nothing besides but open windows."""
    model, ids_BT = subject()
    cache = model.new_cache(2)
    for ids in ids_BT.split([4, 28], dim=1):
        model(ids, cache)
        n = cache.n_tokens
        window = CONFIG.num_hidden_layers * min(n, CONFIG.sliding_window) * CONFIG.head_dim
        entries = n // 9 * CONFIG.head_dim + n // 3 * (CONFIG.head_dim + CONFIG.index_head_dim)
        report = cache.report()
        assert cache.n_bytes() - report["tail state"] == 2 * 8 * (window + entries)  # two sequences, 8 bytes a number


@torch.no_grad()
def a_padded_row_is_what_it_is_alone():
    """A text with padding before or behind it has the logits that it has alone."""
    model, ids_BT = subject()
    ids_BT = torch.cat([ids_BT.roll(7, dims=1), ids_BT])
    mask_BT = torch.arange(N_TOKENS).expand_as(ids_BT) >= torch.tensor([[7], [1], [0], [20]])
    logits_BTV = ragged.padded_logits(model, ids_BT, mask_BT)
    for row, text in enumerate(mask_BT):
        same(logits_BTV[row, text], model(ids_BT[row : row + 1, text])[0])


@torch.no_grad()
def a_lent_cache_holds_its_own_text():
    """Texts whose caches share a pool have the logits that they have alone, after another one had the blocks before."""
    model, ids_BT = subject()
    pool = Pool(model, n_blocks=8, n_texts=2)
    cache = model.new_cache(2)
    expected = [model(ids, cache) for ids in ids_BT.split(16, dim=1)]
    for rows in ([1], [0, 1]):
        caches = {row: pool.lend(N_TOKENS) for row in rows}
        for ids, logits_BTV in zip(ids_BT.split(16, dim=1), expected):
            for row, cache in caches.items():
                same(model(ids[row : row + 1], cache)[0], logits_BTV[row])
        for cache in caches.values():
            pool.take_back(cache)


@torch.no_grad()
def a_prefix_hit_goes_on_with_its_own_text():
    """A text whose prefix was stored goes on after its last whole block, with the logits of a cold run."""
    model, ids_BT = subject()
    cold = model(ids_BT[:1])
    for strategy, n_again in (("zero", 13), ("full", 3)):
        with tempfile.TemporaryDirectory() as folder:
            store = PrefixStore(folder, model, strategy)
            for ids in (ids_BT[:1], ids_BT[1:, :10]):  # the other text is one block, and one token over
                store.prefill(ids, model.new_cache())
            cache, n_held = store.longest(ids_BT[0])
            assert (n_held, store.counts.again) == (27, n_again)
            same(model(ids_BT[:1, n_held:], cache), cold[:, n_held:])


def an_entry_of_8_bits_is_read_as_the_format_says():
    """Bytes 38, B8 and 80 are 1, -1 and -0, and a scale byte of 128 doubles them; the rotary number 1 is in 16 bits."""
    packed = torch.tensor([[[0x38, 0xB8, 0x80, 0x80, 0x3F, 128, 0, 0]]], dtype=torch.uint8)
    entry = entries.unpack_entries(packed, width=4, rotary=1, dtype=torch.float64)
    assert entry.tolist() == [[[2.0, -2.0, 0.0, 1.0]]]
