"""The notebooks that hold the course's rules on names, prose and code; the others are being rewritten to them.

Whoever rewrites a notebook adds its name here and takes it out of `exclude` in notebooks/ruff.toml.
"""

CONVERTED = [
    "00_tour",
    "01_attention",
    "02_compression",
    "03_indexer",
    "04_who_sees_what",
    "05_cache",
    "06_streams",
    "07_experts",
    "08_mtp",
    "09_muon",
    "10_training",
    "12_the_bill",
    "13_expert_parallelism",
    "14_context_parallelism",
    "lineage",
]
