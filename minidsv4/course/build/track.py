"""The track: which step stands in which notebook, in order; importing it fills `STEPS`."""

from minidsv4.course.build import compression, experts, indexer, layers, pieces, seeing, streams, whole  # noqa: F401
from minidsv4.course.build.steps import STEPS, Step

NOTEBOOKS = {
    "1_pieces": ("rms_norm", "frequencies", "rotate"),
    "2_attention": (
        *("window_map", "attend", "grouped_output", "window_attention"),
        *("pool", "compressor", "entry_map", "hca"),
        *("overlapped", "overlap_compressor", "index_scores", "pick", "indexer", "csa"),
    ),
    "3_streams_and_experts": (
        *("sinkhorn", "stream_logits", "mix", "collapse", "write"),
        *("swiglu", "expert", "affinities", "router", "hash_router", "moe"),
    ),
    "4_the_model": ("block", "model", "write_on"),
}
TRACK: dict[str, Step] = {name: STEPS[name] for names in NOTEBOOKS.values() for name in names}
TARGETS = {step.target for step in TRACK.values()} | {"Attention.compressed", "Attention.angles"}
