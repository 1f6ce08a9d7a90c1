"""Many ranks: experts spread over them, one row of tokens cut over them, and what carries rows between them."""

from minidsv4.parallel.context import context_parallel_logits, context_parallel_mtp_logits, context_parallel_streams
from minidsv4.parallel.experts import STRATEGIES, expert_parallel_moe, load_spread, shard, spread_experts
from minidsv4.parallel.gradients import sum_gradients
from minidsv4.parallel.launch import LostContact, RankError, join, run_ranks
from minidsv4.parallel.layout import Layout, plan
from minidsv4.parallel.transport import FakeClock, PacedTransport, Transport
from minidsv4.parallel.zero import ShardedMuon

__all__ = [
    "FakeClock",
    "Layout",
    "LostContact",
    "PacedTransport",
    "RankError",
    "STRATEGIES",
    "ShardedMuon",
    "Transport",
    "context_parallel_logits",
    "context_parallel_mtp_logits",
    "context_parallel_streams",
    "expert_parallel_moe",
    "join",
    "load_spread",
    "plan",
    "run_ranks",
    "shard",
    "spread_experts",
    "sum_gradients",
]
