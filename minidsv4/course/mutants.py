"""The bug museum: every known trap of a V4 port as a switchable change of the real model.

    with mutant("carry_transposed"):
        model(ids)  # as wrong as the ports that shipped this

Nothing in `model/` knows of this file: on entry a mutant replaces functions of the model's modules and classes, on
exit it puts them back. Models built before and after entry show the bug alike. Each mutant below is a function that
is handed the `right` one and its arguments and does the wrong thing instead; its docstring is the mistake, its
decorator says what one sees (`symptom`), who shipped it (`found`: project and issue, empty where none is known) and
which checks of `tests/test_mutants.py` notice (`killed_by`: these and no others). Traps are numbered as in the
project's list of 47.

Not here, because they change nothing: a mean instead of a sum over index heads (a positive factor moves no pick), and
the weight-free norm of a query head after its rotation instead of before it (a rotation keeps the length).
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from minidsv4.config import LayerKind
from minidsv4.model import (
    attend,
    attention,
    block,
    cache,
    compressor,
    hyper_connection,
    indexer,
    losses,
    model,
    moe,
    mtp,
    rope,
)

BOTH = ("agrees_with_transformers", "agrees_with_paper")
SEES_AHEAD = (*BOTH, "chunks_equal_one_pass", "later_tokens_change_nothing_before")


@dataclass(frozen=True)
class Mutant:
    """One mistake; `wrong` takes the place of each `(owner, attribute)` in `places`."""

    name: str
    traps: tuple[int, ...]
    mistake: str
    symptom: str
    found: str
    killed_by: tuple[str, ...]
    places: tuple[tuple[object, str], ...]
    wrong: Callable


MUTANTS: dict[str, Mutant] = {}


@contextmanager
def mutant(name: str) -> Iterator[Mutant]:
    """Inside this context every model makes the mistake called `name`; mutants may be nested.

    raises  ValueError for a name that is not in `MUTANTS`
    """
    if name not in MUTANTS:
        raise ValueError(f"mutant: {name!r} is not in the museum; it has {', '.join(MUTANTS)}")
    with ExitStack() as stack:
        for owner, attribute in MUTANTS[name].places:
            stack.enter_context(
                patch.object(owner, attribute, _instead(getattr(owner, attribute), MUTANTS[name].wrong))
            )
        yield MUTANTS[name]


def _instead(right: Callable, wrong: Callable) -> Callable:
    @functools.wraps(right)
    def call(*args, **kwargs):
        return wrong(right, *args, **kwargs)

    return call


def trap(*numbers: int, at: list, symptom: str, found: str = "", killed_by: tuple[str, ...] = BOTH) -> Callable:
    """Put the decorated function into the museum, under its own name."""

    def register(wrong: Callable) -> Callable:
        name, mistake = wrong.__name__, " ".join(wrong.__doc__.split())
        MUTANTS[name] = Mutant(name, numbers, mistake, symptom, found, killed_by, tuple(at), wrong)
        return wrong

    return register


@contextmanager
def _with_parts(module: nn.Module, **parts) -> Iterator[None]:
    """Other attributes for one call of a module."""
    before = {name: getattr(module, name) for name in parts}
    try:
        for name, part in parts.items():
            setattr(module, name, part)
        yield
    finally:
        for name, part in before.items():
            setattr(module, name, part)


def _coarse(x: Tensor) -> Tensor:
    return x.bfloat16().to(x.dtype)


# ---- residual streams ----------------------------------------------------------------------------------------------


@trap(
    1,
    at=[(block, "write")],
    symptom="Plausible text that drifts: 5% error a call, a third of the stream after seven layers.",
    found="Automodel#2154, Primus#1040, Megatron#6699",
)
def carry_transposed(right, streams_BTND, y_BTD, mix):
    """New stream j takes carry[j, i] of old stream i; the released code has carry[i, j], so B = carry transposed."""
    return right(streams_BTND, y_BTD, mix._replace(carry_BTNN=mix.carry_BTNN.mT))


@trap(
    2,
    at=[(hyper_connection, "stream_logits")],
    symptom="Sinkhorn normalises the wrong numbers; trained streams explode.",
)
def packing_order_confused(right, streams_BTND, fn, eps):
    """The rows of `fn` are taken as pre, carry, post; they lie as pre, post, carry."""
    logits, n = right(streams_BTND, fn, eps), streams_BTND.shape[2]
    if len(fn) == n:
        return logits  # the head collapse has rows for pre only
    return torch.cat([logits[..., :n], logits[..., -n:], logits[..., n:-n]], dim=-1)


@trap(
    3,
    at=[(hyper_connection, "sinkhorn")],
    symptom="Rows of the mix miss 1 by more; hardly seen with 20 rounds and small logits.",
)
def one_sinkhorn_round_missing(right, logits, iterations, eps):
    """The first round (softmax and columns) is not counted among the iterations, or the loop ends one early."""
    return right(logits, iterations - 1, eps)


@trap(
    3,
    at=[(hyper_connection, "sinkhorn")],
    symptom="Little at small logits; large ones make zeros, which eps lifts: 0.14 on logits of size 8.6 in one test.",
)
def sinkhorn_without_eps(right, logits, iterations, eps):
    """Sinkhorn starts from the plain exponential and divides without eps, as the report prints it."""
    return right(logits, iterations, 0.0)


@trap(
    3,
    at=[(hyper_connection, "sinkhorn")],
    symptom="A new stream is no longer a weighted mean of the old ones: its weights do not sum to 1.",
    killed_by=(*BOTH, "new_streams_are_means_of_old_ones"),
)
def sinkhorn_rows_last(right, logits, iterations, eps):
    """Columns are normalised first and rows last, so the sums that the update relies on are the loose ones."""
    return right(logits.transpose(0, 1), iterations, eps).transpose(0, 1).contiguous()


@trap(
    3,
    at=[(hyper_connection.HyperConnection, "forward")],
    symptom="Each sub-layer reads eps too little: float32 rounding hides it, float64 does not.",
)
def read_without_eps(right, site, streams_BTND):
    """The read weights lack the eps that the released code adds after the sigmoid."""
    mix = right(site, streams_BTND)
    return mix._replace(pre_BTN=mix.pre_BTN - site.eps)


@trap(
    3,
    at=[(hyper_connection.HyperConnection, "forward")],
    symptom="Each sub-layer writes eps too much: float32 rounding hides it, float64 does not.",
)
def write_with_eps(right, site, streams_BTND):
    """The write weights get the eps that belongs to the read weights alone."""
    mix = right(site, streams_BTND)
    return mix._replace(post_BTN=mix.post_BTN + site.eps)


@trap(
    4,
    at=[(hyper_connection, "stream_logits")],
    symptom="Loss curves that part slowly; more so the larger the mix logits.",
)
def coefficients_in_bfloat16(right, streams_BTND, fn, eps):
    """The coefficients are computed in bfloat16 like everything around them."""
    return _coarse(right(streams_BTND, fn, eps))


@trap(
    4,
    at=[(block.Block, "forward")],
    symptom="Right where weights are 1 and streams are equal, as at the very start; large streams then lose their say.",
)
def streams_normed_with_a_weight(right, layer, streams_BTND, *rest):
    """Each stream passes the sub-layer's norm before the coefficients; they want one norm of all, without a weight."""
    site, norm = layer.hc_attn.forward, layer.attn_norm
    with patch.object(layer.hc_attn, "forward", lambda streams: site(norm(streams))):
        return right(layer, streams_BTND, *rest)


