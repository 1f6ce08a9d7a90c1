"""The bill: parameters, FLOPs, bytes, time and dollars of a V4 model of any size, and of what it is compared with.

`bill(config, n_tokens)` is the whole of it; the modules hold the formulas, each derived from `Config` alone.
"""

from minidsv4.cost.baselines import V32
from minidsv4.cost.report import Bill, bill

__all__ = ["V32", "Bill", "bill"]
