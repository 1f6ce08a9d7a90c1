"""mHC: coefficients and mixing as in the loops, and what a nearly doubly stochastic matrix promises."""

import torch
from small import EXACT, TINY, both_tables, disturb, memory_of, normal, numpy_of, off, positions_of, with_ops

import minidsv4 as v4
from minidsv4 import paper
from minidsv4.model.block import Block
from minidsv4.model.hyper_connection import HeadCollapse, HyperConnection

B, T, N, D = 2, 5, TINY.hc_mult, TINY.hidden_size
collapse = v4.FAST.collapse


def write(streams_BTND, y_BTD, mix):
    return v4.FAST.write(streams_BTND, y_BTD, mix.post_BTN, mix.carry_BTij)


def build(seed=0):
    return disturb(HyperConnection(TINY).double(), seed)


def by_hand(streams_BTND, site):
    names = {f"hc_attn_{part}": tensor for part, tensor in numpy_of(site).items()}
    return [paper.stream_maps(streams_TND.numpy(), names, "attn", TINY) for streams_TND in streams_BTND]


@both_tables
def test_the_coefficients_agree_with_the_loops_of_the_paper(table):
    site, streams_BTND = with_ops(build(), table), normal(B, T, N, D)
    mix = site(streams_BTND)
    for b, maps in enumerate(by_hand(streams_BTND, site)):
        for t, expected in enumerate(maps):
            for ours, theirs in zip(mix, expected):
                assert (ours[b, t] - torch.from_numpy(theirs)).abs().max() < EXACT


def test_reading_a_layer_and_writing_back_agree_with_the_loops_of_the_paper():
    site, streams_BTND = build(), normal(B, T, N, D)
    mix = site(streams_BTND)
    ours = write(streams_BTND, torch.sin(collapse(streams_BTND, mix.pre_BTN)), mix)
    for b, maps in enumerate(by_hand(streams_BTND, site)):
        expected = paper.hyper_connection(
            streams_BTND[b].numpy(), maps, lambda x: torch.sin(torch.from_numpy(x)).numpy()
        )
        assert (ours[b] - torch.from_numpy(expected)).abs().max() < EXACT


@both_tables
def test_the_head_collapse_agrees_with_the_loops_of_the_paper(table):
    head, streams_BTND = with_ops(disturb(HeadCollapse(TINY).double()), table), normal(B, T, N, D)
    ours, params = head(streams_BTND), numpy_of(head)
    for b, t in [(0, 0), (1, 3)]:
        expected = paper.head_collapse(streams_BTND[b, t].numpy(), params["fn"], params["base"], params["scale"])
        assert (ours[b, t] - torch.from_numpy(expected)).abs().max() < EXACT


# ---- the site ----


def test_reads_lie_above_0_up_to_1_and_writes_between_0_and_2():
    site = build()
    site.scale.data.fill_(3.0)
    mix = site(normal(B, 500, N, D))
    assert (mix.pre_BTN > 0).all() and (mix.pre_BTN <= 1 + TINY.hc_eps).all()
    assert (mix.post_BTN > 0).all() and (mix.post_BTN < 2).all()
    assert mix.post_BTN.max() > 1.9 and mix.pre_BTN.max() > 0.9  # both come near their bounds


def test_scaling_the_streams_changes_no_coefficient():
    site, streams_BTND = build(), normal(B, T, N, D)
    for ours, scaled in zip(site(streams_BTND), site(1000 * streams_BTND)):
        assert (ours - scaled).abs().max() < 1e-5  # eps = 1e-6 of the norm, over mean squares near 1


def test_the_head_collapse_scales_with_the_streams():
    head, streams_BTND = disturb(HeadCollapse(TINY).double()), normal(B, T, N, D)
    assert off(head(1000 * streams_BTND), 1000 * head(streams_BTND)) < 1e-5  # eps = 1e-6 of the norm