@trap(
    5,
    at=[(hyper_connection, "stream_logits")],
    symptom="Reads, writes and mixes are the same for every token: plain weighted residual streams.",
)
def coefficients_without_the_token(right, streams_BTND, fn, eps):
    """Only the learned biases are used, as if the coefficients were static."""
    return torch.zeros_like(right(streams_BTND, fn, eps))


@trap(
    6,
    at=[(mtp.MTP, "forward")],
    symptom="The main model is right; drafts are accepted less often, and nobody looks.",
    found="early ports",
    killed_by=("agrees_with_paper",),
)
def mtp_reads_one_stream(right, layer, streams_BTND, *rest):
    """The streams are collapsed to one before the MTP block, which wants all of them."""
    return right(layer, streams_BTND.mean(dim=2, keepdim=True).expand_as(streams_BTND), *rest)


# ---- rotary positions ----------------------------------------------------------------------------------------------

ROTATED = [(attention, "rotate"), (compressor, "rotate"), (indexer, "rotate")]


@trap(
    7,
    at=[(attention, "rotate")],
    symptom="Fluent at first, then worse with every position: the output depends on where the text stands.",
    found="Primus#928",
    killed_by=(*BOTH, "moving_the_text_changes_nothing"),
)
def output_not_turned_back(right, x, turn):
    """Values carry the turn of their position, being the keys too, and nobody turns the output back."""
    return x if turn.is_conj() else right(x, turn)  # only the way back is conjugate


