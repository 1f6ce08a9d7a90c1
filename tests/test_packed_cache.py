"""A cache in released precision: its bytes are the format's and the formula's, and every promise of a cache holds."""

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from small import EXACT, TINY, normal, small_model, token_ids
from test_cache import LONG, N_TOKENS, assert_every_bit_comes_back, contents, in_chunks, random_cuts, same_bits

import minidsv4 as v4
from minidsv4.cost import memory
from minidsv4.lowbit import entries, fp8, mxfp4
from minidsv4.model.attention import WindowAttention
from minidsv4.model.compressor import Compressor
from minidsv4.model.indexer import KeyCompressor

WIDTHS = [(512, 64), (64, 16), (20, 8), (130, 2), (9, 8)]  # of an entry and its rotary part: released, mini, tiny, odd


@pytest.fixture(scope="module")
def model():
    return small_model().requires_grad_(False)


def packed_cache(model, n_batch=2):
    return model.new_cache(n_batch, precision="released")


@pytest.fixture(scope="module")
def whole(model):
    return model(token_ids(2, N_TOKENS), packed_cache(model))


# ---- entries and keys in bytes ----


@pytest.mark.parametrize(("width", "rotary"), WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_an_entry_is_fp8_in_blocks_of_64_with_its_rotary_part_in_bf16_as_a_loop_reads_it(width, rotary, dtype):
    x, plain = (normal(2, 3, width) * 2.0 ** normal(2, 3, width, seed=1)).to(dtype), width - rotary
    packed = entries.pack_entries(x, rotary)
    assert packed.dtype == torch.uint8 and packed.shape == (2, 3, entries.entry_bytes(width, rotary))
    n_scales = math.ceil(plain / 64)
    for b, c in np.ndindex(2, 3):
        held = packed[b, c].numpy()
        numbers = held[:plain].view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        turned = held[plain : plain + 2 * rotary].copy().view(ml_dtypes.bfloat16).astype(np.float32)
        scales = held[plain + 2 * rotary :][:n_scales].view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
        assert not held[plain + 2 * rotary + n_scales :].any() and len(held) % 8 == 0
        given = x[b, c].float().numpy()
        for n, scale in enumerate(scales):
            block = given[64 * n : min(64 * n + 64, plain)]
            assert scale == 2.0 ** math.ceil(math.log2(max(np.abs(block).max(), 1e-4) / 448))
            assert np.array_equal(
                numbers[64 * n : 64 * n + 64], (block / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
            )
        assert np.array_equal(turned, given[plain:].astype(ml_dtypes.bfloat16).astype(np.float32))
        read = entries.unpack_entries(packed, width, rotary, dtype)[b, c]
        assert read.dtype == dtype
        assert np.array_equal(read.float().numpy(), np.concatenate([numbers * scales.repeat(64)[:plain], turned]))


@pytest.mark.parametrize("width", [128, 32, 16, 100, 33])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_key_is_two_numbers_a_byte_then_a_scale_for_32_as_a_loop_reads_it(width, dtype):
    x = normal(2, 5, width).to(dtype)
    packed = entries.pack_keys(x)
    assert packed.dtype == torch.uint8 and packed.shape == (2, 5, entries.key_bytes(width))
    read = entries.unpack_keys(packed, width, dtype)
    assert read.dtype == dtype and torch.equal(read, mxfp4.rounded(x))
    half = math.ceil(width / 2)
    for b, c in np.ndindex(2, 5):
        held = packed[b, c].numpy()
        codes = np.stack([held[:half] & 15, held[:half] >> 4], 1).ravel()[:width]
        scales = held[half:].view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
        wanted = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float32) * scales.repeat(32)[:width]
        assert np.array_equal(read[b, c].float().numpy(), wanted)


def test_bytes_at_the_released_width_are_584_and_68_and_those_of_the_bill():
    assert entries.entry_bytes(512, 64) == 584 == 448 + 2 * 64 + 7 + 1 and entries.key_bytes(128) == 68 == 64 + 4
    assert memory.entry_bytes(512, 64, "fp8") == 584 and memory.key_bytes(128, "fp4") == 68


def test_packing_what_was_read_changes_no_number():
    x = normal(2, 7, 80)
    once = entries.unpack_entries(entries.pack_entries(x, 8), 80, 8, x.dtype)
    assert torch.equal(entries.unpack_entries(entries.pack_entries(once, 8), 80, 8, x.dtype), once)
    keys = entries.unpack_keys(entries.pack_keys(x), 80, x.dtype)
    assert torch.equal(entries.unpack_keys(entries.pack_keys(keys), 80, x.dtype), keys)


def test_a_number_that_is_not_finite_does_not_come_back_as_one():
    x = normal(1, 2, 20)
    x[0, 0, 3], x[0, 1, 15] = torch.inf, torch.nan
    read = entries.unpack_entries(entries.pack_entries(x, 8), 20, 8, x.dtype)
    assert read[0, 0, :12].isnan().all() and read[0, 0, 12:].isfinite().all() and read[0, 1, 15].isnan()
    assert entries.unpack_keys(entries.pack_keys(x), 20, x.dtype).isnan().all()


# ---- the same promises as of every cache ----


def test_the_logits_are_those_of_a_model_that_rounds_every_entry_before_it_is_read(model, whole, monkeypatch):
    def entry(x):
        plain, rope = x.split([TINY.head_dim - TINY.qk_rope_head_dim, TINY.qk_rope_head_dim], dim=-1)
        return torch.cat([fp8.rounded(plain, entries.BLOCK), rope.bfloat16().double()], dim=-1)

    hadamard = KeyCompressor.stored
    monkeypatch.setattr(KeyCompressor, "stored", lambda layer, x: mxfp4.rounded(hadamard(layer, x)))
    for kind in (WindowAttention, Compressor):
        monkeypatch.setattr(kind, "stored", lambda layer, x: entry(x))
    assert torch.equal(model(token_ids(2, N_TOKENS)), whole)


def test_the_logits_differ_from_those_of_exact_entries_by_what_eight_bits_cost(model, whole):
    exact = model(token_ids(2, N_TOKENS))
    assert 1e-3 < ((whole - exact).norm() / exact.norm()).item() < 0.2  # 2^-4 a number at most, and other picks


@pytest.mark.slow
@pytest.mark.parametrize("table", [v4.PLAIN, v4.FAST], ids=["plain", "fast"])
@pytest.mark.parametrize("cuts", [1, 5, *range(100, 104)])
def test_any_cutting_into_chunks_gives_the_logits_of_one_pass(cuts, table, model, whole):
    sizes = cuts if cuts < 100 else random_cuts(cuts)
    found = in_chunks(model.use(table), token_ids(2, N_TOKENS), sizes, packed_cache(model))
    model.use(v4.FAST)
    assert (found - whole).abs().max() < EXACT  # entries are rounded once: none lies so near to a tie in float64


def test_sequences_of_a_batch_do_not_see_each_other(model, whole):
    for b in range(2):
        alone = in_chunks(model, token_ids(2, N_TOKENS)[b : b + 1], [9, 1, 28], packed_cache(model, 1))
        assert (alone[0] - whole[b]).abs().max() < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("at", [0, 1, 11, 12, 20])
def test_restoring_brings_back_every_bit(at, model):
    assert_every_bit_comes_back(model, packed_cache(model), at)


def test_an_error_in_the_middle_leaves_it_as_it_was(model, whole):
    ids_BT, cache = token_ids(2, N_TOKENS), packed_cache(model)
    in_chunks(model, ids_BT[:, :20], 7, cache)
    before = contents(cache)
    hook = model.layers[3].register_forward_pre_hook(lambda module, inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(ids_BT[:, 20:], cache)
    hook.remove()
    assert same_bits(contents(cache), before)
    assert (model(ids_BT[:, 20:], cache) - whole[:, 20:]).abs().max() < EXACT


def test_it_is_filled_under_inference_mode_and_goes_on_outside_of_it(model, whole):
    ids_BT, cache = token_ids(2, N_TOKENS), packed_cache(model)
    with torch.inference_mode():
        in_chunks(model, ids_BT[:, :20], 1, cache)
    assert (in_chunks(model, ids_BT[:, 20:], 1, cache) - whole[:, 20:]).abs().max() < EXACT


# ---- bytes ----


@pytest.mark.parametrize("n", [1, 127, 128, 129, 1000])
def test_bytes_equal_the_bill_item_by_item_and_the_buffers_hold_no_more_than_spare_room(n):
    model = small_model(LONG, dtype=torch.float32).requires_grad_(False)
    cache = packed_cache(model)
    model.prefill(token_ids(2, n, config=LONG), cache)
    bill = memory.cache(LONG, n, memory.PRODUCTION)
    wanted = {kind: 2 * n_bytes for kind, n_bytes in bill.items()} | {"tail state": 2 * memory.tail_state(LONG, n)}
    assert cache.report() == wanted and cache.n_bytes() == sum(wanted.values())
    parts = [part.data for layer in cache.layers for part in layer.series()]
    assert sum(part.untyped_storage().nbytes() for part in parts) == cache.n_bytes() + cache.spare_bytes()
    assert {part.dtype for part in parts} == {torch.uint8, torch.float32}  # float32: the raw tail


def test_at_the_released_width_it_holds_584_bytes_an_entry_and_68_a_key():
    shape = dict(head_dim=512, qk_rope_head_dim=64, index_head_dim=128, num_attention_heads=2)
    model = small_model(LONG.replace(**shape), dtype=torch.bfloat16)
    cache = packed_cache(model, 1)
    model.prefill(token_ids(1, 260, config=LONG), cache)
    assert cache.report() == {
        **{"window": 4 * 128 * 584, "CSA entries": 65 * 584, "indexer keys": 65 * 68, "HCA entries": 2 * 2 * 584},
        **{"tail state": memory.tail_state(model.config, 260)},
    }


# ---- what is refused ----


def test_another_precision_is_refused(model):
    with pytest.raises(ValueError, match="precision = 'fp8' is not known; it is one of model, released"):
        model.new_cache(precision="fp8")


@pytest.mark.slow
def test_compiled_decoding_refuses_it_and_leaves_it_alone():
    pytest.importorskip("numba")
    from minidsv4.fast.compiled.step import FusedStep

    model = small_model(dtype=torch.float32)
    cache = packed_cache(model, 1)
    model(token_ids(1, 9), cache)
    before = contents(cache)
    with pytest.raises(ValueError, match="precision = 'released' packs what it holds"):
        FusedStep(model)(token_ids(1, 1), cache)
    assert same_bits(contents(cache), before)