def test_permuting_streams_with_their_parameters_permutes_what_is_written():
    site, streams_BTND, order = build(), normal(B, T, N, D), torch.tensor([2, 0, 3, 1])
    mix, y_BTD = site(streams_BTND), normal(B, T, D, seed=1)
    rows = torch.cat([order, N + order, 2 * N + (N * order[:, None] + order).flatten()])
    site.fn.data = site.fn.data[rows].unflatten(1, (N, D))[:, order].flatten(1)
    site.base.data = site.base.data[rows]
    permuted = site(streams_BTND[:, :, order])
    assert (
        collapse(streams_BTND[:, :, order], permuted.pre_BTN) - collapse(streams_BTND, mix.pre_BTN)
    ).abs().max() < EXACT
    ours = write(streams_BTND[:, :, order], y_BTD, permuted)
    assert (ours - write(streams_BTND, y_BTD, mix)[:, :, order]).abs().max() < EXACT


def one_hot(site, first=0):
    """Read stream `first` alone, write 1 to every stream, keep each stream to itself."""
    site.scale.data.zero_()
    site.base.data = torch.cat([torch.full((N,), -200.0), torch.zeros(N), 200 * torch.eye(N).flatten()]).double()
    site.base.data[first] = 200.0


def test_with_a_one_hot_read_and_no_mixing_a_block_is_a_plain_pre_norm_residual_block():
    config = TINY.replace(hc_eps=1e-30)  # the eps of the released code is added to every read weight
    block = disturb(Block(config, v4.LayerKind.CSA, v4.Routing.LEARNED).double())
    one_hot(block.hc_attn), one_hot(block.hc_ffn)
    ids, streams_BTND = torch.zeros(2, 38, dtype=torch.long), normal(2, 38, N, D)

    def parts():
        return positions_of(v4.LayerKind.CSA, 38), memory_of(v4.LayerKind.CSA, 2)

    ours = block(streams_BTND, ids, *parts())
    x_BTD = streams_BTND[:, :, 0]
    y_BTD = block.attn(block.attn_norm(x_BTD), *parts())
    z_BTD = block.ffn(block.ffn_norm(x_BTD + y_BTD), ids)
    assert (ours[:, :, 0] - (x_BTD + y_BTD + z_BTD)).abs().max() < EXACT
    assert (ours - streams_BTND - (y_BTD + z_BTD)[:, :, None]).abs().max() < EXACT  # every stream gets the same


def test_at_the_start_a_site_reads_the_mean_writes_one_and_keeps_each_stream():
    site = HyperConnection(TINY).double()
    torch.nn.init.normal_(site.fn, std=0.02)
    mix = site(normal(B, T, N, D))
    # 0.01 times logits of 0.02 sqrt(96) = 0.2, so base decides: sigmoid is 1/4 at most, softmax of 4 and 0 is 0.95.
    assert (mix.pre_BTN - 1 / N).abs().max() < 0.003 and (mix.post_BTN - 1).abs().max() < 0.006
    assert (torch.diagonal(mix.carry_BTij, dim1=-2, dim2=-1) - 0.948).abs().max() < 0.003


def test_one_stream_is_a_model_without_streams_to_mix():
    config = TINY.replace(hc_mult=1)
    mix = disturb(HyperConnection(config).double())(normal(B, T, 1, D))
    assert (mix.carry_BTij - 1).abs().max() < 2e-6  # eps


def test_16_bit_streams_are_mixed_in_float32_and_keep_their_dtype():
    site, streams_BTND = build().bfloat16(), normal(B, T, N, D).bfloat16()
    mix = site(streams_BTND)
    assert {part.dtype for part in mix} == {torch.float32}
    wide = build().float()  # what bfloat16() kept
    for ours, theirs in zip(mix, wide(streams_BTND.float())):
        assert torch.equal(ours, theirs)
    assert write(streams_BTND, normal(B, T, D).bfloat16(), mix).dtype == torch.bfloat16
