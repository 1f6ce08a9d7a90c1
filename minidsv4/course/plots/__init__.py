"""Every picture of the course as a function that returns a matplotlib Figure, and the style that all share.

Modules by subject: `style`, `model_map`, `tour` (00), `attention` (01, 04, lineage), `compression` (02, 03, 05),
`selection` (03), `streams` (06), `experts` (07), `speculation` (08), `training` (09, 10), `cost` (12), `parallel`
(13), `context` (14), `bench`, `build` (the track); `shapes` draws a mechanism.
"""

from minidsv4.course.plots.attention import (
    answers_of_heads,
    attention_map,
    lineage,
    masks,
    moved_text,
    reach,
    score_by_distance,
    shares_of_attention,
    visibility_shapes,
    window_attention_shapes,
)
from minidsv4.course.plots.bench import bench_curves
from minidsv4.course.plots.build import attention_shapes, model_shapes, moe_shapes, site_shapes, turned_pair
from minidsv4.course.plots.compression import (
    cache_against_length,
    cache_growth,
    cache_shapes,
    compressor_shapes,
    entry_places,
    listening,
    pooled_tokens,
    recall_in_4_bits,
    wave_and_entries,
)
from minidsv4.course.plots.context import cut_row, sent_by_ranks, two_stage_shapes, wrong_from_the_border
from minidsv4.course.plots.cost import device_time, dots, grouped_bars, ratios_by_assumption
from minidsv4.course.plots.experts import (
    bias_rule,
    clamped_product,
    expert_layer_shapes,
    experts_by_kind,
    score_functions,
    table_loads,
    toy_balance,
)
from minidsv4.course.plots.model_map import PARTS, map_of_model
from minidsv4.course.plots.parallel import (
    expert_parallel_shapes,
    gain_by_batch,
    gantt,
    overlap_by_ratio,
    paced_waves,
    rows_by_ranks,
    sorted_loads,
    traffic,
)
from minidsv4.course.plots.selection import caught, indexer_shapes, picked_text, ties
from minidsv4.course.plots.shapes import Box, shapes
from minidsv4.course.plots.speculation import drafted_text, drafting, losses_by_place, mtp_shapes, mtp_shift
from minidsv4.course.plots.streams import alike_by_depth, carry_of_a_site, pulse, sinkhorn_paths, streams_through_depth
from minidsv4.course.plots.style import COLOURS, DPI, HEADING, INK, use_style
from minidsv4.course.plots.tour import (
    block_shapes,
    caches,
    reads_at_length,
    streams_apart,
    visits_of_experts,
    what_a_query_reads,
)
from minidsv4.course.plots.training import newton_schulz, planted_recall, race, schedule, training_log

__all__ = [
    "Box",
    "COLOURS",
    "DPI",
    "HEADING",
    "INK",
    "PARTS",
    "alike_by_depth",
    "answers_of_heads",
    "attention_map",
    "attention_shapes",
    "bench_curves",
    "bias_rule",
    "block_shapes",
    "cache_against_length",
    "cache_growth",
    "cache_shapes",
    "caches",
    "carry_of_a_site",
    "caught",
    "clamped_product",
    "compressor_shapes",
    "cut_row",
    "device_time",
    "dots",
    "drafted_text",
    "drafting",
    "entry_places",
    "expert_layer_shapes",
    "expert_parallel_shapes",
    "experts_by_kind",
    "gain_by_batch",
    "gantt",
    "grouped_bars",
    "indexer_shapes",
    "lineage",
    "listening",
    "losses_by_place",
    "map_of_model",
    "masks",
    "model_shapes",
    "moe_shapes",
    "moved_text",
    "mtp_shapes",
    "mtp_shift",
    "newton_schulz",
    "overlap_by_ratio",
    "paced_waves",
    "picked_text",
    "planted_recall",
    "pooled_tokens",
    "pulse",
    "race",
    "ratios_by_assumption",
    "reach",
    "reads_at_length",
    "recall_in_4_bits",
    "rows_by_ranks",
    "schedule",
    "score_by_distance",
    "score_functions",
    "sent_by_ranks",
    "shapes",
    "shares_of_attention",
    "sinkhorn_paths",
    "site_shapes",
    "sorted_loads",
    "streams_apart",
    "streams_through_depth",
    "table_loads",
    "ties",
    "toy_balance",
    "traffic",
    "training_log",
    "turned_pair",
    "two_stage_shapes",
    "use_style",
    "visibility_shapes",
    "visits_of_experts",
    "wave_and_entries",
    "what_a_query_reads",
    "window_attention_shapes",
    "wrong_from_the_border",
]
