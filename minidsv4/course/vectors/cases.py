"""The cases: a short text, how it is read, and the trap of the bug museum that its stored values catch.

T tokens, W window, M tokens per compressed entry. The model is `Config.mini`: W = 32, M = 4 and 32, k = 16 picked
entries, so a text of 33 tokens passes the window's border, and one of 68 tokens has more entries than are picked.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from minidsv4.train.programs import document, programs
from minidsv4.train.ship import pretrained_tokenizer

SEED = 4242  # of the programs that the texts come from; the shipped model has not read them


@dataclass(frozen=True)
class Case:
    """One text and how it is read.

    trap      name of the mistake in the bug museum, and of the case
    begins    name of the first value that the mistake changes
    n_tokens  T, the first token of the text included
    watched   values are stored for the last so many tokens
    reads     lengths of the calls that take the text in, one after another; () is one call
    drafts    before the last call so many other tokens are read and taken back
    config    fields of the config that differ in this case
    zeros     released names of tensors that are zero in this case
    padding   padding tokens before each row's text: as many rows as numbers
    mtp       whether the MTP block's logits are stored
    """

    trap: str
    begins: str
    n_tokens: int
    watched: int = 3
    reads: tuple[int, ...] = ()
    drafts: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    zeros: tuple[str, ...] = ()
    padding: tuple[int, ...] = ()
    mtp: bool = False

    @property
    def calls(self) -> tuple[int, ...]:
        """Lengths of all calls."""
        return self.reads or (self.n_tokens,)


NO_VOTES = tuple(f"layers.{n}.attn.indexer.weights_proj.weight" for n in (1, 3, 5))  # every index score is then 0
CASES = [
    # residual streams
    Case("carry_transposed", "layers.0.hc_ffn.pre", 5),
    Case("packing_order_confused", "layers.0.hc_attn.post", 5),
    Case("one_sinkhorn_round_missing", "layers.0.hc_attn.carry", 6, config={"hc_sinkhorn_iters": 2}),
    Case("coefficients_in_bfloat16", "layers.0.hc_attn.pre", 7),
    Case("mtp_reads_one_stream", "mtp.logits", 9, mtp=True),
    # rotary positions
    Case("output_not_turned_back", "layers.0.hc_ffn.pre", 9),
    Case("yarn_amplitude", "layers.1.attn.attended", 12),
    Case("window_layers_with_the_long_base", "layers.0.attn.attended", 31),
    Case("first_channels_rotated", "layers.0.attn.attended", 10),
    Case("entries_at_their_index", "layers.1.attn.attended", 12),
    # compressed entries: lengths on both sides of 4 and of 32
    Case("visible_as_in_the_report", "layers.1.attn.picks", 4, watched=1),
    Case("window_in_progress_visible", "layers.1.attn.picks", 5, watched=4),
    Case("window_0_has_zero_logits", "layers.1.attn.attended", 8),
    Case("halves_swapped", "layers.1.attn.attended", 11),
    Case("norm_after_the_turn", "layers.1.attn.attended", 33),
    Case("overlap_lost_between_calls", "layers.1.attn.attended", 12, watched=1, reads=(8, 1, 1, 1, 1)),
    Case("ape_counted_from_the_chunk", "layers.1.attn.attended", 13, reads=(6, 7)),
    Case("open_window_dropped", "layers.1.attn.attended", 34, reads=(31, 3)),
    # the window, and what a cache holds
    Case("window_without_the_query", "layers.0.attn.attended", 33),
    Case("window_not_carried_over", "layers.0.attn.attended", 40, watched=1, reads=(16, 16, 7, 1)),
    Case("overlap_not_rolled_back", "layers.1.attn.attended", 20, reads=(13, 7), drafts=6),
    Case("padding_hidden_by_a_mask", "logits", 12, padding=(0, 3)),
    # which entries are read
    Case("ties_broken_anyhow", "layers.1.attn.picks", 80, zeros=NO_VOTES),
    Case("keys_of_the_last_chunk_only", "layers.1.attn.picks", 100, reads=(97, 3)),
    Case("one_choice_for_all_queries", "layers.1.attn.picks", 90),
    # attention and experts
    Case("sink_scaled", "layers.0.attn.attended", 6),
    Case("softmax_in_bfloat16", "layers.0.attn.attended", 10),
    Case("biased_scores_as_weights", "layers.1.ffn.weights", 6),
    Case("hash_table_of_zeros", "layers.0.ffn.experts", 3),
    Case("gate_clamped_from_below", "layers.0.streams", 7, config={"swiglu_limit": 0.1}),
]


def with_ids() -> Iterator[tuple[Case, Tensor, Tensor]]:
    """Each case with the ids of its text [B, T], padding included, and its drafts [B, any]."""
    tokenizer = pretrained_tokenizer()
    texts = [document(program) for program in programs(SEED, 8 * len(CASES), composed=True)]
    for number, case in enumerate(CASES):
        ids = [tokenizer.bos_id, *tokenizer.encode("".join(texts[8 * number : 8 * number + 8]))]
        rows = [[0] * n + ids[: case.n_tokens - n] for n in case.padding or (0,)]
        drafts = ids[case.n_tokens : case.n_tokens + case.drafts]
        yield case, torch.tensor(rows), torch.tensor([drafts], dtype=torch.int64)