@trap(
    8,
    at=[(model.Model, "angles")],
    symptom="The rotary part of a score is 1.63 times too large (factor 16) in compressed layers, at every length.",
    found="Atlas#342, Primus#928",
)
def yarn_amplitude(right, whole, *places):
    """Cosine and sine are multiplied by `0.1 ln(factor) + 1`, as generic YaRN code does; V4 does not."""
    angles = right(whole, *places)
    factor = (whole.config.rope_scaling or {"factor": 1})["factor"]
    slowed = angles[LayerKind.CSA]  # the same object as that of HCA
    slowed.turn_TR = slowed.turn_TR * (0.1 * math.log(factor) + 1)
    return angles


@trap(
    9,
    at=[(model, "frequencies")],
    symptom="The layers with a window only blur their positions; short prompts hide it.",
    found="Atlas#276, 1Cat#251",
)
def window_layers_with_the_long_base(right, config, kind, dtype, device):
    """Layers with a window only get base 160000 and YaRN, which belong to CSA and HCA layers."""
    return right(config, LayerKind.CSA, dtype, device)


@trap(
    9,
    at=[(model, "frequencies")],
    symptom="Compressed layers lose distant entries; the window seems fine.",
    found="transformers#45910",
)
def compressed_layers_with_the_short_base(right, config, kind, dtype, device):
    """CSA and HCA layers get base 10000 without YaRN for their queries and entries."""
    return right(config, LayerKind.WINDOW, dtype, device)


@trap(
    10,
    at=ROTATED,
    symptom="Positions reach channels that were trained without them: noise from the first token pair on.",
)
def first_channels_rotated(right, x, turn):
    """The first R channels of a vector are turned; it is the last R."""
    rotary = 2 * turn.shape[-1]
    return right(x.roll(-rotary, dims=-1), turn).roll(rotary, dims=-1)


@trap(
    10,
    at=ROTATED,
    symptom="Noise with released weights; a model trained this way does not mind, so only parity notices.",
)
def half_split_pairs(right, x, turn):
    """Channel i is paired with channel i + R/2, as in Llama; V4 pairs neighbours."""
    rest, rotary = x[..., : -2 * turn.shape[-1]], x[..., -2 * turn.shape[-1] :]
    interleaved = torch.cat([rest, rearrange(rotary, "... (pair r) -> ... (r pair)", pair=2)], dim=-1)
    turned = right(interleaved, turn)[..., rest.shape[-1] :]
    return torch.cat([rest, rearrange(turned, "... (r pair) -> ... (pair r)", pair=2)], dim=-1)


@trap(
    11,
    at=[(rope.Angles, "at")],
    symptom="Entries seem m times further in the past than they are: recall fails, the window is fine.",
    found="Primus#928",
)
def entries_at_their_index(right, angles, start, stop, step=1):
    """Compressed entry i is turned to position i; it stands at position m i."""
    if step == 1:
        return right(angles, start, stop)
    turn_of_one_token = angles.turn_TR[1] / angles.turn_TR[0]
    return turn_of_one_token ** torch.arange(start // step, stop // step, device=turn_of_one_token.device)[:, None]


@trap(
    11,
    at=[(rope.Angles, "at")],
    symptom="Every entry seems m - 1 tokens nearer than it is.",
)
def entries_at_the_window_end(right, angles, start, stop, step=1):
    """A compressed entry is turned to the position of its window's last token; it stands at the first."""
    return right(angles, start + step - 1, stop, step)


# ---- compression ---------------------------------------------------------------------------------------------------


@trap(
    12,
    at=[(compressor.OverlapCompressor, "close")],
    symptom="Every entry mixes the wrong series; shapes fit, and a model trained this way does not mind.",
)
def halves_swapped(right, layer, closed_BCMK, *rest):
    """The first half of the channels is read as the current window's series; it is the previous window's."""
    ape = nn.Parameter(layer.ape.roll(layer.entry_width, dims=1))
    values, gates = (half.roll(layer.entry_width, dims=-1) for half in closed_BCMK.chunk(2, dim=-1))
    with _with_parts(layer, ape=ape):
        return right(layer, torch.cat([values, gates], dim=-1), *rest)


@trap(
    13,
    at=[(compressor.OverlapCompressor, "close")],
    symptom="One pass is right; in decoding every entry lacks its overlap, and answers drift into another language.",
    found="omlx#2271",
    killed_by=("chunks_equal_one_pass",),
)
def overlap_lost_between_calls(right, layer, closed_BCMK, memory, angles):
    """The previous window's half is not carried from one call to the next."""
    memory.previous.drop(len(memory.previous))
    return right(layer, closed_BCMK, memory, angles)


@trap(
    14,
    at=[(compressor.Compressor, "forward")],
    symptom="Right for prompts and for chunks that end with a window; wrong after any other chunk.",
    killed_by=("chunks_equal_one_pass",),
)
def ape_counted_from_the_chunk(right, layer, x_BTD, memory, angles):
    """The position bias is indexed by place in the chunk; it belongs to position mod m."""
    waiting = len(memory.open)  # tokens that the window already had when this chunk began
    with _with_parts(layer, ape=nn.Parameter(layer.ape.roll(waiting, dims=0))):
        return right(layer, x_BTD, memory, angles)


@trap(
    14,
    at=[(compressor, "slot_shares")],
    symptom="Entries lean towards some slots twice as much as they should.",
)
def ape_added_twice(right, gates_BCSK, bias_SK):
    """The position bias is added when gates are stored and once more when they are pooled."""
    return right(gates_BCSK, 2 * bias_SK)


@trap(
    15,
    at=[(compressor.OverlapCompressor, "nothing_before")],
    symptom="Only entry 0 is wrong: it is pulled towards zero. Long texts hide it, first tokens show it.",
)
def window_0_has_zero_logits(right, layer, like_BMK):
    """Before the first window stand values of zero with logits of zero, which take weight; it takes logits of -inf."""
    return torch.zeros_like(like_BMK)


@trap(
    16,
    at=[(compressor, "slot_shares")],
    symptom="All channels of an entry take the same mixture of tokens; shapes fit.",
)
def one_softmax_for_all_channels(right, gates_BCSK, bias_SK):
    """A slot gets one weight for all channels; each channel has a softmax of its own over the slots."""
    gate = gates_BCSK.mean(dim=-1, keepdim=True).expand_as(gates_BCSK)
    return right(gate, bias_SK.mean(dim=-1, keepdim=True).expand_as(bias_SK))


@trap(
    17,
    at=[(compressor.Compressor, "forward")],
    symptom="Right while the norm's weight is all 1; then the weight scales turned channels.",
)
def norm_after_the_turn(right, layer, x_BTD, memory, angles):
    """Pooled entries are turned and then normed; they are normed, then turned."""
    with _with_parts(layer, norm=nn.Identity(), finish=nn.Sequential(layer.norm, layer.finish)):
        return right(layer, x_BTD, memory, angles)


@trap(
    18,
    at=[(compressor.Compressor, "forward")],
    symptom="One pass is right; after a chunk that ends inside a window the next entry lacks its first tokens.",
    killed_by=("chunks_equal_one_pass",),
)
def open_window_dropped(right, layer, x_BTD, memory, angles):
    """Tokens of a window that is not full are forgotten at the end of a call; they must wait for the rest."""
    values, gates = memory.open.view().chunk(2, dim=-1)
    memory.open.drop(len(memory.open))
    memory.open.append(torch.cat([torch.zeros_like(values), torch.full_like(gates, -torch.inf)], dim=-1))
    return right(layer, x_BTD, memory, angles)


# ---- indexer and masks ---------------------------------------------------------------------------------------------


@trap(
    20,
    at=[(attention, "visible_entries")],
    symptom="A training loss too good to be true, and generation that does not match it.",
    found="transformers#45758, transformers#45820, mlx-lm#1189",
    killed_by=SEES_AHEAD,
)
def no_causal_mask_on_entries(right, x_BTD, start, ratio):
    """In a prefill every query sees every entry of the prompt, those of its future too."""
    visible_T = right(x_BTD, start, ratio)
    return visible_T[-1:].expand_as(visible_T)


@trap(
    20,
    at=[(attention, "visible_entries")],
    symptom="A query inside a window sees what follows in that window: a leak of up to m - 1 tokens.",
    found="tpu-inference#3536",
    killed_by=SEES_AHEAD,
)
def window_in_progress_visible(right, x_BTD, start, ratio):
    """One entry too many: `floor(t / M) + 1` counts the window that the query itself is still in."""
    return right(x_BTD, start - 1, ratio) + 1


@trap(
    20,
    at=[(attention, "visible_entries")],
    symptom="The last token of each window misses the entry that it completes: one query in m is off.",
)
def visible_as_in_the_report(right, x_BTD, start, ratio):
    """`floor(t / M)` entries are visible; the released code counts the query's own token, `floor((t + 1) / M)`."""
    return right(x_BTD, start - 1, ratio)


@trap(
    21,
    at=[(attend, "_cut_far")],
    symptom="Only queries with fewer visible entries than k are wrong: they read the future, or garbage.",
    killed_by=(*SEES_AHEAD, "indexers_learn_what_their_layers_read"),
)
def picks_of_nothing_are_read(right, far, start, stop):
    """Where fewer than k entries are visible top-k fills up with hidden ones, and they are attended to."""
    block_far = right(far, start, stop)
    if far.picks_BTP is None:
        return block_far
    return block_far._replace(visible_T=torch.full_like(block_far.visible_T, far.entries_BCK.shape[1]))


@trap(
    22,
    at=[(indexer.Hadamard, "forward")],
    symptom="Picks are random: fine while k covers everything, then retrieval dies (there, beyond 18K tokens).",
    found="ATOM#1507",
)
def hadamard_on_queries_only(right, layer, x):
    """The Hadamard matrix turns the index queries and not the keys, so their products mean nothing."""
    is_query = x.ndim == 4  # [B, T, U, Z]; keys have no head axis
    return right(layer, x) if is_query else x


@trap(
    23,
    at=[(indexer, "index_scores")],
    symptom="A head that finds nothing votes all the same, with the other sign: other picks.",
    found="mlx-lm#1189, 1Cat#250",
)
def index_scores_without_relu(right, query_BTUZ, weight_BTU, keys_BSZ):
    """Index scores are a plain weighted sum of products, without the ReLU."""
    return einsum(query_BTUZ, weight_BTU, keys_BSZ, "b t u z, b t u, b s z -> b t s")


@trap(
    23,
    at=[(indexer.Indexer, "queries")],
    symptom="No head can vote against an entry any more: other picks.",
    found="mlx-lm#1189, 1Cat#250",
)
def index_head_weights_through_a_sigmoid(right, layer, x_BTD, latent_BTQ, turn_TR):
    """Head weights pass a sigmoid; they are linear in x and may be negative."""
    query_BTUZ, weight_BTU = right(layer, x_BTD, latent_BTQ, turn_TR)
    return query_BTUZ, weight_BTU.sigmoid()


@trap(
    24,
    at=[(indexer, "stable_topk")],
    symptom="With few index heads many scores are exactly 0; prefill and decoding break the ties differently.",
    found="transformers with 4 index heads: logits off by 4.2 on 4 of 6 seeds",
    killed_by=(*BOTH, "chunks_equal_one_pass"),
)
def ties_broken_anyhow(right, score, k):
    """`torch.topk` chooses among equal scores as it likes; the lower index must win."""
    return score.topk(min(k, score.shape[-1]), dim=-1).indices.sort(dim=-1).values


@trap(
    25,
    at=[(indexer.Indexer, "pick")],
    symptom="Cheaper, and wrong for all but one query; the choice depends on later tokens.",
    killed_by=SEES_AHEAD,
)
def one_choice_for_all_queries(right, layer, query_BTUZ, *rest):
    """All queries of a block read the entries that its last query picked."""
    index = right(layer, query_BTUZ, *rest)
    return index[:, -1:].expand_as(index)


@trap(
    26,
    at=[(indexer, "index_scores")],
    symptom="Not smaller digits but other entries: a small error in a score swaps whole picks.",
)
def indexer_rounded_to_fp8(right, query_BTUZ, weight_BTU, keys_BSZ):
    """Index queries and keys are rounded to 8 bits in a model that was not trained with that rounding."""
    query, keys = (x.to(torch.float8_e4m3fn).to(x.dtype) for x in (query_BTUZ, keys_BSZ))
    return right(query, weight_BTU, keys)


@trap(
    27,
    at=[(losses, "indexer_loss")],
    symptom="The loss falls as ever, since the trunk adapts to random picks; what lies far back is not found.",
    killed_by=("indexers_learn_what_their_layers_read",),
)
def indexer_never_taught(right, call):
    """The indexer has no loss of its own, and a top-k has no gradient: it stays as random as it began."""
    return right(call).detach()


@trap(
    27,
    at=[(losses, "teacher")],
    symptom="Heads that hardly read entries teach as loudly as those that do: picks for nobody.",
    found="Primus#992",
    killed_by=("indexers_learn_what_their_layers_read",),
)
def teacher_normed_in_each_head(right, share_BTHC):
    """Each head's weights are divided by their sum over entries before heads are added, as if no window were there."""
    return right(share_BTHC / share_BTHC.sum(-1, keepdim=True).clamp_min(torch.finfo(share_BTHC.dtype).tiny))


@trap(
    27,
    at=[(losses, "indexer_loss")],
    symptom="The trunk is bent towards what is easy to index; the text is predicted a little worse.",
    killed_by=("the_trunk_learns_from_the_text_alone",),
)
def indexer_teaches_the_trunk(right, call):
    """The indexer's inputs are not detached, so that its loss reaches the layers below."""
    with patch.object(Tensor, "detach", lambda x: x):
        return right(call)


# ---- core attention ------------------------------------------------------------------------------------------------


@trap(
    28,
    at=[(attention.WindowAttention, "forward")],
    symptom="Queries of compressed layers are blind to the last tokens, which no finished entry holds yet.",
    found="mobius#596",
    killed_by=(*BOTH, "cache_bytes_equal_the_formula"),
)
def no_window_in_compressed_layers(right, layer, *args):
    """CSA and HCA layers read compressed entries only; the window belongs to every layer."""
    with _with_parts(layer, window=layer.window if layer.kind is LayerKind.WINDOW else 0):
        return right(layer, *args)


@trap(
    28,
    at=[(attend.Attend, "forward")],
    symptom="Every query sees one old token too many.",
)
def window_without_the_query(right, layer, query_BTHK, near, *rest):
    """A query sees W tokens and itself; the window counts the query."""
    return right(layer, query_BTHK, near._replace(window=near.window + 1), *rest)


@trap(
    29,
    at=[(attend.Attend, "forward")],
    symptom="All sinks are nearly 0, so heads that had learnt to look at nothing must look at something.",
)
def sink_scaled(right, layer, query_BTHK, near, far, sinks_H):
    """The sink is multiplied by K^-0.5 like a score; it is a logit as it stands."""
    return right(layer, query_BTHK, near, far, sinks_H * query_BTHK.shape[-1] ** -0.5)


@trap(
    29,
    at=[(attend.Attend, "forward")],
    symptom="No head can be quieter than another by its sink; under tensor parallelism each rank errs otherwise.",
)
def sink_shared_by_heads(right, layer, query_BTHK, near, far, sinks_H):
    """One sink serves all heads; each has its own."""
    return right(layer, query_BTHK, near, far, sinks_H.mean().expand_as(sinks_H))


@trap(
    29,
    at=[(attend, "weights")],
    symptom="Weights sum to 1: no head can be quiet.",
)
def sink_share_given_back(right, *args):
    """What the sink takes is handed back to the entries, as if the sink had a value like theirs; its value is 0."""
    near, far = right(*args)
    total = near.sum(dim=-1, keepdim=True) + far.sum(dim=-1, keepdim=True)
    return near / total, far / total


@trap(
    30,
    at=[(attention, "unit_rms")],
    symptom="Scores grow with the query's length: attention far too sharp or too flat.",
)
def query_heads_not_normed(right, x, eps):
    """Query heads are used as they come; each is normed over its K channels, without a weight."""
    return x


@trap(
    31,
    at=[(attend, "weights")],
    symptom="Every weight is off by up to one part in 512, and a row no longer sums to 1 minus the sink's share.",
    found="Automodel#2201",
)
def softmax_in_bfloat16(right, *args):
    """Attention weights are rounded to bfloat16."""
    return tuple(_coarse(share) for share in right(*args))


@trap(
    32,
    at=[(attention.WindowAttention, "project")],
    symptom="Heads meet the weights of another group: noise with released weights, harmless when trained so.",
    found="SGLang#29036",
)
def output_groups_interleaved(right, layer, out_BTHK):
    """Group g takes heads g, g + G, g + 2G, ...; it takes H / G neighbours."""
    return right(layer, rearrange(out_BTHK, "b t (h g) k -> b t (g h) k", g=layer.groups))


@trap(
    42,
    at=[(attend.Attend, "forward")],
    symptom="Scores are right to the last bit, and the output is noise: the values were the keys.",
    found="llama.cpp#25382",
    killed_by=(*BOTH, "moving_the_text_changes_nothing"),
)
def hadamard_on_the_cache(right, layer, query_BTHK, near, far, sinks_H):
    """Queries and entries are turned by a Hadamard matrix for quantisation; the output comes out turned, unnoticed."""
    turn = indexer.Hadamard(query_BTHK.shape[-1])(torch.eye(query_BTHK.shape[-1])).to(query_BTHK)
    near, far = near._replace(entries_BSK=near.entries_BSK @ turn), far._replace(entries_BCK=far.entries_BCK @ turn)
    return right(layer, query_BTHK @ turn, near, far, sinks_H)


# ---- experts -------------------------------------------------------------------------------------------------------


@trap(
    34,
    at=[(moe.Router, "forward")],
    symptom="Near-ties flip: single tokens visit another expert, and only they are far off.",
    found="Automodel#2201, vllm-ascend#9831",
)
def router_in_bfloat16(right, router, x_BTD, ids_BT):
    """The router reads and scores in bfloat16; it wants float32."""
    return right(router, _coarse(x_BTD), ids_BT)


@trap(
    35,
    at=[(moe.LearnedRouter, "forward")],
    symptom="Balancing changes the output: experts that were idle speak louder.",
)
def biased_scores_as_weights(right, router, x_BTD, ids_BT):
    """An expert's weight is its score plus the bias; the bias is for the choice alone."""
    routed = right(router, x_BTD, ids_BT)
    chosen = (routed.score_BTE + router.bias).gather(-1, routed.picked_BTA)
    return routed._replace(weight_BTA=router.route_scale * chosen / chosen.sum(dim=-1, keepdim=True))


@trap(
    35,
    at=[(moe.Router, "forward")],
    symptom="Experts speak louder for tokens that the router scores high.",
    killed_by=(*BOTH, "routing_weights_sum_to_the_scale"),
)
def routing_weights_not_normalised(right, router, x_BTD, ids_BT):
    """The chosen scores are not divided by their sum."""
    routed = right(router, x_BTD, ids_BT)
    return routed._replace(weight_BTA=router.route_scale * routed.score_BTE.gather(-1, routed.picked_BTA))


@trap(
    35,
    at=[(moe.Router, "forward")],
    symptom="Routed experts are too quiet by 1.5 (Flash) or 2.5 (Pro).",
    killed_by=(*BOTH, "routing_weights_sum_to_the_scale"),
)
def route_scale_forgotten(right, router, x_BTD, ids_BT):
    """Routing weights sum to 1; they sum to the route scale."""
    routed = right(router, x_BTD, ids_BT)
    return routed._replace(weight_BTA=routed.weight_BTA / router.route_scale)


@trap(
    36,
    at=[(moe.HashRouter, "forward")],
    symptom="The first three layers are wrong, and their gate gets no gradient.",
)
def hash_layers_weigh_uniformly(right, router, x_BTD, ids_BT):
    """Experts that the table chose share the weight equally; they are weighed by the layer's own gate."""
    routed = right(router, x_BTD, ids_BT)
    return routed._replace(weight_BTA=torch.full_like(routed.weight_BTA, router.route_scale / router.active))


@trap(
    37,
    at=[(moe, "swiglu")],
    symptom="Nothing until an outlier comes; then one token turns to garbage.",
    found="SGLang#23776, pypto#470, mlx-vlm#1469",
)
def clamp_after_the_product(right, gate, up, limit):
    """The product is clamped; gate and up are, before the nonlinearity."""
    return right(gate, up, math.inf).clamp(-limit, limit)


@trap(
    37,
    at=[(moe, "swiglu")],
    symptom="Only gates below -limit differ, where silu is almost 0 anyway: found by nobody's eye.",
    found="SGLang#23776, pypto#470, mlx-vlm#1469",
)
def gate_clamped_from_below(right, gate, up, limit):
    """The gate is clamped on both sides; it has a bound above only."""
    return right(gate.clamp(min=-limit), up, limit)


@trap(
    37,
    at=[(moe.SharedExpert, "forward")],
    symptom="Garbage tokens on rare inputs.",
    found="the first released Flash code; SGLang#23752",
)
def shared_expert_not_clamped(right, expert, x_BTD):
    """The clamp is left out on the shared expert."""
    with _with_parts(expert, limit=math.inf):
        return right(expert, x_BTD)


@trap(
    38,
    at=[(moe.HashRouter, "pick")],
    symptom="In training the next token's id leaks into the choice of experts; in decoding it is not there.",
    killed_by=SEES_AHEAD,
)
def hash_of_the_next_token(right, router, score_BTE, ids_BT):
    """Hash layers look up the ids shifted by one, as the labels and the MTP block have them."""
    return right(router, score_BTE, ids_BT.roll(-1, dims=1))


# ---- caching -------------------------------------------------------------------------------------------------------


@trap(
    39,
    at=[(cache.Cache, "rewind")],
    symptom="After a prefix hit the model continues another conversation for W tokens.",
    found="ATOM#1417",
    killed_by=("restoring_forgets_what_was_rejected",),
)
def window_left_stale(right, memory, mark):
    """A restored cache gets its compressed entries back, and keeps the window of whatever ran last."""
    _rewind_all_but([layer.window for layer in memory.layers], right, memory, mark)


def _rewind_all_but(left: list[cache.Series], right: Callable, memory: cache.Cache, mark: cache.Snapshot) -> None:
    stale = [dict(vars(series)) for series in left]
    right(memory, mark)
    for series, state in zip(left, stale):
        vars(series).update(state)


@trap(
    40,
    at=[(cache.Cache, "rewind")],
    symptom="After rejected drafts that closed a window, the next entry overlaps with tokens that were never said.",
    killed_by=("restoring_forgets_what_was_rejected",),
)
def overlap_not_rolled_back(right, memory, mark):
    """The compressors' previous half stays what the rejected tokens made of it."""
    compressors = [part for layer in memory.layers for part in layer.compressors()]
    _rewind_all_but([part.previous for part in compressors], right, memory, mark)


@trap(
    39,
    at=[(cache.Series, "keep")],
    symptom="One pass is right; every call begins blind to the tokens just before it.",
    killed_by=("chunks_equal_one_pass", "cache_bytes_equal_the_formula"),
)
def window_not_carried_over(right, series, n):
    """The window's entries are not remembered between calls."""
    return right(series, 0)


@trap(
    at=[(cache.Series, "keep")],
    symptom="Every output is right; memory grows by a window entry a token and layer, and 1M tokens do not fit.",
    killed_by=("cache_bytes_equal_the_formula",),
)
def window_never_forgotten(right, series, n):
    """Window entries are masked when they are old, and kept for ever."""
